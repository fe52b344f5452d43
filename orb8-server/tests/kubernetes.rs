//! A server in a Kubernetes cluster: agents found by EndpointSlices, peers named by the API, and
//! questions that go to the nodes that can answer them. Over real sockets, with an API that fails.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use orb8_proto::{
    FlowQuery, NamedBy, NetworkFlow, NodeQuery, NodeState, OpenedBy, Peer, PeerKind, PodQuery,
    PodSourceState, PodTraffic, StatusRequest, StatusResponse, StreamRequest, event,
    orbit_service_client::OrbitServiceClient,
};
use orb8_server::{
    Server,
    config::{Config, RawConfig},
};
use orb8_testkit::{KubeApi, SimAgent, SimNode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep},
};
use tonic::{Code, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(30);

type Client = OrbitServiceClient<Channel>;

/// A server that is told `agents` and asks `api`, a client of it, and where its kubeconfig is.
async fn serve(
    api: &KubeApi,
    agents: &str,
    change: impl FnOnce(&mut Config),
) -> (Server, Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    api.write_kubeconfig(&kubeconfig, None).unwrap();
    let raw = RawConfig {
        listen: Some("127.0.0.1:0".into()),
        metrics_listen: Some("127.0.0.1:0".into()),
        agents: Some(agents.to_owned()),
        kubeconfig: Some(kubeconfig),
        // The agents that the API tells of are asked in plain text.
        insecure: true,
        query_timeout: Some("10s".into()),
        ..RawConfig::default()
    };
    let mut config = raw.resolve().unwrap();
    config.timing.ping = Duration::from_millis(100);
    config.timing.answer = Duration::from_secs(5);
    config.timing.retry = Duration::from_millis(200);
    config.watch.last_wait = Duration::from_millis(500);
    change(&mut config);
    let server = Server::start(config).await.unwrap();
    let client = Client::connect(format!("http://{}", server.grpc_addr())).await.unwrap();
    (server, client, dir)
}

const BY_SLICES: &str = "kubernetes:orb8-system/orb8-agent";

/// The slice of an agent on `node`. A slice has one list of ports, so here each agent has its own.
fn slice(node: &str, agent: &SimAgent, conditions: Value) -> Value {
    json!({ "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": format!("orb8-agent-{node}"), "namespace": "orb8-system",
            "labels": { "kubernetes.io/service-name": "orb8-agent" } },
        "ports": [{ "name": "metrics", "port": 1 },
            { "name": "grpc", "port": agent.address().port() }],
        "endpoints": [{ "addresses": ["127.0.0.1"], "nodeName": node, "conditions": conditions,
            "targetRef": { "kind": "Pod", "name": format!("orb8-agent-of-{node}") } }] })
}

fn ready() -> Value {
    json!({ "ready": true, "serving": true, "terminating": false })
}

fn node(name: &str, ip: &str) -> Value {
    json!({ "kind": "Node", "metadata": { "name": name },
        "status": { "addresses": [{ "type": "InternalIP", "address": ip }] } })
}

/// A pod that has run since `since`.
fn pod(namespace: &str, name: &str, node: &str, ip: &str, since: SystemTime) -> Value {
    let since = humantime::format_rfc3339_seconds(since).to_string();
    json!({ "kind": "Pod", "metadata": { "name": name, "namespace": namespace,
            "creationTimestamp": since,
            "ownerReferences": [{ "kind": "StatefulSet", "name": "db", "controller": true }] },
        "spec": { "nodeName": node },
        "status": { "phase": "Running", "podIP": ip, "startTime": since,
            "containerStatuses": [{ "name": "app", "state": { "running": { "startedAt": since } } }] } })
}

async fn agent(name: &str, pods: u32) -> SimAgent {
    SimAgent::start(SimNode::new(name, pods)).await.unwrap()
}

/// Waits until what is asked gives what is expected; the last answer is told when it does not.
macro_rules! wait {
    ($what:literal, $ask:expr, $expected:expr) => {{
        let began = Instant::now();
        loop {
            let found = $ask;
            if found == $expected {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{}: {found:?}, not {:?}", $what, $expected);
            sleep(Duration::from_millis(20)).await;
        }
    }};
}

async fn states(client: &mut Client) -> BTreeMap<String, NodeState> {
    let nodes = client.list_nodes(NodeQuery::default()).await.unwrap().into_inner().nodes;
    nodes.into_iter().map(|n| (n.name.clone(), n.state())).collect()
}

fn all<const N: usize>(nodes: [(&str, NodeState); N]) -> BTreeMap<String, NodeState> {
    nodes.into_iter().map(|(name, state)| (name.to_owned(), state)).collect()
}

async fn problem(client: &mut Client) -> String {
    client.list_nodes(NodeQuery::default()).await.unwrap().into_inner().problem
}

async fn status(client: &mut Client) -> StatusResponse {
    client.get_agent_status(StatusRequest::default()).await.unwrap().into_inner()
}

async fn get(server: &Server, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(server.metrics_addr()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: orb8\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Who was asked, sorted.
fn asked(coverage: Option<orb8_proto::Coverage>) -> Vec<String> {
    let mut names: Vec<String> =
        coverage.unwrap_or_default().nodes.into_iter().map(|answer| answer.node).collect();
    names.sort();
    names
}

#[tokio::test]
async fn agents_come_and_go_by_slices_and_stay_while_the_api_is_away() {
    let api = KubeApi::start().unwrap();
    let (a, b, c) = (agent("a", 1).await, agent("b", 1).await, agent("c", 1).await);
    for name in ["a", "b", "c", "tainted"] {
        api.apply(node(name, "192.168.0.1")).unwrap();
    }
    api.apply(slice("a", &a, ready())).unwrap();
    let mut other = slice("x", &c, ready());
    other["metadata"]["labels"]["kubernetes.io/service-name"] = "another".into();
    api.apply(other).unwrap();
    let (server, mut client, _dir) = serve(&api, BY_SLICES, |_| ()).await;
    let (well, none) = (NodeState::Ready, NodeState::NoAgent);
    let expected = all([("a", well), ("b", none), ("c", none), ("tainted", none)]);
    wait!("the first agent", states(&mut client).await, expected);
    // One that is not ready is asked as well: who else would say that it is broken?
    api.apply(slice("b", &b, json!({ "ready": false, "serving": false }))).unwrap();
    let both = all([("a", well), ("b", well), ("c", none), ("tainted", none)]);
    wait!("the second agent", states(&mut client).await, both);
    assert_eq!(problem(&mut client).await, "");
    // One list and one watch of each kind, and of the agents' own slices.
    let own = "/apis/discovery.k8s.io/v1/namespaces/orb8-system/endpointslices";
    let all_slices = "/apis/discovery.k8s.io/v1/endpointslices";
    let mut expected =
        ["/api/v1/nodes", "/api/v1/pods", "/api/v1/services", all_slices, own].repeat(2);
    expected.sort_unstable();
    let requests = || {
        let mut paths: Vec<String> = api.requests().into_iter().map(|r| r.path).collect();
        paths.sort_unstable();
        paths
    };
    wait!("lists and watches", requests(), expected);
    let selected = |r: &orb8_testkit::kube_api::LoggedRequest| {
        r.parameter("labelSelector") == Some("kubernetes.io/service-name=orb8-agent")
    };
    assert!(api.requests().iter().filter(|r| r.path == own).all(selected));
    let answer = client.query_pods(PodQuery::default()).await.unwrap().into_inner();
    assert_eq!(asked(answer.coverage), ["a", "b"], "a node without an agent is not missing");
    let query = PodQuery { node: "tainted".into(), ..PodQuery::default() };
    let error = client.query_pods(query).await.unwrap_err();
    let told = (error.code(), error.message());
    assert_eq!(told, (Code::FailedPrecondition, "node tainted has no agent"));
    let metrics = get(&server, "/metrics").await;
    assert!(metrics.contains("\norb8_nodes_without_agent{} 2\n"), "{metrics}");

    // The API is away; meanwhile b goes and c comes.
    api.refuse(true);
    wait!("a problem", problem(&mut client).await.contains("the Kubernetes API is away: "), true);
    api.delete("EndpointSlice", "orb8-system", "orb8-agent-b").unwrap();
    api.apply(slice("c", &c, ready())).unwrap();
    assert_eq!(states(&mut client).await, both, "what was known stays");
    let answer = client.query_pods(PodQuery::default()).await.unwrap().into_inner();
    assert_eq!(answer.pods.len(), 2);
    let source = status(&mut client).await.agent_source.unwrap();
    assert_eq!((&*source.source, source.agents), (BY_SLICES, 2));
    assert!(source.problem.contains("127.0.0.1"), "{source:?}");
    assert!(get(&server, "/readyz").await.starts_with("HTTP/1.1 200"));
    api.refuse(false);
    let expected = all([("a", well), ("b", none), ("c", well), ("tainted", none)]);
    wait!("what happened meanwhile", states(&mut client).await, expected);
    wait!("no problem", problem(&mut client).await, "");

    // Versions are gone: it lists again.
    api.compact();
    api.expire_watches();
    api.apply(slice("b", &b, ready())).unwrap();
    let three = all([("a", well), ("b", well), ("c", well), ("tainted", none)]);
    wait!("a change after 410", states(&mut client).await, three);

    // One that is about to end is there until it is gone.
    api.apply(slice("a", &a, json!({ "ready": false, "serving": false, "terminating": true })))
        .unwrap();
    api.delete("EndpointSlice", "orb8-system", "orb8-agent-c").unwrap();
    let expected = all([("a", well), ("b", well), ("c", none), ("tainted", none)]);
    wait!("an agent that has gone", states(&mut client).await, expected);
    api.delete("EndpointSlice", "orb8-system", "orb8-agent-a").unwrap();
    let expected = all([("a", none), ("b", well), ("c", none), ("tainted", none)]);
    wait!("an agent that has ended", states(&mut client).await, expected);
    assert!(server.stop().await.unfinished.is_empty());
}

#[tokio::test]
async fn a_server_is_not_ready_before_it_has_heard_where_the_agents_are() {
    let api = KubeApi::start().unwrap();
    api.refuse(true);
    let (server, mut client, _dir) = serve(&api, BY_SLICES, |_| ()).await;
    wait!("a reason", get(&server, "/readyz").await.contains("the Kubernetes API is away"), true);
    assert!(get(&server, "/readyz").await.starts_with("HTTP/1.1 503"));
    let answer = client.query_pods(PodQuery::default()).await.unwrap().into_inner();
    assert_eq!(answer.coverage.unwrap().empty_reason, "there are no agents");
    api.refuse(false);
    // There are none, and that is known.
    wait!("ready", get(&server, "/readyz").await.starts_with("HTTP/1.1 200"), true);
}

fn unix_ns(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn end(kind: PeerKind, ip: &str, port: u32) -> Option<Peer> {
    Some(Peer { kind: kind.into(), ip: ip.into(), port, ..Peer::default() })
}

/// Kind, name, and who says so.
fn named(peer: Option<&Peer>) -> (PeerKind, String, NamedBy) {
    let peer = peer.unwrap();
    let gap = if peer.namespace.is_empty() { "" } else { "/" };
    let name = format!("{}{gap}{}", peer.namespace, peer.name);
    (peer.kind(), name, peer.named_by())
}

async fn flow(client: &mut Client, node: &str) -> NetworkFlow {
    let query = FlowQuery { node: node.into(), limit: 1, ..FlowQuery::default() };
    let mut flows = client.query_flows(query).await.unwrap().into_inner().flows;
    flows.pop().unwrap()
}

#[tokio::test]
async fn peers_that_an_agent_could_not_name_are_named_by_the_cluster_at_the_flows_time() {
    let api = KubeApi::start().unwrap();
    let now = SystemTime::now();
    let hour_ago = now - Duration::from_secs(3_600);
    api.apply(json!({ "kind": "Service",
        "metadata": { "name": "web", "namespace": "shop",
            "creationTimestamp": humantime::format_rfc3339_seconds(hour_ago).to_string() },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80, "nodePort": 30_080 }] } }))
        .unwrap();
    let mut of_node = node("n3", "198.51.100.3");
    of_node["metadata"]["creationTimestamp"] =
        humantime::format_rfc3339_seconds(hour_ago).to_string().into();
    api.apply(of_node).unwrap();
    api.apply(pod("shop", "db-0", "n2", "10.0.2.5", hour_ago)).unwrap();
    let a = SimAgent::start(SimNode { events: 50, ..SimNode::new("a", 1) }).await.unwrap();
    let address = a.address().to_string();
    let (_server, mut client, _dir) = serve(&api, &address, |_| ()).await;
    wait!(
        "the cluster",
        status(&mut client).await.peer_source.unwrap().state(),
        PodSourceState::Connected
    );
    wait!("the agent", states(&mut client).await.get("a").copied(), Some(NodeState::Ready));

    let (unknown, external) = (PeerKind::Unknown, PeerKind::External);
    a.node(|node| {
        node.flow.peer = end(unknown, "10.96.0.1", 80);
        node.flow.backend = end(unknown, "10.0.2.5", 8_080);
    });
    let service = (PeerKind::Service, "shop/web".to_owned(), NamedBy::Server);
    let db = (PeerKind::Pod, "shop/db-0".to_owned(), NamedBy::Server);
    let found = flow(&mut client, "a").await;
    assert_eq!(named(found.peer.as_ref()), service);
    assert_eq!(named(found.backend.as_ref()), db);
    assert_eq!(found.backend.unwrap().workload, "StatefulSet/db");
    let request = StreamRequest { duration_ns: Some(1_000_000_000), ..StreamRequest::default() };
    let mut stream = client.stream_events(request).await.unwrap().into_inner();
    let mut records = 0;
    while let Some(event) = stream.message().await.unwrap() {
        if let Some(event::Event::NetworkFlow(flow)) = event.event {
            assert_eq!(named(flow.peer.as_ref()), service);
            assert_eq!(named(flow.backend.as_ref()), db);
            records += 1;
        }
    }
    assert!(records > 0);

    // A public address may be a node's, and its port a Service's, for who opened the connection.
    a.node(|node| {
        node.flow.peer = end(external, "198.51.100.3", 30_080);
        node.flow.backend = None;
    });
    let found = flow(&mut client, "a").await;
    let of_node = (PeerKind::Node, "n3".to_owned(), NamedBy::Server);
    assert_eq!(named(found.peer.as_ref()), of_node);
    a.node(|node| node.flow.set_opened_by(OpenedBy::Owner));
    assert_eq!(named(flow(&mut client, "a").await.peer.as_ref()), service);

    // Nothing is known of these, and nothing is made up.
    for (kind, ip) in [(external, "203.0.113.9"), (unknown, "10.9.9.9"), (unknown, "")] {
        a.node(|node| node.flow.peer = end(kind, ip, 80));
        let expected = (kind, String::new(), NamedBy::Unspecified);
        assert_eq!(named(flow(&mut client, "a").await.peer.as_ref()), expected, "{ip}");
    }

    // What an agent said stays, were it the opposite of what the API says.
    for (kind, name) in [(PeerKind::Pod, "mine"), (external, "mine"), (PeerKind::Loopback, "")] {
        let said =
            Peer { kind: kind.into(), name: name.into(), ip: "10.0.2.5".into(), ..<_>::default() };
        a.node(|node| node.flow.peer = Some(said.clone()));
        assert_eq!(flow(&mut client, "a").await.peer, Some(said));
    }

    // The address goes to another pod: a late flow is still its former owner's.
    api.delete("Pod", "shop", "db-0").unwrap();
    let since = now + Duration::from_secs(60);
    api.apply(pod("shop", "next", "n2", "10.0.2.5", since)).unwrap();
    a.node(|node| node.flow.peer = end(unknown, "10.0.2.5", 80));
    let mut at = async |seconds: i64| {
        let at = unix_ns(now) + seconds * 1_000_000_000;
        a.node(|node| node.flow.timestamp_ns = at);
        flow(&mut client, "a").await.peer.unwrap().name
    };
    // Its times are clamped to when it was told of: it had the address since a moment ago.
    wait!("the next pod", at(600).await, "next");
    assert_eq!(at(-60).await, "db-0");
    assert_eq!(at(-7_200).await, "", "before anybody had it");
}

/// What a query says, but for who was asked and when.
type Said = Result<(Vec<PodTraffic>, u64), (Code, String)>;

async fn ask(client: &mut Client, namespace: &str, prefix: &str) -> (Said, Vec<String>) {
    let query =
        PodQuery { namespace: namespace.into(), pod_name: prefix.into(), ..PodQuery::default() };
    match client.query_pods(query).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let rows = answer.coverage.as_ref().map_or(0, |coverage| coverage.rows_matched);
            (Ok((answer.pods, rows)), asked(answer.coverage))
        }
        Err(error) => (Err((error.code(), error.message().to_owned())), Vec::new()),
    }
}

fn traffic(namespace: &str, name: &str, node: &str) -> PodTraffic {
    PodTraffic {
        namespace: namespace.into(),
        pod_name: name.into(),
        node: node.into(),
        ingress_bytes: name.bytes().map(u64::from).sum(),
        ..PodTraffic::default()
    }
}

#[tokio::test]
async fn who_is_asked_never_changes_what_is_answered() {
    const NODES: [&str; 5] = ["n0", "n1", "n2", "n3", "n4"];
    let api = KubeApi::start().unwrap();
    let mut agents = Vec::new();
    for name in NODES {
        api.apply(node(name, "192.168.0.1")).unwrap();
        agents.push(agent(name, 0).await);
    }
    // The cluster knows no node of this name, so it is not known what it has.
    let stranger = agent("stranger", 0).await;
    let everybody: Vec<String> =
        agents.iter().chain([&stranger]).map(|agent| agent.address().to_string()).collect();
    let everybody = everybody.join(",");
    let (_one, mut routed, _dir) = serve(&api, &everybody, |config| {
        config.agents_remember = Duration::from_millis(300);
    })
    .await;
    let (_other, mut plain, _dir_too) =
        serve(&api, &everybody, |config| config.knows_cluster = false).await;
    for client in [&mut routed, &mut plain] {
        let ready = async |client: &mut Client| {
            states(client).await.values().filter(|state| **state == NodeState::Ready).count()
        };
        wait!("all agents", ready(client).await, 6);
    }

    let hour_ago = SystemTime::now() - Duration::from_secs(3_600);
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((seed >> 33) % below).unwrap()
    };
    let (mut fewer, mut known) = (0, Vec::<(String, String)>::new());
    for round in 0..4 {
        // All pods go, and others come elsewhere.
        for (namespace, name) in known.drain(..) {
            api.delete("Pod", &namespace, &name).unwrap();
        }
        let mut pods: BTreeMap<&str, Vec<PodTraffic>> = BTreeMap::new();
        for n in 0..12 {
            let (namespace, node) = (format!("ns-{}", random(4)), NODES[random(5)]);
            let name = format!("app-{}-{round}-{n}", random(3));
            api.apply(pod(&namespace, &name, node, "10.0.0.1", hour_ago)).unwrap();
            pods.entry(node).or_default().push(traffic(&namespace, &name, node));
            known.push((namespace, name));
        }
        // A pod of a namespace that the API does not tell of there.
        let elsewhere = vec![traffic("ns-0", "hidden", "stranger")];
        stranger.node(|node| node.pods = elsewhere);
        // Once the server knows of this one, it knows of all.
        let last = format!("last-{round}");
        api.apply(pod(&last, "one", "n0", "10.0.0.1", hour_ago)).unwrap();
        pods.entry("n0").or_default().push(traffic(&last, "one", "n0"));
        known.push((last.clone(), "one".into()));
        for (name, agent) in NODES.iter().zip(&agents) {
            let pods = pods.remove(name).unwrap_or_default();
            agent.node(|node| node.pods = pods);
        }
        wait!("the way to one pod", ask(&mut routed, &last, "").await.1, ["n0", "stranger"]);

        let namespaces = ["", "ns-0", "ns-1", "ns-2", "ns-3", "ns-9", &*last];
        for namespace in namespaces {
            for prefix in ["", "app", "app-1", "app-2-", "one", "hidden", "nothing"] {
                let (answer, asked) = ask(&mut routed, namespace, prefix).await;
                let (expected, all) = ask(&mut plain, namespace, prefix).await;
                assert_eq!(answer, expected, "{round}: {namespace:?} {prefix:?} of {asked:?}");
                fewer += usize::from(asked.len() < all.len());
            }
        }
    }
    assert!(fewer > 30, "{fewer} questions went to fewer nodes than there are");

    // When it is not sure, everybody is asked.
    api.refuse(true);
    wait!("everybody", ask(&mut routed, "last-3", "").await.1.len(), 6);
}

#[tokio::test]
async fn the_node_of_a_pod_that_is_gone_is_asked_for_as_long_as_its_agent_may_remember() {
    let remember = Duration::from_secs(6);
    let api = KubeApi::start().unwrap();
    let agents = [agent("n0", 0).await, agent("n1", 0).await, agent("n2", 0).await];
    let hour_ago = SystemTime::now() - Duration::from_secs(3_600);
    for (name, agent) in ["n0", "n1", "n2"].into_iter().zip(&agents) {
        api.apply(node(name, "192.168.0.1")).unwrap();
        agent.node(|node| node.pods = vec![traffic("shop", "web", name)]);
    }
    api.apply(pod("shop", "web-0", "n0", "10.0.0.1", hour_ago)).unwrap();
    api.apply(pod("shop", "web-1", "n1", "10.0.1.1", hour_ago)).unwrap();
    let addresses: Vec<String> = agents.iter().map(|a| a.address().to_string()).collect();
    let change = |config: &mut Config| config.agents_remember = remember;
    let began = Instant::now();
    let (_server, mut client, _dir) = serve(&api, &addresses.join(","), change).await;
    // Pods may have gone just before the server began.
    wait!("the agents", states(&mut client).await.len(), 3);
    let first = ask(&mut client, "shop", "").await.1;
    assert!(first.len() == 3 || began.elapsed() > remember, "{first:?}");
    wait!("fewer nodes", ask(&mut client, "shop", "").await.1, ["n0", "n1"]);
    let deleted = Instant::now();
    api.delete("Pod", "shop", "web-1").unwrap();
    let known =
        async |client: &mut Client| status(client).await.pod_source.map(|source| source.pods_known);
    wait!("its end", known(&mut client).await, Some(1));
    let asked = ask(&mut client, "shop", "").await.1;
    assert!(asked == ["n0", "n1"] || deleted.elapsed() > remember, "{asked:?}");
    wait!("the agent to have forgotten", ask(&mut client, "shop", "").await.1, ["n0"]);
    assert!(deleted.elapsed() >= remember);
}
