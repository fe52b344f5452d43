//! The traffic that is measured: how many flows, in which order, and against which table.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Ipv4 { "IPv4" } else { "IPv6" })
    }
}

/// Where packets are seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Seat {
    /// On an interface of a pod.
    Interface,
    /// At a socket, by this program.
    Socket(&'static str, Whose),
}

/// Whose socket it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The node's own: it is counted.
    Ours,
    /// A pod's with a network namespace of its own: it is let alone.
    Others,
}

/// One kind of traffic.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) family: Family,
    pub(super) seat: Seat,
    pub(super) flows: u32,
    /// Packets of one flow that come in a row, as a power of two.
    pub(super) in_a_row: u32,
    /// Entries of the flow table.
    pub(super) table: u32,
    /// Nanoseconds over the floor that we aim at.
    pub(super) aim: Option<f64>,
    /// How many times as long as its floor the probe may take before the gate closes. Far above what
    /// is measured: a gate that a noisy neighbour can close gets switched off.
    pub(super) at_most: f64,
}

/// Every case, for both families.
pub(super) fn all() -> impl Iterator<Item = Case> {
    [Family::Ipv4, Family::Ipv6].into_iter().flat_map(of)
}

fn of(family: Family) -> [Case; 9] {
    let one = Case {
        name: "one flow",
        family,
        seat: Seat::Interface,
        flows: 1,
        in_a_row: 0,
        table: 65_536,
        aim: Some(10.0),
        at_most: 2.0,
    };
    let hot = Case {
        name: "4,096 flows, in any order",
        flows: 4_096,
        aim: Some(40.0),
        at_most: 5.0,
        ..one
    };
    let bursts = Case {
        name: "4,096 flows, 16 packets in a row",
        in_a_row: 4,
        aim: None,
        at_most: 3.0,
        ..hot
    };
    let large = Case {
        name: "100,000 flows, table of 131,072",
        flows: 100_000,
        table: 131_072,
        aim: None,
        at_most: 10.0,
        ..hot
    };
    let overflow = Case { name: "100,000 flows, table of 65,536", table: 65_536, ..large };
    let socket = |name, program, whose, at_most| Case {
        name,
        seat: Seat::Socket(program, whose),
        aim: None,
        at_most,
        ..one
    };
    let newer = "orb8_host_ingress";
    let older = "orb8_host_ingress_listed";
    [
        one,
        hot,
        bursts,
        large,
        overflow,
        socket("socket of a pod", newer, Whose::Others, 2.0),
        socket("socket of the node", newer, Whose::Ours, 5.0),
        socket("socket of a pod, before Linux 6.15", older, Whose::Others, 3.0),
        socket("socket of the node, before 6.15", older, Whose::Ours, 5.0),
    ]
}

/// Bytes of Ethernet, IP, TCP and some payload.
const LENGTH: usize = 128;

impl Family {
    /// A TCP segment as most packets are: with ACK, without options.
    pub(super) fn packet(self) -> [u8; LENGTH] {
        let mut packet = [0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| packet[at..at + bytes.len()].copy_from_slice(bytes);
        let transport = match self {
            Self::Ipv4 => {
                put(12, &[0x08, 0x00, 0x45, 0, 0, 114, 0, 0, 0x40, 0, 64, 6]);
                put(26, &[10, 0, 0, 1, 10, 1, 0, 1]);
                34
            }
            Self::Ipv6 => {
                put(12, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 74, 6, 64]);
                put(22, &[0xfd, 0, 0, 1]);
                put(38, &[0xfd, 0, 0, 2]);
                54
            }
        };
        put(transport, &[0x9c, 0x40, 0x01, 0xbb]); // 40000 to 443
        put(transport + 12, &[0x50, 0x10, 0xff, 0xff]); // 5 words, ACK
        packet
    }
}
