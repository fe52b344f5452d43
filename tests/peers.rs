//! Who is on the other side: pods, Services with who is behind them, nodes and the world outside; and
//! who opened the connection.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_agent::config::PeerScope;
use orb8_k8s::KubernetesSource;
use orb8_proto::{Direction, FlowQuery, NetworkFlow, OpenedBy, Peer, PodSource, PodSourceState};
use orb8_testkit::{
    KubeApi, Node, NodeOptions, Owner, Pod, PodSpec, Process, Program,
    program::{HoldFlows, TcpSend},
};
use orb8_tests::{Traced, address};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

/// A Service of the test's cluster: its name and its ClusterIPs.
const DB: (&str, &str, &str) = ("db", "10.96.0.10", "fd00:96::10");
/// One whose clients the node hides, as for traffic from outside.
const HIDDEN: (&str, &str, &str) = ("hidden", "10.96.0.11", "fd00:96::11");
/// One that leads out of the cluster.
const ABROAD: (&str, &str, &str) = ("abroad", "10.96.0.12", "fd00:96::12");
/// Of [`DB`].
const NODE_PORT: u16 = 30_080;
/// Nobody's in the cluster.
const OUTSIDE: &str = "203.0.113.9";
const SERVER: u16 = 8080;

/// A node whose API knows its pods and the Services above, which it translates as kube-proxy does.
struct Cluster {
    node: Node,
    api: KubeApi,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        let api = KubeApi::start_in(&node.netns())?;
        node.report_to(&api)?;
        let dir = tempfile::tempdir()?;
        let cluster = Self { node, api, dir };
        for (name, v4, v6) in [DB, HIDDEN, ABROAD] {
            let node_port = (name == DB.0).then_some(NODE_PORT);
            cluster.api.apply(json!({
                "kind": "Service",
                "metadata": { "name": name, "namespace": "shop" },
                "spec": { "clusterIP": v4, "clusterIPs": [v4, v6], "ports": [
                    { "protocol": "TCP", "port": 80, "nodePort": node_port },
                    { "protocol": "UDP", "port": 80 },
                ] },
            }))?;
        }
        cluster.api.apply(json!({
            "kind": "EndpointSlice",
            "metadata": { "name": "abroad-1", "namespace": "shop",
                "labels": { "kubernetes.io/service-name": ABROAD.0 } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [OUTSIDE] }],
        }))?;
        Ok(cluster)
    }

    /// What kube-proxy would have the node do, with all Services led to `server` or outside.
    fn translate(&self, server: &Pod) -> Result<()> {
        let (v4, v6, node) = (server.ipv4(), server.ipv6(), self.node.ipv4());
        let [db, hidden, abroad] = [DB, HIDDEN, ABROAD];
        let rules = format!(
            "table inet proxy {{\n\
               chain services {{ type nat hook prerouting priority -100; policy accept;\n\
                 ip daddr {{ {db4}, {hidden4} }} meta l4proto {{ tcp, udp }} th dport 80 dnat ip to {v4}:{SERVER};\n\
                 ip6 daddr {{ {db6}, {hidden6} }} meta l4proto {{ tcp, udp }} th dport 80 dnat ip6 to [{v6}]:{SERVER};\n\
                 ip daddr {abroad4} tcp dport 80 dnat ip to {OUTSIDE}:{SERVER};\n\
                 ip daddr {node} tcp dport {NODE_PORT} dnat ip to {v4}:{SERVER};\n\
               }}\n\
               chain hide {{ type nat hook postrouting priority 100; policy accept;\n\
                 ct original ip daddr {hidden4} masquerade;\n\
                 ct original ip6 daddr {hidden6} masquerade;\n\
               }}\n\
             }}",
            db4 = db.1,
            db6 = db.2,
            hidden4 = hidden.1,
            hidden6 = hidden.2,
            abroad4 = abroad.1,
        );
        let path = self.dir.path().join("rules");
        std::fs::write(&path, rules)?;
        let path = path.display().to_string();
        let output = self.node.exec(&["sh", "-c", "PATH=$PATH:/usr/sbin exec nft -f $0", &path])?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nft: {complaint}");
        Ok(())
    }

    /// Gives `pod` an address outside of the cluster, and the node a way there.
    fn move_outside(&self, pod: &Pod) -> Result<()> {
        let v4 = pod.ipv4().to_string();
        let address = format!("{OUTSIDE}/32");
        ensure!(pod.exec(&["ip", "addr", "add", &address, "dev", "eth0"])?.status.success());
        let route = ["ip", "route", "add", &address, "via", &v4];
        ensure!(self.node.exec(&route)?.status.success());
        Ok(())
    }

    fn traced(&self, peers: PeerScope) -> Result<Traced> {
        let kubeconfig = self.dir.path().join("kubeconfig");
        self.api.write_kubeconfig(&kubeconfig, None)?;
        let traced = Traced::start(&self.node, |config| {
            config.pods = None;
            config.kubernetes = Some(KubernetesSource::Kubeconfig(Some(kubeconfig)));
            config.peers = peers;
        })?;
        let watches = if peers == PeerScope::Cluster { 5 } else { 1 };
        self.api.await_watches(watches, PATIENCE)?;
        Ok(traced)
    }
}

fn spec(name: &str) -> PodSpec {
    let owner = Owner { kind: "StatefulSet".into(), name: name.into() };
    PodSpec { owner: Some(owner), ..PodSpec::new("shop", &format!("{name}-0")) }
}

fn at(ip: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(ip.parse()?, port))
}

/// Sends 10,000 bytes by TCP, and waits until they were read.
fn talk(from: &Pod, to: SocketAddr) -> Result<()> {
    from.spawn("app", &Program::tcp_send(to, 10_000))?.wait_for(PATIENCE)?;
    Ok(())
}

/// Flows of `pod`'s interface whose packets, as it sees them, are between it and `peer`: what it
/// sends and what it receives.
fn talks(flows: &[NetworkFlow], pod: &Pod, peer: SocketAddr) -> Option<[NetworkFlow; 2]> {
    let of = |direction| {
        let mut flows = flows.iter().filter(|flow| flow.interface == pod.veth());
        flows.find(|flow| {
            let (ip, port) = match direction {
                Direction::Egress => (&flow.dst_ip, flow.dst_port),
                _ => (&flow.src_ip, flow.src_port),
            };
            let same_port = peer.port() == 0 || port == u32::from(peer.port());
            flow.direction() == direction && same_port && *ip == peer.ip().to_string()
        })
    };
    Some([of(Direction::Egress)?.clone(), of(Direction::Ingress)?.clone()])
}

/// Waits until both directions of a conversation are as expected; `expected` says what is not.
fn wait_for(
    traced: &Traced,
    pod: &Pod,
    peer: SocketAddr,
    expected: impl Fn(&NetworkFlow) -> Result<()>,
) -> Result<[NetworkFlow; 2]> {
    let began = Instant::now();
    loop {
        let flows = traced.flows(FlowQuery { limit: 100_000, ..FlowQuery::default() })?;
        let found = talks(&flows, pod, peer);
        let judged = match &found {
            Some(both) => both.iter().try_for_each(&expected),
            None => Err(anyhow::anyhow!("no conversation of {} with {peer}", pod.name())),
        };
        match (judged, found) {
            (Ok(()), Some(both)) => return Ok(both),
            (Err(why), found) if began.elapsed() > PATIENCE => {
                return Err(why.context(format!("{found:#?}")));
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// As `orb8` shows it: kind, and name with what runs it.
fn shown(peer: Option<&Peer>) -> String {
    let Some(peer) = peer else { return "nobody".into() };
    let kind = peer.kind().as_str_name().trim_start_matches("PEER_KIND_").to_lowercase();
    let parts = [&*kind, &peer.namespace, &peer.name, &peer.workload];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What a record has to say about its other side.
fn expect(peer: &str, backend: &str, opened_by: OpenedBy) -> impl Fn(&NetworkFlow) -> Result<()> {
    move |flow| {
        let found = (shown(flow.peer.as_ref()), shown(flow.backend.as_ref()), flow.opened_by());
        let expected = (peer.to_owned(), backend.to_owned(), opened_by);
        ensure!(found == expected, "{found:?}, expected {expected:?}");
        Ok(())
    }
}

#[test]
fn a_service_is_named_with_who_is_behind_it_and_its_backend_sees_the_client() -> Result<()> {
    let cluster = Cluster::start()?;
    let web = cluster.node.start_pod(spec("web"))?;
    let db = cluster.node.start_pod(spec("db"))?;
    let _sinks = sinks(&db)?;
    cluster.translate(&db)?;
    let traced = cluster.traced(PeerScope::Cluster)?;
    let node = format!("node {}", cluster.node.name());
    let of_web = "pod shop web-0 StatefulSet/web";
    let of_db = "pod shop db-0 StatefulSet/db";

    for (service, v4, v6) in [DB, HIDDEN] {
        for ip in [v4, v6] {
            let front = at(ip, 80)?;
            talk(&web, front)?;
            let named = format!("service shop {service}");
            let both = wait_for(&traced, &web, front, expect(&named, of_db, OpenedBy::Owner))?;
            for flow in both {
                ensure!(flow.workload == "StatefulSet/web", "{flow:?}");
                let (peer, backend) =
                    (flow.peer.context("peer")?, flow.backend.context("backend")?);
                ensure!((&*peer.ip, peer.port) == (ip, 80), "{peer:?}");
                ensure!(backend.port == u32::from(SERVER), "{backend:?}");
                ensure!(backend.ip == own(&db, front.ip()), "{backend:?}");
            }
        }
    }
    // The backend sees the client itself, or the node that stands before it.
    for v6 in [false, true] {
        let client = own(&web, if v6 { DB.2 } else { DB.1 }.parse()?);
        let seen = expect(of_web, "nobody", OpenedBy::Peer);
        wait_for(&traced, &db, at(&client, 0)?, seen)?;
        let gateway: IpAddr =
            if v6 { cluster.node.ipv6().into() } else { cluster.node.ipv4().into() };
        let hidden = expect(&node, of_web, OpenedBy::Peer);
        let both = wait_for(&traced, &db, SocketAddr::new(gateway, 0), hidden)?;
        ensure!(both.iter().all(|f| f.backend.as_ref().is_some_and(|b| b.ip == client)));
    }

    // By datagrams, nobody opens anything.
    let front = at(DB.1, 80)?;
    let send = HoldFlows { to: front, count: 1, pps: 20, size: 64, ports: 1 };
    let _sender = web.spawn("app", &Program::HoldFlows(send))?;
    let began = Instant::now();
    loop {
        let flows = traced.flows(FlowQuery { limit: 100_000, ..FlowQuery::default() })?;
        let mut flows = flows.iter().filter(|f| f.protocol == "udp" && f.dst_ip == DB.1);
        let expected = expect("service shop db", of_db, OpenedBy::Unknown);
        let judged = flows.next().context("no datagrams").and_then(expected);
        match judged {
            Ok(()) => break,
            Err(why) => ensure!(began.elapsed() < PATIENCE, "{why}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    traced.stop()
}

fn sinks(pod: &Pod) -> Result<Vec<Process>> {
    let sink = |ip| pod.spawn("app", &Program::tcp_sink(ip, SERVER));
    Ok(vec![sink(IpAddr::from(pod.ipv4()))?, sink(pod.ipv6().into())?])
}

/// The pod's address of the same family as `like`.
fn own(pod: &Pod, like: IpAddr) -> String {
    if like.is_ipv4() { pod.ipv4().to_string() } else { pod.ipv6().to_string() }
}

#[test]
fn nodes_their_ports_and_what_is_outside_are_named_for_what_they_are() -> Result<()> {
    let cluster = Cluster::start()?;
    let web = cluster.node.start_pod(spec("web"))?;
    let db = cluster.node.start_pod(spec("db"))?;
    let outside = cluster.node.start_pod(spec("outside"))?;
    cluster.move_outside(&outside)?;
    let _abroad = outside.spawn("app", &Program::tcp_sink(OUTSIDE.parse::<IpAddr>()?, SERVER))?;
    let _sinks = sinks(&db)?;
    let host = Program::tcp_sink(cluster.node.ipv4(), 9000);
    let _host = cluster.node.spawn("daemon", &host)?;
    cluster.translate(&db)?;
    for (kind, object) in [
        (
            "Node",
            json!({ "status": { "addresses": [
            { "type": "Hostname", "address": "other" },
            { "type": "InternalIP", "address": "192.168.77.2" }] } }),
        ),
        (
            "Pod",
            json!({ "spec": { "nodeName": "other" },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.99.0.5" }] } }),
        ),
    ] {
        let mut object = object;
        object["kind"] = kind.into();
        object["metadata"] = json!({ "name": "other", "namespace": "far", "ownerReferences":
            [{ "kind": "DaemonSet", "name": "other", "controller": true }] });
        cluster.api.apply(object)?;
    }
    let traced = cluster.traced(PeerScope::Cluster)?;
    let node = format!("node {}", cluster.node.name());
    let (gateway, of_db) = (cluster.node.ipv4().into(), "pod shop db-0 StatefulSet/db");

    for (to, peer, backend) in [
        (SocketAddr::new(gateway, 9000), &*node, "nobody"),
        (SocketAddr::new(gateway, NODE_PORT), "service shop db", of_db),
        (address(&db, false, SERVER), of_db, "nobody"),
        (address(&db, true, SERVER), of_db, "nobody"),
        (at(OUTSIDE, SERVER)?, "external shop abroad", "nobody"),
        (at(ABROAD.1, 80)?, "service shop abroad", "external shop abroad"),
    ] {
        talk(&web, to).with_context(|| to.to_string())?;
        let expected = expect(peer, backend, OpenedBy::Owner);
        wait_for(&traced, &web, to, expected).with_context(|| to.to_string())?;
    }

    // Nobody answers there.
    for (to, peer) in [
        ("10.99.0.5:53", "pod far other DaemonSet/other"),
        ("192.168.77.2:53", "node other"),
        ("10.99.0.6:53", "unknown"),
        ("198.51.100.7:53", "external"),
    ] {
        let to: SocketAddr = to.parse()?;
        web.spawn("app", &Program::udp_send(to, 3, 64))?.wait_for(PATIENCE)?;
        let began = Instant::now();
        loop {
            let flows = traced.flows(FlowQuery { limit: 100_000, ..FlowQuery::default() })?;
            let flow = flows.iter().find(|f| f.dst_ip == to.ip().to_string());
            let found = flow.map(|flow| shown(flow.peer.as_ref()));
            if found.as_deref() == Some(peer) {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "{to} is {found:?}, expected {peer:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    traced.stop()
}

#[test]
fn without_being_asked_for_peers_nothing_but_this_nodes_pods_is_watched() -> Result<()> {
    let cluster = Cluster::start()?;
    let web = cluster.node.start_pod(spec("web"))?;
    let db = cluster.node.start_pod(spec("db"))?;
    let _sinks = sinks(&db)?;
    cluster.translate(&db)?;
    let traced = cluster.traced(PeerScope::Node)?;
    let front = at(DB.1, 80)?;
    talk(&web, front)?;
    let of_db = "pod shop db-0 StatefulSet/db";
    wait_for(&traced, &web, front, expect("unknown", of_db, OpenedBy::Owner))?;
    let source = peer_source(&traced)?;
    ensure!((&*source.kind, &*source.reason) == ("", ""), "{source:?}");
    traced.stop()?;
    let requests = cluster.api.requests();
    ensure!(requests.len() == 2, "one list and one watch: {requests:#?}");
    let selector = format!("spec.nodeName={}", cluster.node.name());
    for request in requests {
        ensure!(request.path == "/api/v1/pods", "{request:?}");
        ensure!(request.parameter("fieldSelector") == Some(&selector), "{request:?}");
    }

    let traced = cluster.traced(PeerScope::Cluster)?;
    let deadline = Instant::now() + PATIENCE;
    while peer_source(&traced)?.state() != PodSourceState::Connected {
        ensure!(Instant::now() < deadline, "{:?}", peer_source(&traced)?);
        std::thread::sleep(Duration::from_millis(20));
    }
    traced.stop()?;
    let mut asked: Vec<String> = cluster.api.requests()[2..]
        .iter()
        .map(|request| {
            let selector = request.parameter("fieldSelector").unwrap_or_default();
            let what = if request.is_watch() { "watch" } else { "list" };
            format!("{what} {} {}", request.path, selector.replace(cluster.node.name(), "N"))
        })
        .collect();
    asked.sort();
    let kinds = [
        "/api/v1/nodes ",
        "/api/v1/pods spec.nodeName!=N",
        "/api/v1/pods spec.nodeName=N",
        "/api/v1/services ",
        "/apis/discovery.k8s.io/v1/endpointslices ",
    ];
    let expected: Vec<String> =
        ["list", "watch"].iter().flat_map(|what| kinds.map(|k| format!("{what} {k}"))).collect();
    ensure!(asked == expected, "{asked:#?}");
    Ok(())
}

fn peer_source(traced: &Traced) -> Result<PodSource> {
    traced.status()?.peer_source.context("no source of peers")
}

#[test]
fn an_address_that_is_used_again_names_whoever_had_it_then() -> Result<()> {
    let cluster = Cluster::start()?;
    let db = cluster.node.start_pod(spec("db"))?;
    let _sink = db.spawn("app", &Program::udp_sink(db.ipv4(), 7001))?;
    let traced = cluster.traced(PeerScope::Node)?;
    cluster.api.faults(|faults| faults.delay = Duration::from_secs(1));
    let mut ports = Vec::new();
    for (name, port) in [("first", 4001), ("second", 4002), ("third", 4003)] {
        let pod = cluster.node.start_pod(PodSpec { host_number: Some(77), ..spec(name) })?;
        traced.wait_attached(pod.veth())?;
        let send = orb8_testkit::program::UdpSend {
            to: address(&db, false, 7001),
            packets: 40,
            size: 64,
            pps: Some(20),
            from_port: Some(port),
            await_echo: false,
        };
        pod.spawn("app", &Program::UdpSend(send))?.wait_for(PATIENCE)?;
        ports.push((format!("pod shop {name}-0 StatefulSet/{name}"), u32::from(port)));
        pod.stop()?;
    }
    let began = Instant::now();
    loop {
        let flows = traced.flows(FlowQuery { limit: 100_000, ..FlowQuery::default() })?;
        let named = |port| {
            let mut flows = flows.iter().filter(|f| f.interface == db.veth());
            shown(flows.find(|f| f.src_port == port).and_then(|f| f.peer.as_ref()))
        };
        let found: Vec<_> = ports.iter().map(|(_, port)| (named(*port), *port)).collect();
        for ((found, _), (expected, _)) in found.iter().zip(&ports) {
            let none = found == "unknown" || found == "nobody";
            ensure!(none || found == expected, "{found:?} is wrong, expected {expected:?}");
        }
        if found == ports {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "{found:?}, expected {ports:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    traced.stop()
}

#[test]
fn a_connection_that_was_open_before_the_agent_was_opened_by_nobody_known() -> Result<()> {
    let cluster = Cluster::start()?;
    let web = cluster.node.start_pod(spec("web"))?;
    let db = cluster.node.start_pod(spec("db"))?;
    let _sinks = sinks(&db)?;
    cluster.translate(&db)?;
    let front = at(DB.1, 80)?;
    let long = TcpSend { to: front, bytes: 100_000_000, rate: Some(20_000) };
    let _long = web.spawn("app", &Program::TcpSend(long))?;
    let client = web.ipv4().to_string();
    let began = Instant::now();
    // Once it is established, its SYN has passed.
    loop {
        let sockets = db.exec(&["cat", "/proc/net/tcp"])?;
        if String::from_utf8_lossy(&sockets.stdout).lines().any(|line| line.contains(" 01 ")) {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "no connection");
        std::thread::sleep(Duration::from_millis(20));
    }
    let traced = cluster.traced(PeerScope::Cluster)?;
    let (of_web, of_db) = ("pod shop web-0 StatefulSet/web", "pod shop db-0 StatefulSet/db");
    wait_for(&traced, &web, front, expect("service shop db", of_db, OpenedBy::Unknown))?;
    wait_for(&traced, &db, at(&client, 0)?, expect(of_web, "nobody", OpenedBy::Unknown))?;
    traced.stop()
}
