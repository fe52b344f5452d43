//! More flows than the flow table holds: totals stay exact, what is missing is said, and the agent
//! does not run away.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orb8_proto::{FlowQuery, FlowState, PodQuery, StreamRequest};
use orb8_testkit::{
    Node, NodeOptions, Pod, PodSpec, Program, Summary,
    program::{Flows, Proto, UdpSink},
};
use orb8_tests::{AgentProcess, Client, Traced, address, assert_exact};

const TABLE: u32 = 1_024;
const PORT: u16 = 7001;

struct Scene {
    node: Node,
    client: Pod,
    server: Pod,
    _sink: orb8_testkit::Process,
}

fn scene(ipv6: bool) -> Result<Scene> {
    let node = Node::start(NodeOptions::default())?;
    let client = node.start_pod(PodSpec::new("load", "client"))?;
    let server = node.start_pod(PodSpec::new("load", "server"))?;
    let any: IpAddr = if ipv6 { server.ipv6().into() } else { server.ipv4().into() };
    let sink = Program::UdpSink(UdpSink { bind: (any, PORT).into(), ports: 2 });
    let sink = server.spawn("app", &sink)?;
    Ok(Scene { node, client, server, _sink: sink })
}

impl Scene {
    fn storm(&self, ipv6: bool, port: u16, count: u32) -> Result<Summary> {
        let flows = Flows {
            to: address(&self.server, ipv6, port),
            count,
            packets_per_flow: 1,
            size: 64,
            proto: Proto::Udp,
            ports: None,
        };
        self.client.spawn("app", &Program::Flows(flows))?.wait_for(Duration::from_secs(50))
    }
}

fn flow_table_full(client: &Client) -> Result<u64> {
    let losses = client.status()?.losses;
    let lost = losses.iter().filter(|l| l.stage == "kernel" && l.reason == "flow_table_full");
    Ok(lost.map(|loss| loss.packets).sum())
}

fn overflowing_costs_detail_and_no_total(ipv6: bool, count: u32) -> Result<()> {
    let scene = scene(ipv6)?;
    let (client, server) = (&scene.client, &scene.server);
    let traced = Traced::start(&scene.node, |config| {
        config.flow_table_size = TABLE;
        config.flow_idle = Duration::from_secs(3);
    })?;
    let (trace, before) =
        traced.while_quiet(client.veth(), || traced.trace(StreamRequest::default()))?;
    assert_eq!(scene.storm(ipv6, PORT, count)?.packets, u64::from(count));

    // Totals, per interface and per pod.
    let query = || PodQuery { pod_name: "client".into(), ..PodQuery::default() };
    let (of_client, now) = traced.while_quiet(client.veth(), || traced.pods(query()))?;
    assert_exact(&now)?;
    assert_exact(&traced.quiet_counters(server.veth())?)?;
    assert_eq!(of_client.len(), 1, "{of_client:?}");
    assert_eq!(of_client[0].egress_packets, now.kernel_ingress_packets);
    assert_eq!(of_client[0].egress_bytes, now.kernel_ingress_bytes);

    // What has no detail is said, the same everywhere.
    let (pods, without_detail) = loop {
        let (before, pods) = (flow_table_full(&traced)?, traced.pods(PodQuery::default())?);
        if flow_table_full(&traced)? == before {
            break (pods, before);
        }
    };
    assert!(without_detail > u64::from(count), "of {count} on two interfaces: {without_detail}");
    let per_pod: u64 = pods.iter().map(|pod| pod.overflow_packets).sum();
    assert_eq!(per_pod, without_detail, "{pods:?}");

    // Flows that ended made room: a new one is seen by itself again.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        scene.storm(ipv6, PORT + 1, 1)?;
        let flows = traced.flows(FlowQuery { limit: 100_000, ..FlowQuery::default() })?;
        if let Some(flow) = flows.iter().find(|f| f.dst_port == u32::from(PORT + 1)) {
            assert_eq!((&*flow.namespace, flow.protocol.as_str()), ("load", "udp"));
            break;
        }
        ensure!(Instant::now() < deadline, "no room after all flows were idle");
        std::thread::sleep(Duration::from_millis(500));
    }

    // The records of the trace, overflow included, add up to what the kernel counted.
    let now = traced.quiet_counters(client.veth())?;
    assert_exact(&now)?;
    let heard = traced.stop_with(trace)?;
    assert_eq!(heard.last_report().records_lost, 0);
    let overflow = heard.flows.iter().filter(|f| f.state() == FlowState::Overflow);
    let told: u64 = overflow.map(|flow| flow.packets).sum();
    assert!(told >= without_detail, "{told} of {without_detail} packets without detail were told");
    heard.assert_sums_to_kernel(&before, &now)?;
    Ok(())
}

#[test]
fn fifty_thousand_ipv4_flows_in_a_table_of_a_thousand_are_counted_exactly() -> Result<()> {
    overflowing_costs_detail_and_no_total(false, 50_000)
}

#[test]
fn ten_thousand_ipv6_flows_in_a_table_of_a_thousand_are_counted_exactly() -> Result<()> {
    overflowing_costs_detail_and_no_total(true, 10_000)
}

/// A design that turns what has no room into records of its own burns several cores here.
#[test]
fn an_agent_whose_table_is_full_uses_less_than_half_a_core() -> Result<()> {
    let scene = scene(false)?;
    let agent = AgentProcess::start(
        &scene.node,
        &["--signals", "network", "--flow-table-size", &TABLE.to_string()],
    )?;
    agent.wait_attached(scene.client.veth())?;
    let cpu = || -> Result<f64> { Ok(agent.status()?.usage.unwrap_or_default().cpu_seconds) };
    let (begun, cpu_before) = (Instant::now(), cpu()?);
    for _ in 0..4 {
        scene.storm(false, PORT, 50_000)?;
    }
    let (wall, used) = (begun.elapsed().as_secs_f64(), cpu()? - cpu_before);
    assert!(flow_table_full(&agent)? > 100_000);
    assert!(used < wall / 2.0, "{used:.2} s of CPU in {wall:.2} s");
    agent.terminate()?;
    Ok(())
}
