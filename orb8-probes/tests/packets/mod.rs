//! Packets to the byte, each with the right answer for every length at which it may be cut.
//!
//! Nothing here is taken from the parser but the policy that it states: which headers are read, how
//! far, and how many of a kind are stepped over.

mod craft;
pub(crate) mod host;
pub(crate) mod strategy;

use orb8_common::network::{FlowKey4, FlowKey6};

/// Tags that an observer steps over.
pub(crate) const MAX_VLAN_TAGS: usize = 3;
/// IPv6 extension headers that an observer steps over.
pub(crate) const MAX_EXTENSIONS: usize = 8;
/// Where a packet is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) ifindex: u32,
    pub(crate) egress: bool,
    /// Identifier of the tag that the hardware took off.
    pub(crate) vlan: Option<u16>,
}

/// A flow key of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    V4(FlowKey4),
    V6(FlowKey6),
}

/// What an observer should make of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) key: Key,
    pub(crate) tcp_flags: u8,
}

/// A packet as one would describe it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) link: Link,
    pub(crate) network: Network,
}

#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// Ethernet II with a stack of tags, outermost first.
    Ethernet(Vec<Tag>),
    /// The device says what the packet is, and it begins with the network header.
    None,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag {
    pub(crate) ethertype: u16,
    pub(crate) control: u16,
}

#[derive(Clone, Debug)]
pub(crate) enum Network {
    Ipv4(Ipv4),
    Ipv6(Ipv6),
    /// Neither: ARP, LLDP, …
    Other(u16),
}

#[derive(Clone, Debug)]
pub(crate) struct Ipv4 {
    pub(crate) version: u8,
    /// Length of the header in words of 4 octets; less than 5 is a lie.
    pub(crate) words: u8,
    /// In units of 8 octets.
    pub(crate) fragment_offset: u16,
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
    pub(crate) upper: Upper,
}

#[derive(Clone, Debug)]
pub(crate) struct Ipv6 {
    pub(crate) version: u8,
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
    pub(crate) extensions: Vec<Extension>,
    pub(crate) upper: Upper,
}

/// An IPv6 extension header; the number is its length field.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extension {
    HopByHop(u8),
    Routing(u8),
    Destination(u8),
    Mobility(u8),
    Hip(u8),
    Shim6(u8),
    Authentication(u8),
    /// The offset, in units of 8 octets.
    Fragment(u16),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Upper {
    Tcp {
        ports: [u16; 2],
        flags: u8,
    },
    Udp([u16; 2]),
    UdpLite([u16; 2]),
    Sctp([u16; 2]),
    Dccp([u16; 2]),
    Icmp([u8; 2]),
    Icmpv6([u8; 2]),
    /// A protocol without ports: GRE, ESP, IGMP, …
    Portless(u8),
}

/// The bytes of a packet and its answers.
pub(crate) struct Crafted {
    pub(crate) bytes: Vec<u8>,
    /// Each holds from its length on, up to the next.
    answers: Vec<(usize, Answer)>,
}

impl Crafted {
    /// The right answer where only the first `length` bytes can be seen.
    pub(crate) fn answer(&self, length: usize) -> Answer {
        self.answers.iter().rev().find(|(from, _)| *from <= length).expect("one holds from 0 on").1
    }
}

impl Packet {
    /// The EtherType that a device without link header says beside the packet.
    pub(crate) fn ethertype(&self) -> u16 {
        match self.network {
            Network::Ipv4(_) => 0x0800,
            Network::Ipv6(_) => 0x86dd,
            Network::Other(ethertype) => ethertype,
        }
    }
}
