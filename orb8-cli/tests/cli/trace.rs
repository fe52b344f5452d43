//! `orb8 trace` against an agent whose answers are known.

use std::{
    io::Read,
    net::TcpListener,
    process::Command,
    time::{Duration, Instant},
};

use orb8_proto::{Loss, LossReport, event::Event as Kind};

use crate::fake_agent::{
    FakeAgent, Run, Script, Then, event, final_report, first_line, flow, node_status, orb8, spawn,
};

fn three_flows(then: Then) -> Script {
    Script {
        events: vec![
            node_status(),
            event(Kind::NetworkFlow(flow("web-1", 1_000))),
            event(Kind::NetworkFlow(flow("web-1", 234_500))),
            event(Kind::NetworkFlow(flow("db\u{1b}[2J", u64::MAX / 2))),
            final_report(3, 0),
        ],
        then,
        ..Script::default()
    }
}

fn without_final_report(then: Then) -> Script {
    let mut script = three_flows(then);
    script.events.pop();
    script
}

fn send_signal(name: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn jsonl_has_one_object_per_record_and_the_sums_are_exact() {
    let agent = FakeAgent::start(three_flows(Then::End));
    let run = agent.run(&["trace", "network", "-o", "jsonl", "-n", "prod", "--duration", "7s"]);
    assert_eq!(run.code, 0, "{run:?}");
    let records: Vec<serde_json::Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum: u64 = records.iter().map(|record| record["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, 1_000 + 234_500 + u64::MAX / 2);
    let first = &records[0];
    for (name, value) in [
        ("namespace", "prod"),
        ("pod_name", "web-1"),
        ("container", ""),
        ("src_ip", "10.0.0.1"),
        ("dst_ip", "10.0.0.2"),
        ("protocol", "tcp"),
        ("direction", "egress"),
        ("attributed_by", "veth"),
        ("interface", "veth1"),
        ("state", "active"),
    ] {
        assert_eq!(first[name], value, "{name}");
    }
    assert_eq!(first["src_port"], 40_000);
    assert_eq!(first["packets"], 10);
    assert_eq!(first["timestamp_ns"], 1_700_000_000_000_000_000_u64);
    assert_eq!(records[2]["pod_name"], "db\u{1b}[2J");
    assert!(!run.stdout.contains('\u{1b}'), "escaped by JSON's own means");

    let request = agent.requests.recv().unwrap();
    assert_eq!(request.namespace, "prod");
    assert_eq!(request.duration_ns, Some(7_000_000_000));
    assert_eq!(request.signals, ["network"]);
}

#[test]
fn stderr_tells_what_is_attached_and_sums_up_in_its_last_line() {
    let agent = FakeAgent::start(three_flows(Then::End));
    let run = agent.run(&["trace", "network"]);
    assert_eq!(run.code, 0, "{run:?}");
    for part in [
        "mode: cluster, asking 127.0.0.1:",
        "attached 1 interface by tcx: veth1 (prod/web)",
        "not attached to lo: loopback",
        "warning: network is degraded: ring too small",
    ] {
        assert!(run.stderr.contains(part), "{part:?} in {}", run.stderr);
    }
    assert_eq!(run.last_line(), "1/1 nodes answered, 0 of 3 records lost");
    assert!(run.stdout.starts_with("TIME"), "{}", run.stdout);
    assert!(run.stdout.contains("db\\u{1b}[2J"), "{}", run.stdout);
    assert!(!run.stdout.contains('\u{1b}') && !run.stderr.contains('\u{1b}'));
}

#[test]
fn quiet_leaves_stderr_empty() {
    let agent = FakeAgent::start(three_flows(Then::End));
    let run = agent.run(&["trace", "network", "-q", "--no-headers"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!(run.stdout.lines().count(), 3);
}

#[test]
fn lost_records_make_the_trace_partial() {
    let mut script = three_flows(Then::End);
    script.events.pop();
    script.events.push(final_report(3, 48_198));
    let run = FakeAgent::start(script).run(&["trace", "network"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert_eq!(run.last_line(), "1/1 nodes answered, 48,198 of 48,201 records lost");
}

#[test]
fn what_the_node_lost_and_what_never_arrived_counts_too() {
    let mut script = three_flows(Then::End);
    script.events.pop();
    let loss = |stage: &str, records| Loss {
        signal: "network".into(),
        stage: stage.into(),
        reason: "ring_full".into(),
        records,
        ..Loss::default()
    };
    script.events.push(event(Kind::Loss(LossReport {
        records_delivered: 5,
        records_lost: 0,
        losses: vec![loss("kernel", 4), loss("live", 1_000)],
        r#final: true,
        ..LossReport::default()
    })));
    let run = FakeAgent::start(script).run(&["trace", "network"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert_eq!(run.last_line(), "1/1 nodes answered, 6 of 9 records lost");
    assert!(run.stderr.contains("network kernel/ring_full: 4 records lost"), "{}", run.stderr);
}

#[test]
fn a_stream_that_breaks_is_partial_and_its_json_stays_valid() {
    for (then, said) in [(Then::Fail, "roof fell in"), (Then::End, "without its final report")] {
        let run =
            FakeAgent::start(without_final_report(then)).run(&["trace", "network", "-o", "json"]);
        assert_eq!(run.code, 3, "{run:?}");
        let records: Vec<serde_json::Value> = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(records.len(), 3);
        assert!(run.stderr.contains(said) && !run.stderr.contains('\u{1b}'), "{}", run.stderr);
        assert_eq!(run.last_line(), "0/1 nodes answered, 0 of 3 records lost");
    }
}

#[test]
fn a_connection_that_breaks_is_partial() {
    let agent = FakeAgent::start(without_final_report(Then::Hang));
    let mut child = spawn(agent.command(&["trace", "network", "-o", "jsonl"]));
    let (line, mut rest) = first_line(&mut child);
    assert!(line.contains("web-1"), "{line}");
    drop(agent);
    let mut text = String::new();
    rest.read_to_string(&mut text).unwrap();
    let run = Run::new(child.wait_with_output().unwrap(), Duration::ZERO);
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.stderr.contains("the stream broke"), "{}", run.stderr);
}

#[test]
fn duration_ends_the_trace_even_if_the_agent_hangs() {
    let agent = FakeAgent::start(without_final_report(Then::Hang));
    let run = agent.run(&["trace", "network", "-o", "jsonl", "--duration", "1s"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert_eq!(run.stdout.lines().count(), 3);
    assert!((5..9).contains(&run.took.as_secs()), "{:?}", run.took);
    assert!(run.stderr.contains("did not end the stream"), "{}", run.stderr);
}

#[test]
fn duration_ends_the_trace_even_if_nobody_answers_at_all() {
    // The kernel accepts the connection, and that is all that happens.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let started = Instant::now();
    let mut command = orb8(&["trace", "network", "--duration", "1s", "--server", &address]);
    let run = Run::new(command.output().unwrap(), started.elapsed());
    assert_eq!(run.code, 3, "{run:?}");
    assert!((5..9).contains(&run.took.as_secs()), "{:?}", run.took);
    assert_eq!(run.last_line(), "0/1 nodes answered, 0 of 0 records lost");
}

#[test]
fn records_are_flushed_as_they_come_and_the_first_signal_ends_the_trace() {
    for signal in ["INT", "TERM"] {
        let agent = FakeAgent::start(without_final_report(Then::Hang));
        let mut child = spawn(agent.command(&["trace", "network", "-o", "json"]));
        let (line, mut rest) = first_line(&mut child);
        send_signal(signal, child.id());
        let mut text = line;
        rest.read_to_string(&mut text).unwrap();
        let run = Run::new(child.wait_with_output().unwrap(), Duration::ZERO);
        assert_eq!(run.code, 0, "{run:?}");
        let records: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(
            run.last_line(),
            format!("1/1 nodes answered, 0 of {} records lost", records.len())
        );
    }
}

#[test]
fn a_reader_that_leaves_ends_the_trace_quietly_even_without_another_record() {
    let agent = FakeAgent::start(without_final_report(Then::Hang));
    let mut child = spawn(agent.command(&["trace", "network", "-o", "jsonl", "-q"]));
    let (line, rest) = first_line(&mut child);
    assert!(line.contains("web-1"), "{line}");
    let left = Instant::now();
    drop(rest);
    let run = Run::new(child.wait_with_output().unwrap(), left.elapsed());
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(left.elapsed() < Duration::from_secs(3), "{:?}", left.elapsed());
}

#[test]
fn a_trace_without_records_says_so_and_is_valid_in_its_format() {
    let script = Script { events: vec![node_status(), final_report(0, 0)], ..Script::default() };
    let agent = FakeAgent::start(script);
    for (format, output) in [("json", "[]\n"), ("yaml", "[]\n"), ("jsonl", ""), ("table", "")] {
        let run = agent.run(&["trace", "network", "-n", "prod", "-o", format]);
        assert_eq!((run.code, run.stdout.as_str()), (0, output), "{run:?}");
        assert!(
            run.stderr
                .contains("no records for namespace prod: no packet was seen on the attached"),
            "{}",
            run.stderr
        );
    }
}

#[test]
fn yaml_is_one_sequence_and_fields_choose_what_is_in_it() {
    let agent = FakeAgent::start(three_flows(Then::End));
    let run = agent.run(&["trace", "network", "-o", "yaml", "--fields", "bytes,source"]);
    assert_eq!(run.code, 0, "{run:?}");
    let records: Vec<serde_json::Value> = serde_saphyr::from_str(&run.stdout).unwrap();
    assert_eq!(records[0], serde_json::json!({"bytes": 1000, "source": "10.0.0.1:40000"}));
    assert_eq!(records.len(), 3);
}
