//! Pods on the host network and processes of the node: each byte with its owner, and as many as the
//! interface counted, less the link header, which sockets do not see and loopback does not count.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_proto::{
    AttributedBy, Direction, FlowQuery, NetworkFlow, PodQuery, PodTraffic, SignalState,
};
use orb8_testkit::{
    Node, NodeOptions, Pod, PodSpec, Process, Program,
    program::{Bind, HttpClient, UdpSend},
};
use orb8_tests::{Traced, assert_exact};

const SOCKETS: &str = "host-sockets";
/// Header of Ethernet.
const LINK: u64 = 14;
const UDP_HEADERS: [u64; 2] = [20 + 8, 40 + 8];
const PATIENCE: Duration = Duration::from_secs(60);

/// Who can own a socket of the node.
#[derive(Clone, Copy)]
enum Party<'a> {
    Container(&'a Pod, &'static str),
    Daemon(&'a Node, &'static str),
}

impl Party<'_> {
    fn spawn(self, program: &Program) -> Result<Process> {
        match self {
            Self::Container(pod, container) => pod.spawn(container, program),
            Self::Daemon(node, service) => node.spawn(service, program),
        }
    }

    fn assert_owns(self, flow: &NetworkFlow) -> Result<()> {
        assert_eq!(flow.attributed_by(), AttributedBy::SocketCgroup, "{flow:?}");
        let owner = [&flow.namespace, &flow.pod_name, &flow.pod_uid, &flow.container];
        match self {
            Self::Container(pod, container) => {
                assert_eq!(owner, [pod.namespace(), pod.name(), pod.uid(), container], "{flow:?}");
                assert_eq!(flow.container_id, pod.container_id(container)?, "{flow:?}");
                assert_eq!(flow.unit, "", "{flow:?}");
            }
            Self::Daemon(_, service) => {
                assert_eq!(owner, [""; 4], "{flow:?}");
                assert_eq!(flow.unit, format!("{service}.service"), "{flow:?}");
            }
        }
        Ok(())
    }

    /// Its account: a pod's containers share one.
    fn account(self, totals: &[PodTraffic]) -> Result<&PodTraffic> {
        let of = |t: &&PodTraffic| match self {
            Self::Container(pod, _) => t.pod_uid == pod.uid(),
            Self::Daemon(_, service) => t.unit == format!("{service}.service"),
        };
        let mut found = totals.iter().filter(of);
        let account = found.next().with_context(|| format!("no account in {totals:?}"))?;
        assert_eq!(found.next(), None, "one owner has one account");
        Ok(account)
    }
}

/// One stream of datagrams with ports of its own.
struct Stream {
    from: usize,
    to: usize,
    ports: [u16; 2],
    packets: u64,
    size: u64,
}

impl Stream {
    fn bytes(&self, ipv6: bool) -> u64 {
        self.packets * (self.size + UDP_HEADERS[usize::from(ipv6)])
    }
}

/// Everybody talks to everybody, from and to the same range of ports.
fn streams(parties: usize) -> Vec<Stream> {
    let mut streams = Vec::new();
    for from in 0..parties {
        for to in (0..parties).filter(|to| *to != from) {
            let number = u16::try_from(streams.len()).expect("few");
            let ports = [7_100 + number, 7_200 + number];
            let (packets, size) = (40 + 7 * u64::from(number), 100 + 31 * u64::from(number));
            streams.push(Stream { from, to, ports, packets, size });
        }
    }
    streams
}

fn at_sockets(traced: &Traced) -> Result<Vec<NetworkFlow>> {
    flows_of(traced, SOCKETS)
}

fn flows_of(traced: &Traced, interface: &str) -> Result<Vec<NetworkFlow>> {
    traced.flows(FlowQuery { interface: interface.into(), limit: 100_000, ..Default::default() })
}

/// The flow of these ports. One of a cgroup that is younger than the agent may be in two rows: before
/// and after the agent has listed the cgroup.
fn find(flows: &[NetworkFlow], direction: Direction, ports: [u16; 2]) -> Result<NetworkFlow> {
    let wanted = |f: &&NetworkFlow| {
        f.direction() == direction && [f.src_port, f.dst_port] == ports.map(u32::from)
    };
    let mut found = flows.iter().filter(wanted);
    let flow = found.next().with_context(|| format!("no {direction:?} {ports:?} in {flows:?}"))?;
    let mut flow = flow.clone();
    for more in found {
        ensure!((&more.pod_uid, &more.unit) == (&flow.pod_uid, &flow.unit), "{more:?} {flow:?}");
        flow.packets += more.packets;
        flow.bytes += more.bytes;
    }
    Ok(flow)
}

/// Packets and bytes.
fn sum<'a>(flows: impl Iterator<Item = &'a NetworkFlow>) -> (u64, u64) {
    flows.fold((0, 0), |sum, f| (sum.0 + f.packets, sum.1 + f.bytes))
}

fn address(node: &Node, ipv6: bool) -> IpAddr {
    if ipv6 { node.ipv6().into() } else { node.ipv4().into() }
}

fn datagrams_have_their_owners(ipv6: bool, interfaces: &[&str]) -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let host_pod = |name: &str| {
        let spec = PodSpec::new("kube-system", name).containers(&["app", "side"]);
        node.start_pod(spec.host_network())
    };
    let (first, second) = (host_pod("first")?, host_pod("second")?);
    let plain = node.start_pod(PodSpec::new("shop", "plain"))?;
    let parties = [
        Party::Container(&first, "app"),
        Party::Container(&first, "side"),
        Party::Container(&second, "app"),
        Party::Daemon(&node, "backup"),
        Party::Container(&plain, "app"),
    ];
    const PLAIN: usize = 4;
    let traced = Traced::start(&node, |config| {
        config.interfaces = interfaces.iter().map(ToString::to_string).collect();
    })?;
    let status = traced.status()?;
    assert_eq!(status.signals[0].state(), SignalState::Active, "{:?}", status.signals);
    assert!(status.interfaces.iter().all(|i| i.name != SOCKETS), "{:?}", status.interfaces);
    let list = status.maps.iter().find(|map| map.name == "HOST_CGROUPS").context("no list")?;
    assert!(list.entries >= 5, "two sandboxes and three containers: {list:?}");

    let address_of = |party: usize| -> IpAddr {
        match party {
            PLAIN if ipv6 => plain.ipv6().into(),
            PLAIN => plain.ipv4().into(),
            _ => address(&node, ipv6),
        }
    };
    let streams = streams(parties.len());
    let sinks = streams
        .iter()
        .map(|s| parties[s.to].spawn(&Program::udp_sink(address_of(s.to), s.ports[1])));
    let mut sinks = sinks.collect::<Result<Vec<_>>>()?;
    let before = node.link_counters("lo")?;
    for s in &streams {
        let send = UdpSend {
            to: SocketAddr::new(address_of(s.to), s.ports[1]),
            packets: s.packets,
            size: usize::try_from(s.size)?,
            pps: None,
            from_port: Some(s.ports[0]),
            await_echo: false,
        };
        parties[s.from].spawn(&Program::UdpSend(send))?.wait()?;
    }
    for (s, sink) in streams.iter().zip(&mut sinks) {
        assert_eq!(sink.stop()?.packets, s.packets);
    }
    let after = node.link_counters("lo")?;

    // Each byte with its owner, at both ends of each stream.
    let flows = at_sockets(&traced)?;
    for s in &streams {
        let ends = [(s.from, Direction::Egress), (s.to, Direction::Ingress)];
        for (party, direction) in ends.into_iter().filter(|(party, _)| *party != PLAIN) {
            let flow = find(&flows, direction, s.ports)?;
            parties[party].assert_owns(&flow)?;
            assert_eq!((flow.packets, flow.bytes), (s.packets, s.bytes(ipv6)), "{flow:?}");
        }
    }
    let ours = |f: &&NetworkFlow| f.protocol == "udp" && (7_100..7_300).contains(&f.src_port);
    let ends: usize =
        streams.iter().map(|s| 2 - usize::from(s.from == PLAIN || s.to == PLAIN)).sum();
    let kept: HashSet<_> =
        flows.iter().filter(ours).map(|f| (f.src_port, f.dst_port, f.direction)).collect();
    assert_eq!(kept.len(), ends, "and nobody else has any: {flows:?}");

    // Among themselves they talk over loopback, to the plain pod by its veth.
    let plain_ip = address_of(PLAIN).to_string();
    let inside = |f: &&NetworkFlow| f.src_ip != plain_ip && f.dst_ip != plain_ip;
    let sent = flows.iter().filter(|f| f.direction() == Direction::Egress && f.protocol == "udp");
    let sent = sum(sent.filter(inside));
    let kernel = (after.tx_packets - before.tx_packets, after.tx_bytes - before.tx_bytes);
    assert_eq!(sent, kernel, "sockets and loopback, packets and bytes");
    let quiet = traced.quiet_counters(plain.veth())?;
    assert_exact(&quiet)?;
    let of_plain = flows_of(&traced, plain.veth())?;
    for (at_veth, at_socket) in
        [(Direction::Ingress, Direction::Egress), (Direction::Egress, Direction::Ingress)]
    {
        let (packets, bytes) =
            sum(flows.iter().filter(|f| f.direction() == at_socket && !inside(f)).filter(ours));
        let veth = of_plain.iter().filter(|f| f.direction() == at_veth).filter(ours);
        assert_eq!((packets, bytes + LINK * packets), sum(veth), "{at_veth:?} of the plain pod");
    }

    // Accounts have each byte once.
    let totals = traced.pods(PodQuery::default())?;
    for party in [parties[0], parties[2], parties[3]] {
        let own = |p: usize| match (party, parties[p]) {
            (Party::Container(one, _), Party::Container(other, _)) => one.uid() == other.uid(),
            (Party::Daemon(..), Party::Daemon(..)) => true,
            _ => false,
        };
        let bytes = |of: fn(&Stream) -> usize| {
            streams.iter().filter(|s| own(of(s))).map(|s| s.bytes(ipv6)).sum::<u64>()
        };
        let account = party.account(&totals)?;
        assert_eq!(account.egress_bytes, bytes(|s| s.from), "{account:?}");
        assert_eq!(account.ingress_bytes, bytes(|s| s.to), "{account:?}");
        assert_eq!(account.interfaces, [SOCKETS], "{account:?}");
    }
    let (now, of_plain) = {
        let (totals, now) =
            traced.while_quiet(plain.veth(), || traced.pods(PodQuery::default()))?;
        (now, parties[PLAIN].account(&totals)?.clone())
    };
    assert_eq!(of_plain.egress_bytes, now.kernel_ingress_bytes);
    assert_eq!(of_plain.ingress_bytes, now.kernel_egress_bytes);
    traced.stop()
}

#[test]
fn datagrams_of_host_pods_and_daemons_have_their_owners_over_ipv4() -> Result<()> {
    datagrams_have_their_owners(false, &[])
}

#[test]
fn datagrams_of_host_pods_and_daemons_have_their_owners_over_ipv6() -> Result<()> {
    datagrams_have_their_owners(true, &[])
}

#[test]
fn an_interface_of_the_node_that_sees_them_too_gives_their_owners_nothing() -> Result<()> {
    datagrams_have_their_owners(false, &["lo", "veth*"])
}

/// One request, after which the connection stays open.
fn one_request(to: SocketAddr, size: u64) -> Program {
    Program::HttpClient(HttpClient { to, requests: 2, every: 250_000, size, keep_alive: true })
}

/// A connection is exact while it is open: to answer for one that is closed, the kernel needs no
/// socket.
fn connections_have_their_owners(ipv6: bool) -> Result<()> {
    /// Less than loopback takes at once: what is more is cut below the socket.
    const SIZE: u64 = 40_000;
    const PORT: u16 = 7_301;
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("kube-system", "server").host_network())?;
    let (server, client) = (Party::Container(&pod, "app"), Party::Daemon(&node, "fetch"));
    let traced = Traced::start(&node, |_| {})?;
    let to = SocketAddr::new(address(&node, ipv6), PORT);
    let _server = server.spawn(&Program::HttpServer(Bind { bind: to }))?;
    let before = node.link_counters("lo")?;
    let _client = client.spawn(&one_request(to, SIZE))?;

    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut flows = at_sockets(&traced)?;
        // What is not TCP is the kernel's own: it tells its neighbours of itself.
        flows.retain(|f| f.protocol == "tcp");
        let now = node.link_counters("lo")?;
        let kernel = (now.tx_packets - before.tx_packets, now.tx_bytes - before.tx_bytes);
        let sides = [Direction::Egress, Direction::Ingress];
        let [sent, received] = sides.map(|d| sum(flows.iter().filter(|f| f.direction() == d)));
        if kernel.1 > SIZE && sent == kernel && received == kernel {
            for flow in &flows {
                let at_server = match flow.direction() {
                    Direction::Egress => flow.src_port == u32::from(PORT),
                    _ => flow.dst_port == u32::from(PORT),
                };
                if at_server { server.assert_owns(flow)? } else { client.assert_owns(flow)? }
            }
            return traced.stop();
        }
        let why = format!("sent {sent:?}, received {received:?}, loopback {now:?}: {flows:?}");
        ensure!(Instant::now() < deadline, why);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn connections_of_host_pods_and_daemons_have_their_owners_over_ipv4() -> Result<()> {
    connections_have_their_owners(false)
}

#[test]
fn connections_of_host_pods_and_daemons_have_their_owners_over_ipv6() -> Result<()> {
    connections_have_their_owners(true)
}

/// Large transfers in both directions, with segmentation left to the interface as it usually is.
fn bulk_is_as_on_the_pods_interface(ipv6: bool) -> Result<()> {
    const SIZE: u64 = 5_000_000;
    const PORTS: [u16; 2] = [7_302, 7_303];
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("kube-system", "server").host_network())?;
    let plain = node.start_pod(PodSpec::new("shop", "plain"))?;
    let traced = Traced::start(&node, |_| {})?;
    let here = SocketAddr::new(address(&node, ipv6), PORTS[0]);
    let there: IpAddr = if ipv6 { plain.ipv6().into() } else { plain.ipv4().into() };
    let there = SocketAddr::new(there, PORTS[1]);
    let _here = pod.spawn("app", &Program::HttpServer(Bind { bind: here }))?;
    let _there = plain.spawn("app", &Program::HttpServer(Bind { bind: there }))?;
    let _upload = plain.spawn("app", &one_request(here, SIZE))?;
    let _download = pod.spawn("app", &one_request(there, SIZE))?;

    let deadline = Instant::now() + PATIENCE;
    loop {
        let (sockets, veth) = (at_sockets(&traced)?, flows_of(&traced, plain.veth())?);
        let bulk = |flows: &[NetworkFlow], direction| {
            let tcp = flows.iter().filter(|f| f.protocol == "tcp");
            sum(tcp.filter(|f| f.direction() == direction))
        };
        let at_sockets = [Direction::Egress, Direction::Ingress].map(|d| bulk(&sockets, d));
        let at_veth = [Direction::Ingress, Direction::Egress].map(|d| bulk(&veth, d));
        let with_links = at_sockets.map(|(packets, bytes)| (packets, bytes + LINK * packets));
        if at_sockets.iter().all(|(_, bytes)| *bytes > SIZE) && with_links == at_veth {
            let owner = Party::Container(&pod, "app");
            sockets
                .iter()
                .filter(|f| f.protocol == "tcp")
                .try_for_each(|f| owner.assert_owns(f))?;
            return traced.stop();
        }
        ensure!(Instant::now() < deadline, "sockets {at_sockets:?}, veth {at_veth:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn bulk_at_sockets_is_as_on_the_interface_of_the_pod_that_they_talk_to() -> Result<()> {
    bulk_is_as_on_the_pods_interface(false)?;
    bulk_is_as_on_the_pods_interface(true)
}

#[test]
fn owners_that_come_and_go_while_the_agent_runs_have_every_byte() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let sink = node.start_pod(PodSpec::new("shop", "sink"))?;
    let _sink = sink.spawn("app", &Program::udp_sink(sink.ipv4(), 7_400))?;
    let traced = Traced::start(&node, |_| {})?;
    let to = SocketAddr::new(sink.ipv4().into(), 7_400);
    let mut uids = Vec::new();
    for round in 0_u64..5 {
        let send = Program::udp_send(to, 10 + round, 100);
        // Nobody has told the agent of this pod, and it is over before anybody could.
        let pod = node.start_pod(PodSpec::new("batch", "job").host_network())?;
        pod.spawn("app", &send)?.wait()?;
        uids.push(pod.uid().to_owned());
        pod.stop()?;
        node.spawn("timer", &send)?.wait()?;
    }
    // Records of what is not known yet wait for 3 s, here for nothing.
    std::thread::sleep(Duration::from_secs(4));
    let totals = traced.pods(PodQuery::default())?;
    let bytes = |packets: u64| packets * (100 + UDP_HEADERS[0]);
    for (round, uid) in (0..).zip(&uids) {
        let account = totals.iter().find(|t| t.pod_uid == *uid);
        let account = account.with_context(|| format!("{uid} is not in {totals:?}"))?;
        assert_eq!(account.egress_bytes, bytes(10 + round), "{account:?}");
        assert_eq!((&*account.pod_name, &*account.unit), (&**uid, ""));
    }
    let timer = totals.iter().find(|t| t.unit == "timer.service").context("no timer")?;
    assert_eq!(timer.egress_bytes, bytes((10..15).sum()));
    let nobody = totals.iter().find(|t| t.attributed_by() == AttributedBy::None);
    assert_eq!(nobody, None, "somebody's bytes are nobody's");
    assert!(traced.status()?.losses.is_empty(), "{:?}", traced.status()?.losses);
    traced.stop()
}
