//! Flows as the wire carries them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use orb8_common::network::{Counts, VLAN_PRESENT, family, key_flags};
use orb8_proto::{Direction, NetworkFlow};

use super::{
    give::Flowless,
    interfaces::{Interface, Side},
    maps::FlowId,
    table::Flow,
};
use crate::{enricher::Identity, probe_loader::Hook};

/// EtherTypes that have a name of their own (IEEE 802 numbers).
const ETHERTYPES: [(u16, &str); 5] =
    [(0x0806, "arp"), (0x88cc, "lldp"), (0x8809, "lacp"), (0x8847, "mpls"), (0x888e, "eapol")];

/// Source and destination.
pub(super) fn addresses(id: &FlowId) -> (IpAddr, IpAddr) {
    let address = |words: &[u32; 4]| -> IpAddr {
        if id.family == family::V4 {
            return Ipv4Addr::from(words[0].to_ne_bytes()).into();
        }
        let mut octets = [0; 16];
        for (octets, word) in octets.chunks_exact_mut(4).zip(words) {
            octets.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    };
    (address(&id.key.src), address(&id.key.dst))
}

/// What `hook` of an interface means to the workload or the node.
pub(super) const fn direction(hook: Hook, side: Side) -> Direction {
    match (hook, side) {
        (Hook::Ingress, Side::Workload) | (Hook::Egress, Side::Host) => Direction::Egress,
        (Hook::Egress, Side::Workload) | (Hook::Ingress, Side::Host) => Direction::Ingress,
    }
}

/// The address of the workload or the node.
pub(super) fn local_address(id: &FlowId, side: Side) -> IpAddr {
    let (src, dst) = addresses(id);
    if direction(id.hook(), side) == Direction::Egress { src } else { dst }
}

/// IANA keyword in lower case where there is a common one.
fn protocol(id: &FlowId) -> String {
    if id.key.flags & key_flags::NOT_IP != 0 {
        let known = ETHERTYPES.iter().find(|(number, _)| *number == id.key.src_port);
        return known.map_or_else(
            || format!("ethertype-0x{:04x}", id.key.src_port),
            |(_, name)| (*name).into(),
        );
    }
    let keyword = match id.key.protocol {
        1 => "icmp",
        2 => "igmp",
        4 => "ipv4",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "ipv6-icmp",
        89 => "ospfigp",
        112 => "vrrp",
        132 => "sctp",
        136 => "udplite",
        other => return format!("protocol-{other}"),
    };
    keyword.into()
}

/// The owner's part of a record, and the interface's. Counters, times and state are still to be set.
pub(super) fn frame(node: &str, id: &FlowId, flow: &Flow, interface: &Interface) -> NetworkFlow {
    let key = &id.key;
    let is_ip = key.flags & key_flags::NOT_IP == 0;
    let is_icmp = is_ip && matches!(key.protocol, 1 | 58) && key.flags & key_flags::FRAGMENT == 0;
    let (src, dst) = addresses(id);
    let direction = direction(id.hook(), interface.side);
    let identity = flow.attribution.identity.as_deref();
    let text = |of: fn(&Identity) -> &str| identity.map_or("", of).to_owned();
    let port = |number: u16| if is_ip && !is_icmp { u32::from(number) } else { 0 };
    NetworkFlow {
        namespace: text(|i| &i.namespace),
        pod_name: text(|i| &i.pod_name),
        pod_uid: text(|i| &i.pod_uid),
        container: text(|i| &i.container),
        container_id: text(|i| &i.container_id),
        unit: text(|i| &i.unit),
        src_ip: if is_ip { src.to_string() } else { String::new() },
        dst_ip: if is_ip { dst.to_string() } else { String::new() },
        src_port: port(key.src_port),
        dst_port: port(key.dst_port),
        protocol: protocol(id),
        direction: direction.into(),
        attributed_by: orb8_proto::AttributedBy::from(flow.attribution.by).into(),
        interface: interface.name.to_string(),
        node: node.into(),
        vlan_id: (key.vlan & VLAN_PRESENT != 0).then_some(u32::from(key.vlan & 0xfff)),
        icmp_type: is_icmp.then_some(u32::from(key.src_port)),
        icmp_code: is_icmp.then_some(u32::from(key.dst_port)),
        fragment: key.flags & key_flags::FRAGMENT != 0,
        malformed: key.flags & key_flags::MALFORMED != 0,
        tcp_flags: tcp_flags(flow),
        opened_by: flow.opening.opened_by(direction == Direction::Egress).into(),
        workload: text(|i| i.workload.as_deref().unwrap_or_default()),
        ..NetworkFlow::default()
    }
}

/// A record of packets that have no flow of their own. Counters and time are still to be set.
pub(super) fn without_flow(node: &str, given: &Flowless) -> NetworkFlow {
    let attribution = &given.attribution;
    let identity = attribution.identity.as_deref();
    let text = |of: fn(&Identity) -> &str| identity.map_or("", of).to_owned();
    NetworkFlow {
        namespace: text(|i| &i.namespace),
        pod_name: text(|i| &i.pod_name),
        pod_uid: text(|i| &i.pod_uid),
        container: text(|i| &i.container),
        container_id: text(|i| &i.container_id),
        workload: text(|i| i.workload.as_deref().unwrap_or_default()),
        unit: text(|i| &i.unit),
        direction: given.direction.into(),
        attributed_by: orb8_proto::AttributedBy::from(attribution.by).into(),
        interface: given.interface.to_string(),
        node: node.into(),
        state: given.state.into(),
        ..NetworkFlow::default()
    }
}

fn tcp_flags(flow: &Flow) -> String {
    let seen = [(flow.syn, "SYN"), (flow.fin, "FIN"), (flow.rst, "RST")];
    let names: Vec<&str> = seen.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    names.join(",")
}

/// Sets the counters of a record.
pub(super) fn set_counts(record: &mut NetworkFlow, counts: &Counts) {
    record.bytes = counts.bytes;
    record.packets = counts.packets;
    record.wire_packets = counts.packets + counts.extra_segments;
}
