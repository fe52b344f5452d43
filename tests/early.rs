//! What a pod sends before its interface is attached to is counted as well: by container, to the byte,
//! and once.
//!
//! The agent is stopped (SIGSTOP) while the pod starts, so that it attaches too late for certain.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_proto::{Direction, FlowState, NetworkFlow, PodQuery, PodTraffic, StreamRequest};
use orb8_testkit::{Node, NodeOptions, Pod, PodSpec, Program, program::UdpSend};
use orb8_tests::{AgentProcess, Client};
use rustix::process::{Pid, Signal, kill_process};

const PORT: u16 = 7001;
const SIZE: usize = 64;
/// Ethernet, IPv4 and UDP.
const ON_WIRE: u64 = SIZE as u64 + 14 + 20 + 8;
const LIMIT: Duration = Duration::from_secs(30);

/// An agent that cannot attach to anything until it is told to go on.
struct Late {
    node: Node,
    agent: AgentProcess,
    _sink: orb8_testkit::Process,
}

impl Late {
    fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        let sink = node.spawn("sink", &Program::udp_sink(Ipv6Addr::UNSPECIFIED, PORT))?;
        let agent = AgentProcess::start(&node, &["--signals", "network"])?;
        Ok(Self { node, agent, _sink: sink })
    }

    /// Stops the agent just after it has seen that pods start.
    fn stop(&self) -> Result<()> {
        /// What sockets send is counted for a little longer.
        const FRESH: Duration = Duration::from_secs(8);
        let deadline = Instant::now() + 3 * LIMIT;
        for number in 0.. {
            let begun = Instant::now();
            let first = self.node.start_pod(PodSpec::new("shop", &format!("first{number}")))?;
            while !self.agent.status()?.interfaces.iter().any(|i| i.name == first.veth()) {
                ensure!(Instant::now() < deadline, "{} is not attached to", first.veth());
                std::thread::sleep(Duration::from_millis(20));
            }
            if begun.elapsed() < FRESH {
                break;
            }
        }
        self.signal(Signal::STOP)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.agent.pid())?);
        Ok(kill_process(pid.context("no process id")?, signal)?)
    }

    fn send(
        &self,
        pod: &Pod,
        container: &str,
        packets: u64,
        pps: Option<u64>,
    ) -> Result<orb8_testkit::Process> {
        let program = UdpSend {
            to: SocketAddr::from((IpAddr::from(self.node.ipv4()), PORT)),
            packets,
            size: SIZE,
            pps,
            from_port: None,
            await_echo: false,
        };
        pod.spawn(container, &Program::UdpSend(program))
    }
}

/// The row of a pod, once it says `enough`.
fn row(agent: &Client, uid: &str, enough: impl Fn(&PodTraffic) -> bool) -> Result<PodTraffic> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let pods = agent.pods(PodQuery { limit: 1_000_000, ..PodQuery::default() })?;
        let row = pods.into_iter().find(|row| row.pod_uid == uid);
        match row {
            Some(row) if enough(&row) => return Ok(row),
            row => ensure!(Instant::now() < deadline, "{uid}: {row:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Packets and bytes that containers sent: early, and in flows to the sink.
type Sent<'a> = BTreeMap<&'a str, [(u64, u64); 2]>;

fn by_container(flows: &[NetworkFlow]) -> Sent<'_> {
    let mut sent = Sent::new();
    for flow in flows.iter().filter(|f| f.direction() == Direction::Egress) {
        let early = flow.state() == FlowState::Early && !flow.container_id.is_empty();
        if early || flow.dst_port == u32::from(PORT) {
            let [before, after] = sent.entry(&*flow.container_id).or_default();
            let counts = if early { before } else { after };
            counts.0 += flow.packets;
            counts.1 += flow.bytes;
        }
    }
    sent
}

#[test]
fn containers_that_sent_before_the_agent_could_attach_are_counted_to_the_byte() -> Result<()> {
    let late = Late::start()?;
    let trace = late.agent.trace(StreamRequest::default())?;
    late.stop()?;
    let pod =
        late.node.start_pod(PodSpec::new("shop", "web").containers(&["app", "side", "idle"]))?;
    for (container, packets) in [("app", 70), ("side", 30)] {
        late.send(&pod, container, packets, None)?.wait()?;
    }
    late.signal(Signal::CONT)?;
    row(&late.agent, pod.uid(), |row| row.early_packets >= 100)?;
    // What comes from now on has flows.
    late.send(&pod, "app", 11, None)?.wait()?;

    // To the byte what the interface has counted since it was made, neighbour discovery and all.
    let deadline = Instant::now() + LIMIT;
    loop {
        let row = row(&late.agent, pod.uid(), |row| row.early_packets >= 100)?;
        let kernel = pod.link_counters()?;
        let counted =
            (row.egress_packets, row.egress_bytes, row.ingress_packets, row.ingress_bytes);
        let expected = (kernel.rx_packets, kernel.rx_bytes, kernel.tx_packets, kernel.tx_bytes);
        if counted == expected {
            break;
        }
        ensure!(counted.0 <= expected.0 && counted.2 <= expected.2, "{counted:?} {expected:?}");
        ensure!(Instant::now() < deadline, "{counted:?}, the kernel {expected:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
    let ids = ["app", "side"].map(|name| pod.container_id(name).map(str::to_owned));
    let [app, side] = ids;
    let (app, side) = (app?, side?);
    let client = Client::clone(&late.agent);
    late.agent.terminate()?;
    let heard = client.hear(trace)?;
    let expected = Sent::from([
        (&*app, [(70, 70 * ON_WIRE), (11, 11 * ON_WIRE)]),
        (&*side, [(30, 30 * ON_WIRE), (0, 0)]),
    ]);
    assert_eq!(by_container(&heard.flows), expected);
    Ok(())
}

#[test]
fn containers_of_a_pod_that_was_gone_before_the_agent_could_attach_are_counted_to_the_byte()
-> Result<()> {
    let late = Late::start()?;
    let trace = late.agent.trace(StreamRequest::default())?;
    late.stop()?;
    let mut expected = BTreeMap::new();
    for number in 0..3_u64 {
        let spec = PodSpec::new("shop", &format!("brief{number}"));
        let pod = late.node.start_pod(spec.containers(&["app", "side"]))?;
        for (container, packets) in [("app", 10 + number), ("side", 20 + number)] {
            late.send(&pod, container, packets, None)?.wait()?;
            let id = pod.container_id(container)?.to_owned();
            expected.insert(id, (pod.uid().to_owned(), packets, packets * ON_WIRE));
        }
        pod.stop()?;
    }
    late.signal(Signal::CONT)?;
    for (uid, ..) in expected.values() {
        row(&late.agent, uid, |row| row.early_packets >= 30)?;
    }
    let client = Client::clone(&late.agent);
    late.agent.terminate()?;
    let heard = client.hear(trace)?;
    let early = heard.flows.iter().filter(|f| f.state() == FlowState::Early);
    let told = early.filter(|f| !f.container_id.is_empty()).map(|f| {
        assert_eq!(f.direction(), Direction::Egress);
        (f.container_id.clone(), (f.pod_uid.clone(), f.packets, f.bytes))
    });
    assert_eq!(told.collect::<BTreeMap<_, _>>(), expected);
    Ok(())
}

#[test]
fn a_container_that_goes_on_sending_while_the_agent_attaches_is_counted_once() -> Result<()> {
    const PACKETS: u64 = 2_000;
    let late = Late::start()?;
    let trace = late.agent.trace(StreamRequest::default())?;
    late.stop()?;
    let pod = late.node.start_pod(PodSpec::new("shop", "web"))?;
    let mut sender = late.send(&pod, "app", PACKETS, Some(500))?;
    // The agent comes in the middle.
    let deadline = Instant::now() + LIMIT;
    while pod.link_counters()?.rx_packets < PACKETS / 4 {
        ensure!(Instant::now() < deadline, "nothing is sent");
        std::thread::sleep(Duration::from_millis(10));
    }
    late.signal(Signal::CONT)?;
    sender.wait()?;
    row(&late.agent, pod.uid(), |row| row.egress_packets >= PACKETS)?;
    let id = pod.container_id("app")?.to_owned();
    let client = Client::clone(&late.agent);
    late.agent.terminate()?;
    let heard = client.hear(trace)?;
    let sent = by_container(&heard.flows);
    assert_eq!(sent.keys().copied().collect::<Vec<_>>(), [&*id]);
    let [before, after] = sent[&*id];
    assert!(before.0 >= PACKETS / 4 - 50 && after.0 > 0, "{sent:?}");
    assert_eq!((before.0 + after.0, before.1 + after.1), (PACKETS, PACKETS * ON_WIRE));
    Ok(())
}
