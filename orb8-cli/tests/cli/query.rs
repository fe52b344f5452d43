//! `orb8 query` and `orb8 status` against an agent whose answers are known.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use orb8_proto::{
    Coverage, FlowResponse, Loss, PodResponse, PodTraffic, SignalState, SignalStatus,
    StatusResponse,
};
use tonic::Status;

use crate::fake_agent::{FakeAgent, Run, Script, flow, orb8};

fn coverage(rows_matched: u64, empty_reason: &str) -> Option<Coverage> {
    Some(Coverage {
        rows_matched,
        empty_reason: empty_reason.into(),
        node: "node-1".into(),
        ..Coverage::default()
    })
}

#[test]
fn flows_come_as_an_array_with_a_summary() {
    let agent = FakeAgent::start(Script {
        flows: Ok(FlowResponse {
            flows: vec![flow("web-1", 100), flow("web-2", 50)],
            coverage: coverage(1_203, ""),
        }),
        ..Script::default()
    });
    let run = agent.run(&["query", "flows", "-o", "json", "--since", "1m"]);
    assert_eq!(run.code, 0, "{run:?}");
    let flows: Vec<serde_json::Value> = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(flows[1]["pod_name"], "web-2");
    assert!(run.stderr.contains("2 of 1,203 rows shown"), "{}", run.stderr);
    assert_eq!(run.last_line(), "1/1 nodes answered, 0 of 1,203 records lost");
}

#[test]
fn pods_come_as_a_table_as_narrow_as_its_rows() {
    let pod = PodTraffic {
        namespace: "prod".into(),
        pod_name: "web-1".into(),
        ingress_bytes: 3 << 20,
        egress_bytes: 10,
        flows: 2,
        ..PodTraffic::default()
    };
    let agent = FakeAgent::start(Script {
        pods: Ok(PodResponse { pods: vec![pod], coverage: coverage(1, "") }),
        ..Script::default()
    });
    let run = agent.run(&["query", "pods"]);
    assert_eq!(
        run.stdout,
        "NAMESPACE   POD     BYTES-IN   BYTES-OUT   PACKETS-IN   PACKETS-OUT   FLOWS   LAST-SEEN\n\
         prod        web-1   3.0 MiB    10 B        0            0             2       -\n"
    );
}

#[test]
fn no_rows_say_why_instead_of_an_empty_table() {
    let agent = FakeAgent::start(Script {
        flows: Ok(FlowResponse { flows: vec![], coverage: coverage(0, "no packets since 12:00") }),
        ..Script::default()
    });
    let run = agent.run(&["query", "flows", "--pod", "web"]);
    assert_eq!((run.code, run.stdout.as_str()), (0, ""));
    assert!(run.stderr.contains("no rows for pod web: no packets since 12:00"), "{}", run.stderr);
}

#[test]
fn an_unknown_pod_is_an_error_in_the_agents_words() {
    let message = "no pod in prod starts with \"wbe\"; there are: web-1\u{1b}[2J, web-2";
    let agent =
        FakeAgent::start(Script { pods: Err(Status::not_found(message)), ..Script::default() });
    let run = agent.run(&["query", "pods", "-n", "prod", "--pod", "wbe"]);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(run.stderr.contains("there are: web-1\\u{1b}[2J, web-2"), "{}", run.stderr);
}

#[test]
fn losses_of_a_long_lived_agent_are_told_but_are_not_this_answers() {
    let loss = Loss {
        signal: "network".into(),
        stage: "kernel".into(),
        reason: "ring_full".into(),
        records: 12,
        ..Loss::default()
    };
    let coverage = Coverage {
        rows_matched: 1,
        losses: vec![loss],
        node: "node-1".into(),
        ..Coverage::default()
    };
    let agent = FakeAgent::start(Script {
        flows: Ok(FlowResponse { flows: vec![flow("web", 1)], coverage: Some(coverage) }),
        ..Script::default()
    });
    let run = agent.run(&["query", "flows"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.stderr.contains("kernel/ring_full: 12 records lost since the agent started"),
        "{}",
        run.stderr
    );
}

#[test]
fn status_shows_states_and_reasons_in_every_format() {
    let agent = FakeAgent::start(Script {
        status: StatusResponse {
            node: "node-1".into(),
            signals: vec![SignalStatus {
                name: "network".into(),
                state: SignalState::Failed.into(),
                reason: "no BTF".into(),
            }],
            ..StatusResponse::default()
        },
        ..Script::default()
    });
    let table = agent.run(&["status"]);
    assert_eq!(table.code, 0, "{table:?}");
    assert!(table.stdout.contains("network   failed   no BTF"), "{}", table.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&agent.run(&["status", "-o", "json"]).stdout).unwrap();
    let yaml: serde_json::Value =
        serde_saphyr::from_str(&agent.run(&["status", "-o", "yaml"]).stdout).unwrap();
    assert_eq!(json["signals"][0]["reason"], "no BTF");
    assert_eq!(json["signals"], yaml["signals"]);
}

#[test]
fn the_environment_names_the_agent_too() {
    let agent = FakeAgent::start(Script::default());
    let address = agent.address.to_string();
    let output = orb8(&["status"]).env("ORB8_SERVER", &address).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains(&format!("asking {address} (from ORB8_SERVER)")), "{stderr}");
}

#[test]
fn an_agent_that_does_not_answer_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let started = Instant::now();
    let mut command = orb8(&["query", "pods", "--server", &address]);
    let run = Run::new(command.output().unwrap(), started.elapsed());
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.took < Duration::from_secs(15), "{:?}", run.took);
    assert!(run.stderr.contains("did not answer within"), "{}", run.stderr);
    assert_eq!(run.last_line(), "0/1 nodes answered, 0 of 0 records lost");
}

#[test]
fn an_agent_that_is_not_there_is_an_error_that_names_the_address() {
    let output = orb8(&["status", "--server", "127.0.0.1:1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("cannot reach 127.0.0.1:1"), "{stderr}");
}
