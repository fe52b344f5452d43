//! Many flows: short ones in turn, or long ones at once.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use orb8_testkit::Summary;
use orb8_testkit::program::{Flows, HoldFlows, Proto, SOURCE_PORTS};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::run_time::{Pace, RunTime};
use super::{neighbour, report, tcp, udp};

/// The first source port. Below the range that the kernel chooses from, but in a pod nobody else is there.
const FIRST_SOURCE: u32 = 10_000;

/// Makes the flows one after the other.
pub(super) fn flows(flows: &Flows) -> Result<()> {
    let spread = flows.ports.map_or(SOURCE_PORTS, |ports| per_port(flows.count, ports));
    let payload = vec![0x2a; flows.size];
    for flow in 0..flows.count {
        let (from, to) = ends(flows.to, flow, spread)?;
        match flows.proto {
            Proto::Udp => udp_flow(from, to, &payload, flows.packets_per_flow, flow == 0),
            Proto::Tcp => tcp_flow(from, to, &payload, flows.packets_per_flow),
        }
        .with_context(|| format!("flow {flow}, from port {from} to {to}"))?;
    }
    let packets = u64::from(flows.count) * u64::from(flows.packets_per_flow);
    let bytes = packets * flows.size as u64;
    report::summary(&Summary { packets, bytes, flows: flows.count.into(), ..Summary::default() })
}

/// Sends on each flow once, and then on all in turn at the given rate until the end.
///
/// Flows to different ports share a socket, because the limit of open files is lower than what a flow table holds.
pub(super) fn hold_flows(flows: &HoldFlows, run_time: RunTime) -> Result<()> {
    let spread = per_port(flows.count, flows.ports);
    raise_descriptor_limit(u64::from(spread) + 64)?;
    let mut sockets = Vec::new();
    let mut all = Vec::new();
    for flow in 0..flows.count {
        let (from, to) = ends(flows.to, flow, spread)?;
        if flow < spread {
            sockets.push(udp::unconnected(to, from)?);
        }
        all.push((usize::try_from(flow % spread)?, to));
    }
    let payload = vec![0x2a; flows.size];
    let send = |&(socket, to): &(usize, SocketAddr)| udp::send_to(&sockets[socket], &payload, to);
    let mut sent = 0;
    for flow in &all {
        send(flow)?;
        if sent == 0 {
            neighbour::await_resolution()?;
        }
        sent += 1;
    }
    report::ready(None)?;

    let end = run_time.end_flag();
    let opening = sent;
    let pace = Pace::new(Some(flows.pps));
    for flow in all.iter().cycle() {
        pace.until(sent - opening);
        if end.load(Ordering::Relaxed) {
            break;
        }
        send(flow)?;
        sent += 1;
    }
    let bytes = sent * flows.size as u64;
    report::summary(&Summary {
        packets: sent,
        bytes,
        flows: flows.count.into(),
        ..Summary::default()
    })
}

/// Source port and destination of a flow; `spread` flows share a destination port.
fn ends(base: SocketAddr, flow: u32, spread: u32) -> Result<(u16, SocketAddr)> {
    let from = u16::try_from(FIRST_SOURCE + flow % spread)?;
    let port = u32::from(base.port()) + flow / spread;
    let port = u16::try_from(port).with_context(|| format!("too many flows: port {port}"))?;
    Ok((from, SocketAddr::new(base.ip(), port)))
}

fn per_port(count: u32, ports: u16) -> u32 {
    count.div_ceil(u32::from(ports.max(1))).clamp(1, SOURCE_PORTS)
}

fn udp_flow(from: u16, to: SocketAddr, payload: &[u8], packets: u32, first: bool) -> Result<()> {
    let socket = udp::connected(to, from)?;
    for packet in 0..packets {
        udp::send_one(&socket, payload)?;
        if first && packet == 0 {
            neighbour::await_resolution()?;
        }
    }
    Ok(())
}

fn tcp_flow(from: u16, to: SocketAddr, payload: &[u8], writes: u32) -> Result<()> {
    let mut stream = tcp::connected(to, from)?;
    for _ in 0..writes {
        stream.write_all(payload)?;
    }
    tcp::finish(stream, u64::from(writes) * payload.len() as u64)
}

fn raise_descriptor_limit(wanted: u64) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        // Beyond the hard limit only with CAP_SYS_RESOURCE, which root in a container may lack.
        limit.maximum = limit.maximum.map(|maximum| maximum.max(wanted));
        setrlimit(Resource::Nofile, limit).with_context(|| {
            format!("cannot raise the limit of open files to {wanted}: use more ports")
        })?;
    }
    Ok(())
}
