//! Pods come and go: nothing grows, none that lived for a second is missed, and an interface index
//! that is used again at once does not mix two pods.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orb8_proto::{FlowQuery, FlowState, MapStatus, NetworkFlow, StatusResponse};
use orb8_testkit::{Node, NodeOptions, Pod, PodSpec, Program, program::UdpSend};
use orb8_tests::{AgentProcess, Client, Traced};

const PORT: u16 = 7001;
/// Ethernet, IPv4 and UDP.
const HEADERS: u64 = 14 + 20 + 8;
const SIZE: u64 = 64;

/// A pod that lived for more than a second before it spoke.
struct Settled {
    uid: String,
    veth: String,
    sent: u64,
}

fn send(pod: &Pod, to: SocketAddr, packets: u64) -> Result<()> {
    let program = Program::udp_send(to, packets, usize::try_from(SIZE)?);
    assert_eq!(pod.spawn("app", &program)?.wait()?.packets, packets);
    Ok(())
}

/// Starts and stops pods, one after the other on each of four threads. They talk to the node, so
/// that all of their flows are on their own interface.
fn churn(node: &Node, round: u64, per_thread: u64) -> Result<Vec<Settled>> {
    const THREADS: u64 = 4;
    let to = SocketAddr::from((node.ipv4(), PORT));
    let come_and_go = |thread: u64| -> Result<Vec<Settled>> {
        let mut settled = Vec::new();
        for number in 0..per_thread {
            let pod =
                node.start_pod(PodSpec::new("churn", &format!("p{round}-{thread}-{number}")))?;
            let sent = 10 + thread * 100 + number;
            if number % 5 == 4 {
                std::thread::sleep(Duration::from_millis(1_100));
                let (uid, veth) = (pod.uid().to_owned(), pod.veth().to_owned());
                settled.push(Settled { uid, veth, sent });
            }
            send(&pod, to, sent)?;
            pod.stop()?;
        }
        Ok(settled)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|thread| scope.spawn(move || come_and_go(thread))).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().expect("no panic")?);
        }
        Ok(all)
    })
}

/// The cgroups of other tests' pods are on this machine too.
fn is_of_this_node(map: &MapStatus) -> bool {
    map.r#type == "hash" && !["POD_METADATA", "HOST_CGROUPS"].contains(&&*map.name)
}

/// The agent's state once it has done with all that went away.
fn settled_status(agent: &Client) -> Result<StatusResponse> {
    let deadline = Instant::now() + Duration::from_secs(15);
    let fill = |status: &StatusResponse| {
        let maps = status.maps.iter().filter(|map| is_of_this_node(map));
        maps.map(|map| (map.name.clone(), map.entries)).collect::<Vec<_>>()
    };
    let mut before = agent.status()?;
    loop {
        std::thread::sleep(Duration::from_millis(1_500));
        let now = agent.status()?;
        if fill(&now) == fill(&before) && now.interfaces.len() == before.interfaces.len() {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "{:?} {:?}", fill(&before), fill(&now));
        before = now;
    }
}

#[test]
fn two_hundred_pods_come_and_go_and_nothing_grows() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let _sink = node.spawn("sink", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, PORT))?;
    let agent = AgentProcess::start(&node, &["--signals", "network"])?;
    churn(&node, 0, 10)?;
    let warm = settled_status(&agent)?;
    let settled = churn(&node, 1, 40)?;
    let now = settled_status(&agent)?;

    let (used_before, used) = (warm.usage.unwrap_or_default(), now.usage.unwrap_or_default());
    assert!(used.open_fds <= used_before.open_fds, "{used_before:?} {used:?}");
    assert_eq!(used.kernel_map_bytes, used_before.kernel_map_bytes);
    let grown = used.resident_bytes.saturating_sub(used_before.resident_bytes);
    assert!(grown < 8 << 20, "{grown} bytes for 160 pods");
    only_flows_of_the_node_are_left(&agent)?;
    assert_eq!(now.interfaces, []);

    // Those that lived for a second are counted to the byte, although they are gone.
    assert_eq!(settled.len(), 32);
    let flows = agent.flows(FlowQuery { limit: 1_000_000, ..FlowQuery::default() })?;
    for pod in &settled {
        let counted: Vec<_> = flows_to_port(&flows, &pod.veth);
        let expected = (pod.sent, pod.sent * (SIZE + HEADERS), pod.uid.as_str());
        assert_eq!(counted, [expected], "{}", pod.veth);
    }
    agent.terminate()?;
    Ok(())
}

/// The sink has a flow with every pod, and the agent's clients have some, until they are idle.
fn only_flows_of_the_node_are_left(agent: &Client) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let flows = agent.flows(FlowQuery { limit: 1_000_000, ..FlowQuery::default() })?;
        let alive = flows.iter().filter(|f| f.state() == FlowState::Active);
        let own = alive.filter(|f| f.interface == "host-sockets").count();
        let maps = agent.status()?.maps;
        let mut left = maps.iter().filter(|map| is_of_this_node(map));
        let entries: u64 = left.clone().map(|map| map.entries).sum();
        if entries == own as u64 && left.all(|map| map.name != "OVERFLOW" || map.entries == 0) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{own} flows of the node, and there are {maps:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Packets, bytes and pod of what an interface's pod sent to the sink.
fn flows_to_port<'a>(flows: &'a [NetworkFlow], interface: &str) -> Vec<(u64, u64, &'a str)> {
    let matching =
        flows.iter().filter(|f| f.interface == interface && f.dst_port == u32::from(PORT));
    matching.map(|f| (f.packets, f.bytes, f.pod_uid.as_str())).collect()
}

fn wait_named(traced: &Traced, interface: &str) -> Result<()> {
    traced.wait_attached(interface)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while traced.interface(interface)?.pod_name.is_empty() {
        ensure!(Instant::now() < deadline, "nobody is known to be behind {interface}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Both pods speak from the same address by an interface of the same index, and from the same port
/// if `port` says so.
fn two_pods_take_turns_on_one_index(port: impl Fn(u16) -> u16) -> Result<()> {
    const INDEX: u32 = 500;
    const NODE_SIDE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
    let node = Node::start(NodeOptions::default())?;
    let _sink = node.spawn("sink", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, PORT))?;
    let pods = [
        node.start_pod(PodSpec::new("shop", "one"))?,
        node.start_pod(PodSpec::new("shop", "other"))?,
    ];
    let traced = Traced::start(&node, |_| {})?;
    let run = |command: String, on: &dyn Fn(&[&str]) -> Result<std::process::Output>| {
        let output = on(&["sh", "-ec", &command])?;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{command}: {complaint}");
        Ok(())
    };

    let mut sent = Vec::new();
    let mut delete = String::new();
    for round in 0..12_u16 {
        let pod = &pods[usize::from(round % 2)];
        let (name, packets) = (format!("again{round}"), 10 + u64::from(round));
        let add = format!(
            "{delete} ip link add {name} index {INDEX} type veth peer name again netns {}; \
             ip addr add {NODE_SIDE}/30 dev {name}; ip link set {name} up",
            pod.sandbox_pid()
        );
        run(add, &|command| node.exec(command))?;
        delete = format!("ip link del {name};");
        run("ip addr add 10.99.0.2/30 dev again; ip link set again up".into(), &|command| {
            pod.exec(command)
        })?;
        // Asking settles what went before; it has to be right without, too.
        if round % 3 == 0 {
            std::thread::sleep(Duration::from_secs(2));
        }
        wait_named(&traced, &name)?;
        let program = UdpSend {
            to: (IpAddr::from(NODE_SIDE), PORT).into(),
            packets,
            size: 64,
            pps: None,
            from_port: Some(port(round)),
            await_echo: false,
        };
        pod.spawn("app", &Program::UdpSend(program))?.wait()?;
        sent.push((name, packets, pod.uid()));
    }
    let flows = traced.flows(FlowQuery { limit: 1_000_000, ..FlowQuery::default() })?;
    for (name, packets, uid) in sent {
        let expected = (packets, packets * (SIZE + HEADERS), uid);
        assert_eq!(flows_to_port(&flows, &name), [expected], "{name}");
    }
    traced.stop()
}

#[test]
fn an_index_that_is_used_again_at_once_does_not_mix_two_pods() -> Result<()> {
    two_pods_take_turns_on_one_index(|round| 4_000 + round)
}

#[test]
fn an_index_that_is_used_again_with_the_same_ports_does_not_mix_two_pods() -> Result<()> {
    two_pods_take_turns_on_one_index(|_| 4_000)
}
