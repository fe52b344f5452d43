//! A server and agents that come, go, hang and lie, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

use std::{collections::BTreeMap, time::Duration};

use orb8_proto::{
    Event, FlowQuery, LossReport, NodeOutcome, NodeQuery, NodeState, PodQuery, PodSort, PodTraffic,
    StatusRequest, StreamRequest, event, orbit_service_client::OrbitServiceClient,
};
use orb8_server::{Server, config::RawConfig};
use orb8_testkit::{SimAgent, SimNode};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};

const PATIENCE: Duration = Duration::from_secs(30);

type Client = OrbitServiceClient<Channel>;

/// A server of `agents`, and a client of it.
async fn serve(agents: &[&SimAgent], change: impl FnOnce(&mut RawConfig)) -> (Server, Client) {
    let addresses: Vec<String> = agents.iter().map(|a| a.address().to_string()).collect();
    let mut raw = RawConfig {
        listen: Some("127.0.0.1:0".into()),
        metrics_listen: Some("127.0.0.1:0".into()),
        agents: Some(addresses.join(",")),
        query_timeout: Some("1s".into()),
        ..RawConfig::default()
    };
    change(&mut raw);
    let mut config = raw.resolve().unwrap();
    config.timing.ping = Duration::from_millis(100);
    config.timing.answer = Duration::from_millis(300);
    config.timing.retry = Duration::from_millis(200);
    let server = Server::start(config).await.unwrap();
    let client = Client::connect(format!("http://{}", server.grpc_addr())).await.unwrap();
    (server, client)
}

async fn agent(name: &str, pods: u32) -> SimAgent {
    SimAgent::start(SimNode::new(name, pods)).await.unwrap()
}

async fn states(client: &mut Client) -> BTreeMap<String, (NodeState, String)> {
    let nodes = client.list_nodes(NodeQuery::default()).await.unwrap().into_inner().nodes;
    nodes.into_iter().map(|n| (n.name.clone(), (n.state(), n.reason))).collect()
}

async fn wait_for_states(client: &mut Client, expected: &[(&str, NodeState)]) {
    let began = Instant::now();
    loop {
        let states = states(client).await;
        let is =
            |(name, state): &(&str, NodeState)| states.get(*name).is_some_and(|s| s.0 == *state);
        if expected.iter().all(is) && states.len() == expected.len() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{states:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What should come of a query for pods: all of these, sorted and cut.
fn top(nodes: &[SimNode], limit: usize) -> Vec<PodTraffic> {
    let mut pods: Vec<PodTraffic> = nodes.iter().flat_map(|node| node.pods.clone()).collect();
    pods.sort_by_key(|p| (std::cmp::Reverse(p.ingress_bytes + p.egress_bytes), p.pod_name.clone()));
    pods.truncate(limit);
    pods
}

fn told(answers: &[orb8_proto::NodeAnswer]) -> Vec<(&str, NodeOutcome)> {
    answers.iter().map(|answer| (&*answer.node, answer.outcome())).collect()
}

#[tokio::test]
async fn an_answer_is_that_of_all_nodes_sorted_and_cut() {
    let nodes: Vec<SimNode> = (0..3).map(|n| SimNode::new(&format!("node-{n}"), 50)).collect();
    let mut agents = Vec::new();
    for node in &nodes {
        agents.push(SimAgent::start(node.clone()).await.unwrap());
    }
    let agents: Vec<&SimAgent> = agents.iter().collect();
    let (server, mut client) = serve(&agents, |_| ()).await;
    let query = PodQuery { limit: 20, sort_by: PodSort::Bytes.into(), ..PodQuery::default() };
    let answer = client.query_pods(query).await.unwrap().into_inner();
    assert_eq!(answer.pods, top(&nodes, 20));
    let coverage = answer.coverage.unwrap();
    assert_eq!(coverage.rows_matched, 150);
    let answered = NodeOutcome::Answered;
    let all = [("node-0", answered), ("node-1", answered), ("node-2", answered)];
    assert_eq!(told(&coverage.nodes), all);

    let query = FlowQuery { node: "node-1".into(), limit: 5, ..FlowQuery::default() };
    let answer = client.query_flows(query).await.unwrap().into_inner();
    assert_eq!(answer.flows.len(), 5);
    assert!(answer.flows.iter().all(|flow| flow.node == "node-1"));
    assert_eq!(told(&answer.coverage.unwrap().nodes), [("node-1", answered)]);

    let query = FlowQuery { node: "node-9".into(), ..FlowQuery::default() };
    let error = client.query_flows(query).await.unwrap_err();
    assert_eq!(error.message(), "no node \"node-9\" on this server; known: node-0, node-1, node-2");
    let query = PodQuery { limit: 4_000_000, ..PodQuery::default() };
    let error = client.query_pods(query).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("limit 4000000 is more than the 100000 rows"), "{error}");
    let status = StatusRequest { node: "node-2".into() };
    assert_eq!(client.get_agent_status(status).await.unwrap().into_inner().node, "node-2");
    assert!(server.stop().await.unfinished.is_empty());
}

#[tokio::test]
async fn what_is_on_one_node_is_found_and_what_is_on_none_is_an_error_with_candidates() {
    let (mut a, mut b) = (SimNode::new("a", 2), SimNode::new("b", 2));
    for (node, namespace) in [(&mut a, "shop"), (&mut b, "bank")] {
        node.pods.iter_mut().for_each(|pod| namespace.clone_into(&mut pod.namespace));
    }
    let agents = [SimAgent::start(a).await.unwrap(), SimAgent::start(b).await.unwrap()];
    let (_server, mut client) = serve(&[&agents[0], &agents[1]], |_| ()).await;
    let query = PodQuery { namespace: "shop".into(), ..PodQuery::default() };
    let answer = client.query_pods(query).await.unwrap().into_inner();
    assert_eq!(answer.pods.len(), 2);
    let nodes = answer.coverage.unwrap().nodes;
    let answered = NodeOutcome::Answered;
    assert_eq!(told(&nodes), [("a", answered), ("b", answered)], "b looked, and has none");

    let query = PodQuery { namespace: "shpo".into(), ..PodQuery::default() };
    let error = client.query_pods(query.clone()).await.unwrap_err();
    let expected = "no namespace \"shpo\" on any of 2 nodes; known: bank, shop";
    assert_eq!((error.code(), error.message()), (Code::NotFound, expected));
    agents[1].faults(|faults| faults.refuse = Some("no network signal".into()));
    let error = client.query_pods(query).await.unwrap_err();
    let expected =
        "no namespace \"shpo\" on any of the 1 nodes that answered (1 did not); known: shop";
    assert_eq!(error.message(), expected);
}

#[tokio::test]
async fn who_does_not_answer_is_named_with_the_reason_and_comes_back_by_itself() {
    let agents = [agent("a", 3).await, agent("hung", 3).await, agent("killed", 3).await];
    let (_server, mut client) = serve(&[&agents[0], &agents[1], &agents[2]], |_| ()).await;
    let ready = NodeState::Ready;
    wait_for_states(&mut client, &[("a", ready), ("hung", ready), ("killed", ready)]).await;

    let [a, hung, killed] = agents;
    hung.faults(|faults| faults.hang = true);
    let address = killed.address();
    killed.kill().await;
    let answer = client.query_pods(PodQuery::default()).await.unwrap().into_inner();
    assert_eq!(answer.pods.len(), 3, "what came by the deadline");
    let nodes = answer.coverage.unwrap().nodes;
    let (late, unreachable) = (NodeOutcome::Late, NodeOutcome::Unreachable);
    let expected = [("hung", late), ("killed", unreachable), ("a", NodeOutcome::Answered)];
    assert_eq!(told(&nodes), expected);
    assert!(nodes[1].reason.contains("refused"), "{:?}", nodes[1].reason);

    wait_for_states(
        &mut client,
        &[("a", ready), ("hung", NodeState::Silent), ("killed", NodeState::Unreachable)],
    )
    .await;
    let began = Instant::now();
    let answer = client.query_pods(PodQuery::default()).await.unwrap().into_inner();
    assert!(began.elapsed() < Duration::from_millis(900), "nobody waits for a known silent one");
    assert_eq!(told(&answer.coverage.unwrap().nodes)[..2], expected[..2]);

    hung.faults(|faults| faults.hang = false);
    let _again = SimAgent::start_at(address, SimNode::new("killed", 3)).await.unwrap();
    wait_for_states(&mut client, &[("a", ready), ("hung", ready), ("killed", ready)]).await;
    let answer = client.query_pods(PodQuery::default()).await.unwrap().into_inner();
    assert_eq!(answer.pods.len(), 9);
    drop(a);
}

#[tokio::test]
async fn a_server_without_agents_says_so() {
    let (_server, mut client) = serve(&[], |raw| raw.agents = Some("127.0.0.1:1".into())).await;
    let answer = client.query_pods(PodQuery::default()).await.unwrap().into_inner();
    let coverage = answer.coverage.unwrap();
    assert_eq!(coverage.empty_reason, "no node answered");
    assert_eq!(told(&coverage.nodes), [("127.0.0.1:1", NodeOutcome::Unreachable)]);
}

/// Reads a stream to its end.
async fn read(mut stream: Streaming<Event>) -> (Vec<Event>, LossReport) {
    let (mut records, mut last) = (Vec::new(), LossReport::default());
    while let Some(event) = timeout(PATIENCE, stream.message()).await.unwrap().unwrap() {
        match event.event {
            Some(event::Event::Loss(ref report)) => last = report.clone(),
            Some(event::Event::NetworkFlow(_)) => records.push(event),
            _ => {}
        }
    }
    (records, last)
}

fn for_seconds(seconds: i64) -> StreamRequest {
    StreamRequest { duration_ns: Some(seconds * 1_000_000_000), ..StreamRequest::default() }
}

#[tokio::test]
async fn a_stream_is_that_of_all_nodes_in_the_order_of_time() {
    let mut agents = Vec::new();
    for name in ["a", "b", "c"] {
        let node = SimNode { events: 500, ..SimNode::new(name, 10) };
        agents.push(SimAgent::start(node).await.unwrap());
    }
    let agents: Vec<&SimAgent> = agents.iter().collect();
    let (_server, mut client) = serve(&agents, |_| ()).await;
    let stream = client.stream_events(for_seconds(2)).await.unwrap().into_inner();
    let (records, last) = read(stream).await;
    assert!(last.r#final);
    assert_eq!((last.records_lost, last.records_delivered), (0, records.len() as u64));
    assert!(records.len() >= 3 * 500, "{}", records.len());
    assert!(records.is_sorted_by_key(|event| event.timestamp_ns));
    let answered = NodeOutcome::Answered;
    assert_eq!(told(&last.nodes), [("a", answered), ("b", answered), ("c", answered)]);
    let of_b = records.iter().filter(|event| event.node == "b").count();
    assert!(of_b >= 500, "{of_b}");
}

#[tokio::test]
async fn an_agent_that_is_killed_in_a_stream_is_told_and_followed_again() {
    let node = |name: &str| SimNode { events: 100, ..SimNode::new(name, 10) };
    let steady = SimAgent::start(node("steady")).await.unwrap();
    let other = SimAgent::start(node("other")).await.unwrap();
    let address = other.address();
    let (_server, mut client) = serve(&[&steady, &other], |_| ()).await;
    let mut stream = client.stream_events(for_seconds(6)).await.unwrap().into_inner();
    let mut other = Some(other);
    let (mut away, mut back, mut last) = (None, false, LossReport::default());
    while let Some(event) = timeout(PATIENCE, stream.message()).await.unwrap().unwrap() {
        match event.event {
            Some(event::Event::NetworkFlow(_)) if event.node == "other" => {
                if let Some(other) = other.take() {
                    other.kill().await;
                }
                back |= away.is_some();
            }
            Some(event::Event::NodeStatus(status)) => {
                if let Some(answer) = status.answer.filter(|a| a.node == "other")
                    && answer.outcome() == NodeOutcome::Unreachable
                    && away.is_none()
                {
                    let again = SimAgent::start_at(address, node("other")).await.unwrap();
                    away = Some((answer.reason, again));
                }
            }
            Some(event::Event::Loss(report)) => last = report,
            _ => {}
        }
    }
    assert!(away.is_some() && back, "{away:?} {back}");
    let expected = [("other", NodeOutcome::Partial), ("steady", NodeOutcome::Answered)];
    assert_eq!(told(&last.nodes), expected);
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_own_records_and_is_told_how_many() {
    let node = SimNode { events: 20_000, ..SimNode::new("a", 10) };
    let agent = SimAgent::start(node).await.unwrap();
    let (server, mut other) = serve(&[&agent], |_| ()).await;
    // It takes in no more than this without being read.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc_addr())).unwrap();
    let channel = endpoint.initial_stream_window_size(65_535).connect().await.unwrap();
    let mut client = Client::new(channel);
    let stuck = client.stream_events(for_seconds(3)).await.unwrap().into_inner();
    let quick = tokio::spawn(async move {
        read(other.stream_events(for_seconds(3)).await.unwrap().into_inner()).await
    });
    let (records, last) = quick.await.unwrap();
    assert_eq!((last.records_lost, last.records_delivered), (0, records.len() as u64));
    let (records, last) = read(stuck).await;
    assert_eq!(last.records_delivered, records.len() as u64);
    assert!(last.records_lost > 0, "{} delivered", records.len());
}

#[tokio::test]
async fn streams_have_a_limit_and_a_stop_ends_them_with_a_last_report() {
    let node = SimNode { events: 100, ..SimNode::new("a", 10) };
    let agent = SimAgent::start(node).await.unwrap();
    let (server, mut client) = serve(&[&agent], |raw| raw.max_streams = Some("1".into())).await;
    let request = StreamRequest::default();
    let mut stream = client.stream_events(request.clone()).await.unwrap().into_inner();
    let error = client.stream_events(request).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
    let stopping = tokio::spawn(server.stop());
    let mut last = LossReport::default();
    let end = loop {
        match timeout(PATIENCE, stream.message()).await.unwrap() {
            Ok(Some(Event { event: Some(event::Event::Loss(report)), .. })) => last = report,
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(end.unwrap_err().message(), "the server stops");
    assert!(last.r#final);
    assert!(stopping.await.unwrap().unfinished.is_empty());
}
