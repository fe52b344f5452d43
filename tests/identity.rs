//! Traffic is named: pod, container and how we know, in every form that cgroups have, with and
//! without a list of pods.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_proto::{
    AttributedBy, Direction, FlowQuery, FlowState, NetworkFlow, PodQuery, StreamRequest,
};
use orb8_testkit::{
    CgroupDriver, Node, NodeOptions, Pod, PodSpec, Program, Qos, Runtime,
    program::{Bind, UdpSend},
};
use orb8_tests::{Traced, address, assert_exact};

const ECHO: u16 = 7007;
/// Nobody listens there.
const NOBODY: u16 = 7008;

fn ask_echo(from: &Pod, container: &str, to: SocketAddr, port: u16) -> Result<()> {
    let send =
        UdpSend { to, packets: 5, size: 64, pps: None, from_port: Some(port), await_echo: true };
    let summary = from.spawn(container, &Program::UdpSend(send))?.wait()?;
    assert_eq!(summary.replies, 5);
    Ok(())
}

/// One pod in every form that a kubelet and a runtime give its cgroups.
fn every_form(node: &Node) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for (class, qos) in [("g", Qos::Guaranteed), ("bu", Qos::Burstable), ("be", Qos::BestEffort)] {
        for (by, driver) in [("c", CgroupDriver::Cgroupfs), ("s", CgroupDriver::Systemd)] {
            let runtimes = [Runtime::Containerd, Runtime::CriO, Runtime::CriOCrun, Runtime::Docker];
            for (number, runtime) in runtimes.into_iter().enumerate() {
                let spec = PodSpec::new("forms", &format!("{class}-{by}-{number}"));
                pods.push(node.start_pod(spec.qos(qos).driver(driver).runtime(runtime))?);
            }
        }
    }
    Ok(pods)
}

/// The flows of one port of the pod that was given, on its own interface.
fn of_port<'a>(
    flows: &'a [NetworkFlow],
    pod: &Pod,
    direction: Direction,
    port: u16,
) -> Result<&'a NetworkFlow> {
    let port = u32::from(port);
    let found = flows.iter().find(|f| {
        let own = if direction == Direction::Egress { f.src_port } else { f.dst_port };
        f.interface == pod.veth() && f.direction() == direction && own == port
    });
    found.with_context(|| format!("{}: no {direction:?} flow of port {port}", pod.name()))
}

fn pods_are_named(with_list: bool) -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let echo = node.start_pod(PodSpec::new("forms", "echo"))?;
    let bind = Bind { bind: (Ipv4Addr::UNSPECIFIED, ECHO).into() };
    let _echo = echo.spawn("app", &Program::UdpEcho(bind))?;
    let pods = every_form(&node)?;
    let traced = Traced::start(&node, |config| {
        if !with_list {
            config.pods = None;
        }
    })?;
    for pod in &pods {
        ask_echo(pod, "app", address(&echo, false, ECHO), 4_000)?;
        let unasked = Program::udp_send(address(pod, false, NOBODY), 1, 64);
        echo.spawn("app", &unasked)?.wait()?;
    }
    // The pods' cgroups are older than the agent, so one round of it is enough.
    std::thread::sleep(Duration::from_millis(1_500));
    let flows = traced.flows(FlowQuery { limit: 100_000, ..FlowQuery::default() })?;
    for pod in &pods {
        let (namespace, name) =
            if with_list { (pod.namespace(), pod.name()) } else { ("", pod.uid()) };
        let id = pod.container_id("app")?;
        for direction in [Direction::Egress, Direction::Ingress] {
            let flow = of_port(&flows, pod, direction, 4_000)?;
            assert_eq!((&*flow.namespace, &*flow.pod_name), (namespace, name), "{flow:?}");
            assert_eq!((&*flow.pod_uid, &*flow.container_id), (pod.uid(), id), "{flow:?}");
            assert_eq!(flow.attributed_by(), AttributedBy::SocketCgroup, "{flow:?}");
            if with_list {
                assert_eq!(flow.container, "app");
            } else {
                assert!(!flow.container.is_empty() && id.starts_with(&flow.container), "{flow:?}");
            }
        }
        // Nobody in the pod answers, so only the pod is known.
        let flow = of_port(&flows, pod, Direction::Ingress, NOBODY)?;
        assert_eq!((&*flow.namespace, &*flow.pod_name), (namespace, name), "{flow:?}");
        assert_eq!((&*flow.pod_uid, &*flow.container), (pod.uid(), ""), "{flow:?}");
        assert_eq!(flow.attributed_by(), AttributedBy::Veth, "{flow:?}");
    }
    let mut totals = traced.pods(PodQuery::default())?;
    totals.retain(|total| total.unit.is_empty());
    assert_eq!(totals.len(), pods.len() + 1, "{totals:?}");
    traced.stop()
}

#[test]
fn pods_in_every_form_of_cgroup_are_named_from_a_list() -> Result<()> {
    pods_are_named(true)
}

#[test]
fn pods_in_every_form_of_cgroup_are_told_apart_without_a_list() -> Result<()> {
    pods_are_named(false)
}

#[test]
fn the_containers_of_a_pod_are_told_apart() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let echo = node.start_pod(PodSpec::new("shop", "echo"))?;
    let bind = Bind { bind: (Ipv4Addr::UNSPECIFIED, ECHO).into() };
    let _echo = echo.spawn("app", &Program::UdpEcho(bind))?;
    let pod = node.start_pod(PodSpec::new("shop", "web").containers(&["app", "proxy"]))?;
    let traced = Traced::start(&node, |_| {})?;
    for (container, port) in [("app", 4_000), ("proxy", 4_001)] {
        ask_echo(&pod, container, address(&echo, false, ECHO), port)?;
    }
    std::thread::sleep(Duration::from_millis(1_500));
    let flows = traced.flows(FlowQuery { pod_name: "web".into(), ..FlowQuery::default() })?;
    for (container, port) in [("app", 4_000), ("proxy", 4_001)] {
        for direction in [Direction::Egress, Direction::Ingress] {
            let flow = of_port(&flows, &pod, direction, port)?;
            let id = pod.container_id(container)?;
            assert_eq!((&*flow.container, &*flow.container_id), (container, id), "{flow:?}");
            assert_eq!(flow.attributed_by(), AttributedBy::SocketCgroup);
        }
    }
    // They share one account.
    let totals = traced.pods(PodQuery { pod_name: "web".into(), ..PodQuery::default() })?;
    assert_eq!(totals.len(), 1, "{totals:?}");
    assert!(totals[0].egress_packets >= 10);
    traced.stop()
}

/// Everything of a pod that starts after the agent is the pod's, from its first byte.
fn a_late_pod_is_named(meanwhile: impl Fn(&Traced) -> Result<()>) -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let echo = node.start_pod(PodSpec::new("shop", "echo"))?;
    let bind = Bind { bind: (Ipv4Addr::UNSPECIFIED, ECHO).into() };
    let _echo = echo.spawn("app", &Program::UdpEcho(bind))?;
    let traced = Traced::start(&node, |_| {})?;

    let late = node.start_pod(PodSpec::new("shop", "late"))?;
    meanwhile(&traced)?;
    ask_echo(&late, "app", address(&echo, false, ECHO), 4_000)?;
    meanwhile(&traced)?;
    std::thread::sleep(Duration::from_secs(3));
    let (totals, now) = traced.while_quiet(late.veth(), || traced.pods(PodQuery::default()))?;
    assert_eq!(now.pod_name, late.uid(), "the list is older than the pod");
    let of_late = totals.iter().find(|t| t.pod_uid == late.uid());
    let of_late = of_late.with_context(|| format!("{} is not in {totals:?}", late.uid()))?;
    assert!(of_late.egress_packets >= 5 && of_late.ingress_packets >= 5, "{of_late:?}");
    let nobody = totals.iter().find(|t| t.attributed_by() == AttributedBy::None);
    assert_eq!(nobody, None, "somebody's bytes are nobody's");
    // With what passed before its interface was attached to, which is told a little later.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let pods = traced.pods(PodQuery::default())?;
        let its = pods.iter().find(|t| t.pod_uid == late.uid()).context("it was there")?;
        let flows = traced.flows(FlowQuery { limit: 1_000_000, ..FlowQuery::default() })?;
        let early = |direction| {
            let early = flows.iter().filter(|f| f.state() == FlowState::Early);
            let its = early.filter(|f| f.interface == late.veth() && f.direction() == direction);
            its.map(|f| f.bytes).sum::<u64>()
        };
        let sent = now.ingress_bytes + early(Direction::Egress);
        let received = now.egress_bytes + early(Direction::Ingress);
        if (its.egress_bytes, its.ingress_bytes) == (sent, received) {
            break;
        }
        ensure!(Instant::now() < deadline, "{its:?} {now:?} {flows:?}");
    }
    if !now.approximate {
        assert_exact(&now)?;
    }
    traced.stop()
}

#[test]
fn a_pod_that_starts_after_the_agent_is_named_from_its_first_byte() -> Result<()> {
    a_late_pod_is_named(|_| Ok(()))
}

#[test]
fn asking_while_a_pod_starts_does_not_give_its_bytes_to_nobody() -> Result<()> {
    a_late_pod_is_named(|traced| {
        traced.pods(PodQuery::default())?;
        traced.status()?;
        Ok(())
    })
}

#[test]
fn a_trace_that_ends_while_a_pod_starts_does_not_give_its_bytes_to_nobody() -> Result<()> {
    a_late_pod_is_named(|traced| {
        let soon = StreamRequest { duration_ns: Some(1_000_000), ..StreamRequest::default() };
        traced.hear(traced.trace(soon)?)?;
        Ok(())
    })
}
