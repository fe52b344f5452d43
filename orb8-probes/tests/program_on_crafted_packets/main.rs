//! The program that the kernel accepted, packet by packet: what it reads, and what it counts.
//!
//! Test runs have all of a packet in one piece. Packets in several pieces are for the end-to-end
//! tests, with real sockets.

mod counts;
mod events;
mod keys;
#[path = "../packets/mod.rs"]
mod packets;
mod probe;
mod sockets;

use orb8_common::network::Counts;
use packets::{Ipv4, Ipv6, Link, Network, Packet, Place, Upper};
use probe::IFINDEX;

const INGRESS: Place = Place { ifindex: IFINDEX, egress: false, vlan: None };
const EGRESS: Place = Place { egress: true, ..INGRESS };

fn program(place: Place, link: &Link) -> &'static str {
    match (link, place.egress) {
        (Link::Ethernet(_), false) => "orb8_ingress",
        (Link::Ethernet(_), true) => "orb8_egress",
        (Link::None, false) => "orb8_ingress_l3",
        (Link::None, true) => "orb8_egress_l3",
    }
}

/// A plain datagram of flow number `flow`.
fn udp(flow: u16, v6: bool) -> Packet {
    plain(flow, Upper::Udp([40_000 + flow % 20_000, 443]), v6)
}

/// A plain IPv4 segment, always of the same flow.
fn tcp(flags: u8) -> Packet {
    plain(0, Upper::Tcp { ports: [40_000, 443], flags }, false)
}

fn plain(flow: u16, upper: Upper, v6: bool) -> Packet {
    let [high, low] = flow.to_be_bytes();
    let network = if v6 {
        let (mut src, mut dst) = ([0; 16], [0; 16]);
        src[..4].copy_from_slice(&[0xfd, 0, high, low]);
        dst[..2].copy_from_slice(&[0xfd, 1]);
        Network::Ipv6(Ipv6 { version: 6, src, dst, extensions: vec![], upper })
    } else {
        let (src, dst) = ([10, 0, high, low], [10, 1, 0, 1]);
        Network::Ipv4(Ipv4 { version: 4, words: 5, fragment_offset: 0, src, dst, upper })
    };
    Packet { link: Link::Ethernet(vec![]), network }
}

fn one(bytes: &[u8]) -> Counts {
    Counts { packets: 1, bytes: bytes.len() as u64, extra_segments: 0 }
}
