//! `orb8 trace syscall` and `orb8 query syscalls` against an agent whose answers are known.

use orb8_proto::{
    Coverage, NodeStatus, SignalState, SignalStatus, SyscallCount, SyscallEvent, SyscallResponse,
    event::Event as Kind,
};
use tonic::Status;

use crate::fake_agent::{FakeAgent, Script, event, final_report, flow, node_status};

fn call(syscall: &str, path: &str) -> SyscallEvent {
    SyscallEvent {
        namespace: "prod".into(),
        pod_name: "web-1".into(),
        container: "app".into(),
        pid: 4_711,
        comm: "nginx".into(),
        syscall: syscall.into(),
        path: path.into(),
        weight: 1,
        timestamp_ns: 1_700_000_000_000_000_000,
        ..SyscallEvent::default()
    }
}

fn two_calls() -> Script {
    let events = vec![
        node_status(),
        event(Kind::Syscall(call("openat", "/etc/passwd"))),
        // Not asked for.
        event(Kind::NetworkFlow(flow("web", 1))),
        event(Kind::Syscall(call("unlink", "/tmp/\u{1b}[2Jx"))),
        final_report(2, 0),
    ];
    Script { events, ..Script::default() }
}

#[test]
fn a_trace_asks_for_its_calls_and_writes_a_line_for_each() {
    let agent = FakeAgent::start(two_calls());
    let run = agent.run(&["trace", "syscall", "--pod", "web", "--syscall", "openat,unlink"]);
    assert_eq!(run.code, 0, "{run:?}");
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert!(lines[0].starts_with("TIME") && lines[0].ends_with("DETAIL"), "{}", run.stdout);
    assert!(lines[1].ends_with("nginx             openat       /etc/passwd"), "{}", run.stdout);
    assert!(lines[2].ends_with(r"/tmp/\u{1b}[2Jx") && lines.len() == 3, "{}", run.stdout);
    assert_eq!(run.last_line(), "1/1 nodes answered, 0 of 2 records lost");
    // The network's interfaces and state are no news to who traces system calls.
    assert!(!run.stderr.contains("veth1") && !run.stderr.contains("degraded"), "{}", run.stderr);
    let request = agent.requests.recv().unwrap();
    assert_eq!((&*request.signals, &*request.pod_name), (&["syscall".to_owned()][..], "web"));
    assert_eq!(
        (request.syscalls, request.errors_only),
        (vec!["openat".into(), "unlink".into()], false)
    );
}

#[test]
fn the_data_formats_have_a_record_for_each_call_and_fields_choose() {
    let agent = FakeAgent::start(two_calls());
    let run = agent.run(&["trace", "syscall", "-o", "jsonl", "--fields", "syscall,path"]);
    let first = "{\"syscall\":\"openat\",\"path\":\"/etc/passwd\"}";
    assert_eq!((run.code, run.stdout.lines().next()), (0, Some(first)), "{run:?}");
    let run = agent.run(&["trace", "syscall", "--fields", "sycall"]);
    assert_eq!(run.code, 64);
    assert!(run.stderr.contains("did you mean 'syscall'?"), "{}", run.stderr);
}

#[test]
fn a_signal_that_is_broken_is_told_and_silence_has_a_reason() {
    let broken = SignalStatus {
        name: "syscall".into(),
        state: SignalState::Degraded.into(),
        reason: "no types".into(),
    };
    let status = NodeStatus { signals: vec![broken], ..NodeStatus::default() };
    let events = vec![event(Kind::NodeStatus(status)), final_report(0, 0)];
    let agent = FakeAgent::start(Script { events, ..Script::default() });
    let run = agent.run(&["trace", "syscall", "-n", "prod"]);
    assert!(run.stderr.contains("syscall is degraded: no types"), "{}", run.stderr);
    let reason = "no records for namespace prod: no call that is told was made";
    assert!(run.stderr.contains(reason), "{}", run.stderr);
}

#[test]
fn counts_come_with_their_rate_over_the_time_that_was_covered() {
    let count = SyscallCount {
        namespace: "prod".into(),
        pod_name: "web-1".into(),
        container: "app".into(),
        syscall: "openat".into(),
        calls: 1_200,
        ..SyscallCount::default()
    };
    let coverage = Coverage {
        rows_matched: 1,
        start_time_ns: 1_000_000_000,
        end_time_ns: 61_000_000_000,
        node: "node-1".into(),
        ..Coverage::default()
    };
    let answer = SyscallResponse { syscalls: vec![count], coverage: Some(coverage) };
    let agent = FakeAgent::start(Script { syscalls: Ok(answer), ..Script::default() });
    let run = agent.run(&["query", "syscalls", "--since", "1m", "--sort-by", "calls"]);
    assert_eq!(
        run.stdout,
        "NAMESPACE   POD     CONTAINER   SYSCALL   CALLS   CALLS/S   ERRORS   P99\n\
         prod        web-1   app         openat    1200    20.0      -        -\n"
    );
    assert_eq!(run.last_line(), "1/1 nodes answered, 0 of 1 records lost");
}

#[test]
fn what_an_agent_cannot_is_said_in_its_words() {
    let refused = Status::failed_precondition("no syscall signal on this node: no probes");
    let agent = FakeAgent::start(Script { syscalls: Err(refused), ..Script::default() });
    let run = agent.run(&["query", "syscalls"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("no syscall signal on this node: no probes"), "{}", run.stderr);
}
