//! Descriptions of packets for property tests: mostly sound, all of them possible on a wire.

use proptest::{array, collection::vec, prelude::*};

use super::{
    Extension, Ipv4, Ipv6, Link, MAX_EXTENSIONS, MAX_VLAN_TAGS, Network, Packet, Place, Tag, Upper,
};

/// Anything that a device may hand over.
pub(crate) fn packet() -> impl Strategy<Value = Packet> {
    (prop_oneof![3 => ethernet(), 1 => Just(Link::None)], network())
        .prop_map(|(link, network)| Packet { link, network })
}

/// A link header with up to one tag more than are stepped over.
pub(crate) fn ethernet() -> impl Strategy<Value = Link> {
    let tag = (prop_oneof![Just(0x8100), Just(0x88a8), Just(0x9100)], any::<u16>())
        .prop_map(|(ethertype, control)| Tag { ethertype, control });
    vec(tag, 0..=MAX_VLAN_TAGS + 1).prop_map(Link::Ethernet)
}

pub(crate) fn network() -> impl Strategy<Value = Network> {
    let other = prop_oneof![Just(0x0806), Just(0x88cc), Just(0x8847), 0..0x0600_u16];
    prop_oneof![
        5 => ipv4().prop_map(Network::Ipv4),
        5 => ipv6().prop_map(Network::Ipv6),
        1 => other.prop_map(Network::Other),
    ]
}

/// An interface, a direction, and perhaps a tag that the hardware took off.
pub(crate) fn place() -> impl Strategy<Value = Place> {
    (any::<u32>(), any::<bool>(), proptest::option::of(0..0x1000_u16))
        .prop_map(|(ifindex, egress, vlan)| Place { ifindex, egress, vlan })
}

fn ipv4() -> impl Strategy<Value = Ipv4> {
    let version = prop_oneof![20 => Just(4), 1 => 0..16_u8];
    let words = prop_oneof![4 => Just(5), 4 => 5..16_u8, 1 => 0..5_u8];
    (version, words, fragment_word(), any::<[u8; 4]>(), any::<[u8; 4]>(), upper()).prop_map(
        |(version, words, fragment_offset, src, dst, upper)| Ipv4 {
            version,
            words,
            fragment_offset,
            src,
            dst,
            upper,
        },
    )
}

/// An offset with the flags above it: don't fragment, more fragments.
fn fragment_word() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => prop_oneof![Just(0), Just(0x4000), Just(0x2000), Just(0xe000)],
        // Each end of the field, where a mask that is a bit too short would not see it.
        1 => prop_oneof![Just(1), Just(0x1000)],
        1 => (1..0x2000_u16).prop_map(|offset| offset | 0x2000),
        1 => 1..0x2000_u16,
    ]
}

fn ipv6() -> impl Strategy<Value = Ipv6> {
    let version = prop_oneof![20 => Just(6), 1 => 0..16_u8];
    let extensions = prop_oneof![
        2 => Just(Vec::new()),
        4 => vec(extension(), 1..4),
        1 => vec(extension(), 4..=MAX_EXTENSIONS + 2),
    ];
    (version, array::uniform16(any::<u8>()), array::uniform16(any::<u8>()), extensions, upper())
        .prop_map(|(version, src, dst, extensions, upper)| Ipv6 {
            version,
            src,
            dst,
            extensions,
            upper,
        })
}

fn extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        4 => (0..6_u8).prop_map(Extension::HopByHop),
        4 => (0..6_u8).prop_map(Extension::Routing),
        4 => (0..6_u8).prop_map(Extension::Destination),
        2 => (0..2_u8).prop_map(Extension::Mobility),
        2 => (0..2_u8).prop_map(Extension::Hip),
        2 => (0..2_u8).prop_map(Extension::Shim6),
        4 => (1..9_u8).prop_map(Extension::Authentication),
        4 => Just(Extension::Fragment(0)),
        1 => prop_oneof![Just(1), Just(0x1000)].prop_map(Extension::Fragment),
        1 => (1..0x2000_u16).prop_map(Extension::Fragment),
        // So long that what follows is out of any sight.
        1 => any::<u8>().prop_map(Extension::Destination),
    ]
}

fn upper() -> impl Strategy<Value = Upper> {
    let ports = || any::<[u16; 2]>();
    prop_oneof![
        4 => (ports(), any::<u8>()).prop_map(|(ports, flags)| Upper::Tcp { ports, flags }),
        4 => ports().prop_map(Upper::Udp),
        1 => ports().prop_map(Upper::UdpLite),
        1 => ports().prop_map(Upper::Sctp),
        1 => ports().prop_map(Upper::Dccp),
        1 => any::<[u8; 2]>().prop_map(Upper::Icmp),
        1 => any::<[u8; 2]>().prop_map(Upper::Icmpv6),
        // IGMP, IPIP, IPv6-in-IP, GRE, ESP, no next header, OSPF, 253
        2 => proptest::sample::select(vec![2, 4, 41, 47, 50, 59, 89, 253]).prop_map(Upper::Portless),
    ]
}
