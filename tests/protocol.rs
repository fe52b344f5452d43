//! What the service answers: filters, orders and bounds of queries, the shape of a trace, errors
//! that name their input, and that bad bytes harm nobody.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use orb8_proto::{
    AnomalyQuery, FlowQuery, FlowSort, FlowState, NetworkFlow, NotFound, PodQuery, PodSort,
    StatusRequest, StreamRequest, SyscallProfileQuery, SyscallQuery,
};
use orb8_testkit::{Node, NodeOptions, Pod, PodSpec, Program, program::TcpSend};
use orb8_tests::{AgentProcess, Traced, address};
use tonic::Code;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Scene {
    node: Node,
    client: Pod,
    server: Pod,
    store: Pod,
}

impl Scene {
    fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        let client = node.start_pod(PodSpec::new("shop", "client"))?;
        let server = node.start_pod(PodSpec::new("shop", "server"))?;
        let store = node.start_pod(PodSpec::new("data", "store"))?;
        Ok(Self { node, client, server, store })
    }

    /// Few large datagrams from the client to the server, then many small ones to the store.
    fn talk(&self) -> Result<()> {
        for (pod, packets, size) in [(&self.server, 20, 1_200), (&self.store, 200, 20)] {
            let sink = pod.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, 7001))?;
            let send = Program::udp_send(address(pod, false, 7001), packets, size);
            self.client.spawn("app", &send)?.wait()?;
            drop(sink);
        }
        Ok(())
    }
}

fn flows() -> FlowQuery {
    FlowQuery::default()
}

fn is_sorted_down<K: PartialOrd>(rows: &[NetworkFlow], key: impl Fn(&NetworkFlow) -> K) -> bool {
    rows.len() > 3 && rows.is_sorted_by(|a, b| key(a) >= key(b))
}

#[test]
fn queries_filter_sort_and_limit() -> Result<()> {
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |_| {})?;
    scene.talk()?;

    let of_shop = traced.flows(FlowQuery { namespace: "shop".into(), ..flows() })?;
    assert!(!of_shop.is_empty() && of_shop.iter().all(|f| f.namespace == "shop"), "{of_shop:?}");
    let of_store = traced.flows(FlowQuery { pod_name: "sto".into(), ..flows() })?;
    assert!(!of_store.is_empty() && of_store.iter().all(|f| f.pod_name == "store"), "{of_store:?}");
    let there = traced.flows(FlowQuery { interface: scene.server.veth().into(), ..flows() })?;
    assert!(!there.is_empty() && there.iter().all(|f| f.interface == scene.server.veth()));
    let both = FlowQuery { namespace: "data".into(), pod_name: "store".into(), ..flows() };
    assert!(!traced.flows(both)?.is_empty());

    let sorted = |sort_by: FlowSort| traced.flows(FlowQuery { sort_by: sort_by.into(), ..flows() });
    assert!(is_sorted_down(&traced.flows(flows())?, |f| f.bytes));
    assert!(is_sorted_down(&sorted(FlowSort::Bytes)?, |f| f.bytes));
    assert!(is_sorted_down(&sorted(FlowSort::Packets)?, |f| f.packets));
    assert!(is_sorted_down(&sorted(FlowSort::Time)?, |f| f.timestamp_ns));
    assert_ne!(sorted(FlowSort::Bytes)?[0].bytes, sorted(FlowSort::Packets)?[0].bytes);

    let limited = FlowQuery { limit: 2, ..flows() };
    let answer = traced.call(|mut c| async move { c.query_flows(limited).await })?;
    let coverage = answer.coverage.context("an answer says what it covers")?;
    assert_eq!(answer.flows.len(), 2);
    assert!(coverage.rows_matched > 2, "{coverage:?}");
    assert_eq!((&*coverage.node, &*coverage.empty_reason), (scene.node.name(), ""));

    let by =
        |sort_by: PodSort| traced.pods(PodQuery { sort_by: sort_by.into(), ..Default::default() });
    let pods = by(PodSort::Name)?.into_iter().filter(|p| p.unit.is_empty());
    let names: Vec<_> = pods.map(|p| p.pod_name).collect();
    assert_eq!(names, ["store", "client", "server"], "by namespace, then by name");
    assert_eq!(by(PodSort::Bytes)?[0].pod_name, "client");
    let packets = by(PodSort::Packets)?;
    assert_eq!((&*packets[0].pod_name, &*packets[1].pod_name), ("client", "store"));
    assert!(by(PodSort::Flows)?.is_sorted_by(|a, b| a.flows >= b.flows));
    let of_data = traced.pods(PodQuery { namespace: "data".into(), ..Default::default() })?;
    assert_eq!(of_data.len(), 1);
    assert_eq!(of_data[0].qos_class, "Burstable");
    traced.stop()
}

#[test]
fn bounds_of_time_are_checked_and_an_empty_answer_says_why() -> Result<()> {
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |_| {})?;
    scene.talk()?;
    let now = i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos())?;
    let window = |start, end| FlowQuery { start_time_ns: start, end_time_ns: end, ..flows() };
    let ask = |query| traced.call(|mut c| async move { c.query_flows(query).await });

    let refused = ask(window(Some(now), Some(now - 1))).expect_err("it ends before it starts");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains(&now.to_string()), "{refused}");

    const HOUR: i64 = 3_600_000_000_000;
    for (start, end) in [(Some(now + HOUR), None), (None, Some(now - HOUR))] {
        let answer = ask(window(start, end))?;
        assert_eq!(answer.flows, []);
        let why = answer.coverage.context("an answer says what it covers")?.empty_reason;
        assert!(why.contains("flows"), "{why:?}");
    }
    for (start, end) in [(Some(i64::MIN), Some(i64::MAX)), (Some(0), None), (Some(now), Some(now))]
    {
        assert!(!ask(window(start, end))?.flows.is_empty(), "{start:?} to {end:?}");
    }
    traced.stop()
}

#[test]
fn names_that_are_not_there_are_errors_that_list_those_that_are() -> Result<()> {
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |_| {})?;
    let cases = [
        (FlowQuery { namespace: "shops".into(), ..flows() }, vec!["\"shops\"", "data", "shop"]),
        (
            FlowQuery { pod_name: "nobody".into(), ..flows() },
            vec!["\"nobody\"", "shop/client", "data/store"],
        ),
        (
            FlowQuery { namespace: "data".into(), pod_name: "client".into(), ..flows() },
            vec!["\"client\"", "data/store"],
        ),
        (
            FlowQuery { interface: "eth9".into(), ..flows() },
            vec!["\"eth9\"", scene.client.veth(), scene.store.veth()],
        ),
    ];
    for (query, expected) in cases {
        let trace = StreamRequest {
            namespace: query.namespace.clone(),
            pod_name: query.pod_name.clone(),
            interface: query.interface.clone(),
            ..StreamRequest::default()
        };
        let by_query = traced.call(|mut c| async move { c.query_flows(query).await });
        let by_trace = traced.open(trace);
        for refused in [by_query.err(), by_trace.err()] {
            let refused = refused.context("nobody has that name")?;
            assert_eq!(refused.code(), Code::NotFound);
            for word in &expected {
                assert!(refused.message().contains(word), "{word} is missing from {refused}");
            }
        }
    }

    let refused = |request: StreamRequest| traced.open(request).expect_err("it makes no sense");
    let unknown = refused(StreamRequest { signals: vec!["gpus".into()], ..Default::default() });
    assert_eq!(unknown.code(), Code::InvalidArgument);
    assert!(unknown.message().contains("gpus") && unknown.message().contains("network"));
    for duration in [0, -1, i64::MAX] {
        let refused = refused(StreamRequest { duration_ns: Some(duration), ..Default::default() });
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(&duration.to_string()), "{refused}");
    }
    traced.stop()
}

#[test]
fn a_trace_of_an_idle_interface_ends_on_time_with_a_report() -> Result<()> {
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |_| {})?;
    let begun = Instant::now();
    let trace = traced.trace(StreamRequest {
        interface: scene.store.veth().into(),
        signals: vec!["network".into()],
        duration_ns: Some(1_000_000_000),
        ..StreamRequest::default()
    })?;
    let heard = traced.hear(trace)?;
    let lasted = begun.elapsed();
    assert!(lasted >= Duration::from_secs(1) && lasted < Duration::from_secs(5), "{lasted:?}");
    assert!(heard.began_with_status);
    let last = heard.last_report();
    assert_eq!((last.records_delivered, last.records_lost), (heard.flows.len() as u64, 0));
    traced.stop()
}

#[test]
fn a_trace_tells_the_life_of_a_flow() -> Result<()> {
    let scene = Scene::start()?;
    let _sink = scene.server.spawn("app", &Program::tcp_sink(Ipv4Addr::UNSPECIFIED, 7002))?;
    let _udp = scene.server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, 7001))?;
    let traced = Traced::start(&scene.node, |_| {})?;
    let trace = traced.trace(StreamRequest {
        interface: scene.client.veth().into(),
        duration_ns: Some(8_000_000_000),
        ..StreamRequest::default()
    })?;
    // Nobody listens there.
    let refused = format!("echo > /dev/tcp/{}/7003", scene.server.ipv4());
    assert!(!scene.client.exec(&["bash", "-c", &refused])?.status.success());
    let bytes = 600_000;
    let slowly = TcpSend { to: address(&scene.server, false, 7002), bytes, rate: Some(200_000) };
    scene.client.spawn("app", &Program::TcpSend(slowly))?.wait()?;
    let datagram = Program::udp_send(address(&scene.server, false, 7001), 1, 64);
    scene.client.spawn("app", &datagram)?.wait()?;
    let heard = traced.hear(trace)?;

    let of = |port: u32| heard.flows.iter().filter(move |f| f.dst_port == port);
    let states: Vec<FlowState> = of(7002).map(NetworkFlow::state).collect();
    assert!(states.len() > 2, "{states:?}");
    assert_eq!(states[0], FlowState::Started);
    assert!(states[1..states.len() - 1].iter().all(|s| *s == FlowState::Active), "{states:?}");
    let last = of(7002).next_back().context("the connection")?;
    assert_eq!((last.state(), &*last.end_reason), (FlowState::Ended, "fin"));
    assert_eq!(last.tcp_flags, "SYN,FIN");
    assert!(of(7002).map(|f| f.bytes).sum::<u64>() > bytes);
    // As exact as the wall clock.
    let begun = of(7002).map(|f| f.first_seen_ns.abs_diff(last.first_seen_ns)).max();
    assert!(begun < Some(1_000_000), "{begun:?}");

    let reset = heard.flows.iter().rfind(|f| f.src_port == 7003).context("the refusal")?;
    assert_eq!((reset.state(), &*reset.end_reason), (FlowState::Ended, "rst"));
    assert!(reset.tcp_flags.contains("RST"), "{reset:?}");
    // It is not over, but the trace is.
    let open = of(7001).next_back().context("the datagram")?;
    assert_eq!(open.packets, 1);
    assert_eq!((open.state(), &*open.end_reason), (FlowState::Started, ""));
    traced.stop()
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let _pod = node.start_pod(PodSpec::new("shop", "web"))?;
    let first = Traced::start(&node, |config| {
        config.listen = Some(LOOPBACK);
        config.metrics_listen = Some(LOOPBACK);
    })?;
    let (grpc, metrics) = (first.grpc_addr(), first.metrics_addr());
    let second = Traced::start(&node, |config| config.listen = grpc);
    let said = second.err().context("the port is taken")?.to_string();
    let expected = format!("gRPC on {}", grpc.context("it serves")?);
    assert!(said.contains(&expected) && said.contains("--listen"), "{said}");
    let second = Traced::start(&node, |config| config.metrics_listen = metrics);
    let said = second.err().context("the port is taken")?.to_string();
    let expected = format!("metrics on {}", metrics.context("it serves")?);
    assert!(said.contains(&expected) && said.contains("--metrics-listen"), "{said}");
    first.stop()
}

#[test]
fn bytes_that_make_no_sense_harm_nobody() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("shop", "web"))?;
    let agent = AgentProcess::start(&node, &[])?;
    agent.wait_attached(pod.veth())?;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let mut byte = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_le_bytes()[0]
        };
        (0..length).map(|_| byte()).collect()
    };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut lines = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"POST /orb8.OrbitService/QueryFlows HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_vec(),
        [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &[b'a'; 200_000]].concat(),
        preface.to_vec(),
        // A frame of 16 MiB that never comes; settings that are not.
        [preface.as_slice(), &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        [preface.as_slice(), &[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]].concat(),
    ];
    for length in [1, 9, 24, 1_000, 70_000] {
        lines.push(noise(length));
        lines.push([preface.as_slice(), &noise(length)].concat());
    }
    for at in [agent.grpc_addr(), agent.metrics_addr()] {
        for line in &lines {
            agent.throw(at, line)?;
        }
    }
    assert_eq!(agent.get(agent.metrics_addr(), "/healthz")?.0, 200);
    assert_eq!(agent.get(agent.metrics_addr(), "/nothing")?.0, 404);
    assert_eq!(agent.interface(pod.veth())?.attached, "tcx");
    agent.terminate()?;
    Ok(())
}

#[test]
fn a_question_to_another_node_is_refused_and_the_refusal_says_which_node_this_is() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let traced = Traced::start(&node, |config| config.signals = vec!["network", "syscall"])?;
    let own = node.name().to_owned();
    let ask = |node: &str| -> [Result<(), tonic::Status>; 7] {
        let node = || node.to_owned();
        let (flows, pods) = (
            FlowQuery { node: node(), ..flows() },
            PodQuery { node: node(), ..PodQuery::default() },
        );
        let syscalls = SyscallQuery { node: node(), ..SyscallQuery::default() };
        let profile = SyscallProfileQuery { node: node(), ..SyscallProfileQuery::default() };
        let anomalies = AnomalyQuery { node: node(), ..AnomalyQuery::default() };
        let stream =
            StreamRequest { node: node(), duration_ns: Some(1), ..StreamRequest::default() };
        let status = StatusRequest { node: node() };
        [
            traced.call(|mut c| async move { c.query_flows(flows).await }).map(drop),
            traced.call(|mut c| async move { c.query_pods(pods).await }).map(drop),
            traced.call(|mut c| async move { c.query_syscalls(syscalls).await }).map(drop),
            traced.call(|mut c| async move { c.get_syscall_profile(profile).await }).map(drop),
            traced.call(|mut c| async move { c.query_anomalies(anomalies).await }).map(drop),
            traced.call(|mut c| async move { c.get_agent_status(status).await }).map(drop),
            traced.open(stream).map(drop),
        ]
    };
    for asked in ["", &own] {
        for answer in ask(asked) {
            answer.with_context(|| format!("node {asked:?}"))?;
        }
    }
    for answer in ask("another") {
        let refused = answer.expect_err("it is not that node");
        assert_eq!(refused.code(), Code::NotFound);
        assert_eq!(refused.message(), format!("no node \"another\" on this agent; known: {own}"));
        let told = NotFound::of(&refused).context("it says what there is")?;
        assert_eq!((&*told.what, told.candidates), ("node", vec![own.clone()]));
    }
    traced.stop()
}
