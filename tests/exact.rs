//! Every byte accounted: orb8's totals equal the kernel's own interface counters, difference 0.

use std::time::Duration;

use anyhow::Result;
use orb8_proto::{FlowQuery, StreamRequest};
use orb8_testkit::{Node, NodeOptions, PodSpec, Program, program::HoldFlows};
use orb8_tests::{Traced, address, assert_exact};

const UDP_PACKETS: u64 = 200_000;
const GIB: u64 = 1 << 30;

/// 200,000 datagrams and a 1 GiB TCP transfer with GSO, while 500 other flows run.
fn bulk_is_counted_exactly(ipv6: bool) -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let client = node.start_pod(PodSpec::new("load", "client"))?;
    let server = node.start_pod(PodSpec::new("load", "server"))?;
    let any: std::net::IpAddr = if ipv6 { server.ipv6().into() } else { server.ipv4().into() };
    let _udp = server.spawn("app", &Program::udp_sink(any, 7001))?;
    let _tcp = server.spawn("app", &Program::tcp_sink(any, 7002))?;
    let _others = server.spawn("app", &Program::udp_sink(any, 7003))?;

    let traced = Traced::start(&node, |_| {})?;
    let (trace, before) =
        traced.while_quiet(client.veth(), || traced.trace(StreamRequest::default()))?;
    assert_exact(&before)?;
    assert!(!before.approximate, "{before:?}");

    let to = address(&server, ipv6, 7003);
    let hold = Program::HoldFlows(HoldFlows { to, count: 500, pps: 2_000, size: 64, ports: 1 });
    let mut others = client.spawn("app", &hold)?;
    let udp = Program::udp_send(address(&server, ipv6, 7001), UDP_PACKETS, 100);
    let tcp = Program::tcp_send(address(&server, ipv6, 7002), GIB);
    let (mut udp, mut tcp) = (client.spawn("app", &udp)?, client.spawn("app", &tcp)?);
    let sent = udp.wait_for(Duration::from_secs(120))?;
    assert_eq!((sent.packets, sent.bytes), (UDP_PACKETS, UDP_PACKETS * 100));
    assert_eq!(tcp.wait_for(Duration::from_secs(120))?.bytes, GIB);
    others.stop()?;

    for pod in [&client, &server] {
        let now = traced.quiet_counters(pod.veth())?;
        assert_exact(&now)?;
        assert!(now.kernel_ingress_bytes + now.kernel_egress_bytes > GIB, "{now:?}");
    }

    // The flow of datagrams, by itself: header of Ethernet, IP and UDP on each.
    let header = if ipv6 { 14 + 40 + 8 } else { 14 + 20 + 8 };
    let flows = traced.flows(FlowQuery { limit: 100_000, ..FlowQuery::default() })?;
    let datagrams: Vec<_> = flows
        .iter()
        .filter(|f| f.dst_port == 7001 && f.protocol == "udp" && f.interface == client.veth())
        .collect();
    assert_eq!(datagrams.len(), 1, "{datagrams:?}");
    assert_eq!(datagrams[0].packets, UDP_PACKETS);
    assert_eq!(datagrams[0].bytes, UDP_PACKETS * (100 + header));
    assert_eq!((&*datagrams[0].namespace, &*datagrams[0].pod_name), ("load", "client"));
    let bulk = flows.iter().find(|f| f.dst_port == 7002 && f.interface == client.veth());
    let bulk = bulk.expect("the TCP flow");
    assert!(bulk.wire_packets > bulk.packets, "GSO was on: {bulk:?}");

    // The records of the trace add up to the same.
    let now = traced.quiet_counters(client.veth())?;
    let heard = traced.stop_with(trace)?;
    assert_eq!(heard.last_report().records_lost, 0);
    heard.assert_sums_to_kernel(&before, &now)?;
    Ok(())
}

#[test]
fn bulk_over_ipv4_is_counted_exactly() -> Result<()> {
    bulk_is_counted_exactly(false)
}

#[test]
fn bulk_over_ipv6_is_counted_exactly() -> Result<()> {
    bulk_is_counted_exactly(true)
}
