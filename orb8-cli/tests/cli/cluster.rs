//! What is told of the answers of a server, whose nodes may be missing.

use orb8_proto::{
    Coverage, FlowResponse, LossReport, Node, NodeAnswer, NodeOutcome, NodeState, NodeStatus,
    PodResponse, PodTraffic, SignalState, SignalStatus, StatusResponse, SyscallProfile,
    SyscallProfileResponse, event::Event as Kind,
};

use crate::fake_agent::{FakeAgent, Run, Script, Then, event, first_line, flow, spawn};

fn answer(node: &str, outcome: NodeOutcome, reason: &str) -> NodeAnswer {
    NodeAnswer {
        node: node.into(),
        outcome: outcome.into(),
        reason: reason.into(),
        ..NodeAnswer::default()
    }
}

fn one_of_three_missing() -> Vec<NodeAnswer> {
    vec![
        answer("node-3", NodeOutcome::Late, "no answer within 2s"),
        answer("node-1", NodeOutcome::Answered, ""),
        answer("node-2", NodeOutcome::Answered, ""),
    ]
}

fn pods_of(nodes: Vec<NodeAnswer>) -> Script {
    let pod = |node: &str, name: &str| PodTraffic {
        node: node.into(),
        namespace: "prod".into(),
        pod_name: name.into(),
        ingress_bytes: 10,
        ..PodTraffic::default()
    };
    let coverage = Coverage { rows_matched: 2, nodes, ..Coverage::default() };
    let pods = vec![pod("node-1", "web-1"), pod("node-2", "web-2")];
    Script {
        pods: Ok(PodResponse { pods, coverage: Some(coverage) }),
        status: StatusResponse { version: "0.1.0".into(), ..StatusResponse::default() },
        ..Script::default()
    }
}

#[test]
fn a_missing_node_is_named_and_counted_and_the_exit_code_says_so() {
    let run = FakeAgent::start(pods_of(one_of_three_missing())).run(&["query", "pods"]);
    assert_eq!(run.code, 3, "{run:?}");
    let said = "warning: node node-3 did not answer: no answer within 2s";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert_eq!(run.last_line(), "2/3 nodes answered, 0 of 2 records lost");
}

#[test]
fn rows_of_several_nodes_say_of_which_they_are() {
    let all = &one_of_three_missing()[1..];
    let server = FakeAgent::start(pods_of(all.to_vec()));
    let run = server.run(&["query", "pods"]);
    assert_eq!(run.code, 0, "{run:?}");
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert!(lines[0].starts_with("NODE     NAMESPACE   POD"), "{}", run.stdout);
    assert!(lines[2].starts_with("node-2   prod        web-2"), "{}", run.stdout);
    let chosen = server.run(&["query", "pods", "--fields", "pod_name"]);
    assert_eq!(chosen.stdout, "POD-NAME\nweb-1\nweb-2\n");
    let one = FakeAgent::start(pods_of(all[..1].to_vec())).run(&["query", "pods"]);
    assert!(one.stdout.starts_with("NAMESPACE"), "{}", one.stdout);
}

#[test]
fn a_server_without_agents_does_not_look_like_an_empty_cluster() {
    let coverage = Coverage { empty_reason: "there are no agents".into(), ..Coverage::default() };
    let flows = Ok(FlowResponse { flows: vec![], coverage: Some(coverage) });
    let run = FakeAgent::start(Script { flows, ..Script::default() }).run(&["query", "flows"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.stderr.contains("the server knows no agents"), "{}", run.stderr);
    assert_eq!(run.last_line(), "0/0 nodes answered, 0 of 0 records lost");
}

fn node_status(node: &str, outcome: NodeOutcome, signals: Vec<SignalStatus>) -> orb8_proto::Event {
    let status =
        NodeStatus { answer: Some(answer(node, outcome, "cut")), signals, ..NodeStatus::default() };
    orb8_proto::Event { node: node.into(), ..event(Kind::NodeStatus(status)) }
}

fn stream(last: Option<Vec<NodeAnswer>>, then: Then) -> Script {
    let degraded = vec![SignalStatus {
        name: "network".into(),
        state: SignalState::Degraded.into(),
        reason: "ring too small".into(),
    }];
    let loss = LossReport { records_lost: 4, ..LossReport::default() };
    let loss = orb8_proto::Event { node: "node-2".into(), ..event(Kind::Loss(loss)) };
    let mut events = vec![
        node_status("node-1", NodeOutcome::Answered, vec![]),
        node_status("node-2", NodeOutcome::Answered, degraded),
        event(Kind::NetworkFlow(flow("web-1", 1_000))),
        loss,
        node_status("node-2", NodeOutcome::Unreachable, vec![]),
        node_status("node-2", NodeOutcome::Answered, vec![]),
    ];
    if let Some(nodes) = last {
        let report = LossReport {
            records_delivered: 1,
            records_lost: 4,
            r#final: true,
            nodes,
            ..LossReport::default()
        };
        events.push(orb8_proto::Event { node: String::new(), ..event(Kind::Loss(report)) });
    }
    Script { events, then, ..Script::default() }
}

#[test]
fn a_stream_tells_of_its_nodes_and_ends_with_who_was_missing() {
    let last = vec![
        answer("node-3", NodeOutcome::Unreachable, "connection refused"),
        answer("node-2", NodeOutcome::Partial, "not heard for some time: cut"),
        answer("node-1", NodeOutcome::Answered, ""),
    ];
    let run = FakeAgent::start(stream(Some(last), Then::End)).run(&["trace", "network"]);
    assert_eq!(run.code, 3, "{run:?}");
    for said in [
        "warning: node node-2: network is degraded: ring too small",
        "warning: node node-2: 4 records of this trace lost",
        "warning: node node-2 was not reached: cut\nnode node-2 answers\n",
        "warning: node node-3 was not reached: connection refused",
        "warning: node node-2 answered in part: not heard for some time: cut",
    ] {
        assert!(run.stderr.contains(said), "{said:?} in {}", run.stderr);
    }
    // The server's own report has those of its nodes in it.
    assert_eq!(run.last_line(), "1/3 nodes answered, 4 of 5 records lost");
    assert!(!run.stderr.contains("no interface"), "{}", run.stderr);
    let headers: Vec<&str> = run.stdout.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(headers[..3], ["TIME", "NODE", "NAMESPACE"], "{}", run.stdout);
}

#[test]
fn who_leaves_early_is_told_of_nodes_that_never_answered() {
    let node = |name: &str, state: NodeState, reason: &str| Node {
        name: name.into(),
        state: state.into(),
        reason: reason.into(),
        ..Node::default()
    };
    let nodes = Ok(vec![
        node("node-1", NodeState::Ready, ""),
        node("node-2", NodeState::Ready, ""),
        node("node-3", NodeState::Silent, "no answer within 3s"),
    ]);
    let server = FakeAgent::start(Script { nodes, ..stream(None, Then::Hang) });
    let mut child = spawn(server.command(&["trace", "network", "-o", "jsonl"]));
    let (line, _rest) = first_line(&mut child);
    assert!(line.contains("web-1"), "{line}");
    assert!(
        std::process::Command::new("kill")
            .args(["-s", "INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let run = Run::new(child.wait_with_output().unwrap(), std::time::Duration::ZERO);
    assert_eq!(run.code, 3, "{run:?}");
    let said = "node node-3 did not answer: no answer within 3s";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert!(run.last_line().starts_with("2/3 nodes answered"), "{}", run.stderr);
}

#[test]
fn nodes_are_a_table_and_one_that_is_not_ready_is_partial() {
    let nodes = vec![
        Node {
            name: "node-2".into(),
            state: NodeState::Unreachable.into(),
            reason: "connection refused".into(),
            ..Node::default()
        },
        Node {
            name: "node-1".into(),
            state: NodeState::Ready.into(),
            version: "0.1.0".into(),
            kernel_release: "6.18.0".into(),
            round_trip_ns: 1_500_000,
            signals: vec![SignalStatus {
                name: "network".into(),
                state: SignalState::Active.into(),
                reason: String::new(),
            }],
            ..Node::default()
        },
    ];
    let server = FakeAgent::start(Script { nodes: Ok(nodes), ..Script::default() });
    let run = server.run(&["nodes"]);
    assert_eq!(
        run.stdout,
        "NODE     STATE         SINCE   VERSION   KERNEL   SIGNALS   RTT    REASON\n\
         node-1   ready         -       0.1.0     6.18.0   network   1 ms   -\n\
         node-2   unreachable   -       -         -        -         -      connection refused\n"
    );
    assert_eq!((run.code, run.last_line()), (3, "1/2 nodes ready"));
    let run = server.run(&["nodes", "node-1", "-o", "json"]);
    assert_eq!(run.code, 0, "{run:?}");
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json[0]["signals"][0]["name"], "network");
    let run = server.run(&["nodes", "worker"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("known: node-1, node-2"), "{}", run.stderr);
}

#[test]
fn a_servers_status_is_its_own_and_how_many_nodes_are_ready() {
    let ready = Node { name: "node-1".into(), state: NodeState::Ready.into(), ..Node::default() };
    let silent = Node {
        name: "node-2".into(),
        state: NodeState::Silent.into(),
        reason: "no answer within 3s".into(),
        ..Node::default()
    };
    let status = StatusResponse { version: "0.1.0".into(), ..StatusResponse::default() };
    let nodes = Ok(vec![ready, silent]);
    let server = FakeAgent::start(Script { nodes, status, ..Script::default() });
    let run = server.run(&["status"]);
    assert_eq!(run.code, 3, "{run:?}");
    for part in ["Server:   orb8-server", "Nodes:    1/2 nodes ready", "node-2   silent"] {
        assert!(run.stdout.contains(part), "{part:?} in {}", run.stdout);
    }
    assert!(!run.stdout.contains("node-1") && !run.stdout.contains("no kernel maps"));
    let json: serde_json::Value =
        serde_json::from_str(&server.run(&["status", "-o", "json"]).stdout).unwrap();
    assert_eq!(json["nodes"][1]["reason"], "no answer within 3s");
}

#[test]
fn a_profile_is_in_doubt_while_a_node_that_may_have_the_pod_is_missing() {
    let profile = SyscallProfile {
        namespace: "prod".into(),
        pod_name: "web-1".into(),
        container: "app".into(),
        workload: "Deployment/web".into(),
        architecture: "x86_64".into(),
        syscalls: vec!["read".into()],
        observed_from_ns: 1,
        observed_until_ns: 3_600_000_000_000,
        since_start: true,
        ..SyscallProfile::default()
    };
    let nodes = one_of_three_missing();
    let profile = Ok(SyscallProfileResponse { profiles: vec![profile], nodes, ..<_>::default() });
    let server = FakeAgent::start(Script { profile, ..Script::default() });
    let run = server.run(&["advise", "seccomp", "--pod", "web"]);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
    let said = "node node-3 did not answer: no answer within 2s: containers there may call more";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    let run = server.run(&["advise", "seccomp", "--pod", "web", "--force"]);
    assert_eq!(run.code, 3, "{run:?}");
    assert!(run.stdout.contains("\"read\""), "{}", run.stdout);
}
