//! From bytes to a flow key. No I/O and no kernel types: the same code runs in the probe and in
//! property tests on the host.
//!
//! Formats: IEEE 802.3 and 802.1Q, RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP).

use orb8_common::network::{FlowKey4, FlowKey6, VLAN_PRESENT, key_flags};

/// Something that headers can be read from.
pub trait Packet {
    /// Leave packets with VLAN tags or IPv6 extension headers for a second look, and call them
    /// malformed: the first look is at every packet, and small.
    const FIRST_LOOK: bool;
    /// Reading a header is a call of the kernel.
    const BY_CALLS: bool = false;

    /// The header at `offset`, or `None` if the packet ends before it does.
    fn header<T: Header>(&self, offset: usize) -> Option<T>;
}

/// A fixed part of a protocol header as it lies in the packet.
///
/// # Safety
/// Implementors are `repr(C)`, have no padding and are valid for every bit pattern.
#[expect(unsafe_code, reason = "the probe reads packets through raw pointers")]
pub unsafe trait Header: Copy {}

macro_rules! header {
    ($name:ident { $($field:ident: $type:ty),+ $(,)? }) => {
        #[derive(Clone, Copy)]
        #[repr(C)]
        struct $name { $($field: $type),+ }
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())+);
        // SAFETY: repr(C) integers; the assertion above leaves no room for padding.
        #[expect(unsafe_code, reason = "see `Header`")]
        unsafe impl Header for $name {}
    };
}

header!(Ethernet { addresses: [u16; 6], ethertype: u16 });
header!(VlanTag { control: u16, ethertype: u16 });
header!(Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    src: u32,
    dst: u32,
});
header!(Ipv6 {
    version_class: u8,
    class_label: [u8; 3],
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    src: [u64; 2],
    dst: [u64; 2],
});
header!(Extension { next_header: u8, length: u8, fragment: u16 });
header!(Ports { src: u16, dst: u16 });
header!(Tcp {
    src: u16,
    dst: u16,
    sequence: u32,
    acknowledgement: u32,
    offset: u8,
    flags: u8,
    window: u16
});
header!(Icmp { kind: u8, code: u8 });

/// How a packet of this interface begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// With an Ethernet header.
    Ethernet,
    /// With the network header; the EtherType comes from elsewhere (tun, WireGuard, IP tunnels).
    Network(u16),
}

/// Where and how a packet was seen: the part of the key that is not in the packet.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// First header.
    pub layer: Layer,
    /// Interface index.
    pub ifindex: u32,
    /// [`key_flags::HOOK_EGRESS`] or 0.
    pub direction: u8,
    /// VLAN tag that the hardware took off, with [`VLAN_PRESENT`], or 0.
    pub vlan: u16,
}

/// What becomes of a packet's flow. Every packet has one: what cannot be read is left zero and
/// flagged [`key_flags::MALFORMED`].
///
/// A visitor and not a returned enum: so each family's key stays in registers up to the comparison
/// that most packets end with.
pub trait Visitor {
    /// An IPv4 packet. `tcp_flags` is 0 for everything but TCP.
    fn ipv4(self, key: FlowKey4, tcp_flags: u8);
    /// An IPv6 packet.
    fn ipv6(self, key: FlowKey6, tcp_flags: u8);
    /// Not IP, or not enough of it to have addresses.
    fn other(self, key: FlowKey4);
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_QINQ_OLD: u16 = 0x9100;

const VLAN_ID: u16 = 0x0fff;
/// Tags in a stack that are stepped over; real networks use two.
const MAX_VLAN_TAGS: usize = 3;
/// Extension headers that are stepped over. RFC 8200 has at most one of each kind but two of one.
const MAX_EXTENSIONS: usize = 8;

/// IANA protocol numbers whose headers are read.
mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ICMP: u8 = 1;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const DCCP: u8 = 33;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const ICMPV6: u8 = 58;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
    pub(super) const SCTP: u8 = 132;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const UDP_LITE: u8 = 136;
    pub(super) const HIP: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
}

/// Finds the flow of a packet that was seen at `at`.
#[inline(always)]
pub fn parse(packet: &impl Packet, at: Sighting, visitor: impl Visitor) {
    let (link, at) = link(packet, at);
    let mut flags = link.flags;
    match link.ethertype {
        ETHERTYPE_IPV4 if flags == 0 => {
            if let Some(ip) = packet.header::<Ipv4>(link.length) {
                let transport = ipv4(packet, &ip, link.length);
                return visitor.ipv4(key4(&ip, at, &transport), transport.tcp_flags);
            }
            flags = key_flags::MALFORMED;
        }
        ETHERTYPE_IPV6 if flags == 0 => {
            if let Some(ip) = packet.header::<Ipv6>(link.length) {
                let (protocol, transport) = ipv6(packet, &ip, link.length);
                return visitor.ipv6(key6(&ip, protocol, at, &transport), transport.tcp_flags);
            }
            flags = key_flags::MALFORMED;
        }
        _ => {}
    }
    visitor.other(not_ip(at, link.ethertype, flags));
}

/// The flow of packets that cannot be looked into at all.
#[inline(always)]
pub const fn unreadable(at: Sighting) -> FlowKey4 {
    not_ip(at, 0, key_flags::MALFORMED)
}

#[inline(always)]
const fn not_ip(at: Sighting, ethertype: u16, flags: u8) -> FlowKey4 {
    FlowKey4 {
        src: [0],
        dst: [0],
        src_port: ethertype,
        dst_port: 0,
        ifindex: at.ifindex,
        vlan: at.vlan,
        protocol: 0,
        flags: at.direction | key_flags::NOT_IP | flags,
    }
}

/// The link header with its VLAN tags.
struct Link {
    length: usize,
    ethertype: u16,
    /// 0, or [`key_flags::MALFORMED`].
    flags: u8,
}

#[inline(always)]
fn link<P: Packet>(packet: &P, mut at: Sighting) -> (Link, Sighting) {
    let mut link = match at.layer {
        Layer::Network(ethertype) => Link { length: 0, ethertype, flags: 0 },
        Layer::Ethernet => match packet.header::<Ethernet>(0) {
            Some(ethernet) => Link {
                length: size_of::<Ethernet>(),
                ethertype: u16::from_be(ethernet.ethertype),
                flags: 0,
            },
            None => Link { length: 0, ethertype: 0, flags: key_flags::MALFORMED },
        },
    };
    for _ in 0..MAX_VLAN_TAGS {
        if !matches!(link.ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_QINQ_OLD) {
            break;
        }
        if P::FIRST_LOOK {
            link.flags = key_flags::MALFORMED;
            break;
        }
        let Some(tag) = packet.header::<VlanTag>(link.length) else {
            link.flags = key_flags::MALFORMED;
            break;
        };
        if at.vlan == 0 {
            at.vlan = u16::from_be(tag.control) & VLAN_ID | VLAN_PRESENT;
        }
        link.ethertype = u16::from_be(tag.ethertype);
        link.length += size_of::<VlanTag>();
    }
    (link, at)
}

#[inline(always)]
fn ipv4(packet: &impl Packet, ip: &Ipv4, offset: usize) -> Transport {
    const FRAGMENT_OFFSET: u16 = 0x1fff;
    let header_length = usize::from(ip.version_ihl & 0x0f) * 4;
    if ip.version_ihl >> 4 != 4 || header_length < size_of::<Ipv4>() {
        Transport::MALFORMED
    } else if u16::from_be(ip.fragment) & FRAGMENT_OFFSET != 0 {
        Transport::FRAGMENT
    } else {
        let end = end_of(offset, u16::from_be(ip.total_length));
        transport(packet, ip.protocol, offset + header_length, end)
    }
}

/// Where the IP packet ends: short Ethernet frames are padded, and padding has no ports. A length of
/// zero says nothing (GSO packets over 64 KiB have it).
#[inline(always)]
const fn end_of(start: usize, length: u16) -> usize {
    if length == 0 { usize::MAX } else { start + length as usize }
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, ip: &Ipv6, offset: usize) -> (u8, Transport) {
    if P::FIRST_LOOK && is_extension(ip.next_header) {
        (ip.next_header, Transport::MALFORMED)
    } else if ip.version_class >> 4 == 6 {
        let start = offset + size_of::<Ipv6>();
        let end = end_of(start, u16::from_be(ip.payload_length));
        upper_layer(packet, ip.next_header, start, end)
    } else {
        (ip.next_header, Transport::MALFORMED)
    }
}

#[inline(always)]
const fn key4(ip: &Ipv4, at: Sighting, transport: &Transport) -> FlowKey4 {
    FlowKey4 {
        src: [ip.src],
        dst: [ip.dst],
        src_port: transport.src_port,
        dst_port: transport.dst_port,
        ifindex: at.ifindex,
        vlan: at.vlan,
        protocol: ip.protocol,
        flags: at.direction | transport.flags,
    }
}

#[inline(always)]
const fn key6(ip: &Ipv6, protocol: u8, at: Sighting, transport: &Transport) -> FlowKey6 {
    FlowKey6 {
        src: quarters(ip.src),
        dst: quarters(ip.dst),
        src_port: transport.src_port,
        dst_port: transport.dst_port,
        ifindex: at.ifindex,
        vlan: at.vlan,
        protocol,
        flags: at.direction | transport.flags,
    }
}

/// An address as keys have it. It is read in halves, so that it is loaded as such.
#[inline(always)]
const fn quarters([first, second]: [u64; 2]) -> [u32; 4] {
    #[inline(always)]
    const fn split(half: u64) -> [u32; 2] {
        let [a, b, c, d, e, f, g, h] = half.to_ne_bytes();
        [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
    }
    let ([a, b], [c, d]) = (split(first), split(second));
    [a, b, c, d]
}

/// Steps over IPv6 extension headers to the upper layer.
#[inline(always)]
fn upper_layer<P: Packet>(packet: &P, first: u8, start: usize, end: usize) -> (u8, Transport) {
    let mut at = Chain { next: first, offset: start };
    if P::BY_CALLS {
        let ended = eight(packet, &mut at);
        // One more than there may be: what is behind it stays unknown.
        let ended = ended.or(is_extension(at.next).then_some(Transport::MALFORMED));
        if let Some(ended) = ended {
            return (at.next, ended);
        }
        return (at.next, transport(packet, at.next, at.offset, end));
    }
    let mut extensions = 0;
    while !P::FIRST_LOOK && is_extension(at.next) {
        let Some(extension) = packet.header::<Extension>(at.offset) else {
            return (at.next, Transport::MALFORMED);
        };
        if extensions == MAX_EXTENSIONS {
            return (at.next, Transport::MALFORMED);
        }
        extensions += 1;
        if at.pass(&extension) {
            return (at.next, Transport::FRAGMENT);
        }
    }
    (at.next, transport(packet, at.next, at.offset, end))
}

/// A place in a chain of headers.
struct Chain {
    next: u8,
    offset: usize,
}

impl Chain {
    /// Steps over an extension header. True: it is that of a later fragment, and what follows is not a
    /// header.
    #[inline(always)]
    fn pass(&mut self, extension: &Extension) -> bool {
        const FRAGMENT_OFFSET: u16 = 0xfff8;
        // Lengths do not count the first 8 octets, and are in units of 8 (RFC 8200), but for AH
        // (RFC 4302), where they are in units of 4, and the fragment header, which has none.
        self.offset += 8 + match self.next {
            protocol::FRAGMENT => 0,
            protocol::AUTHENTICATION => usize::from(extension.length) * 4,
            _ => usize::from(extension.length) * 8,
        };
        let later_fragment = self.next == protocol::FRAGMENT
            && u16::from_be(extension.fragment) & FRAGMENT_OFFSET != 0;
        self.next = extension.next_header;
        later_fragment
    }
}

const _: () = assert!(MAX_EXTENSIONS == 8);

/// Steps over eight extension headers, or as many as there are. `Some`: there is nothing to be read
/// behind them.
///
/// Not a loop: the verifiers of 5.10 and 6.1 take one only if no instruction runs into its first one,
/// and with calls in it the compiler places it so that one does. Where there are none, a loop is half
/// the work for the verifier.
#[inline(always)]
fn eight<P: Packet>(packet: &P, at: &mut Chain) -> Option<Transport> {
    four(packet, at).or_else(|| four(packet, at))
}

#[inline(always)]
fn four<P: Packet>(packet: &P, at: &mut Chain) -> Option<Transport> {
    two(packet, at).or_else(|| two(packet, at))
}

#[inline(always)]
fn two<P: Packet>(packet: &P, at: &mut Chain) -> Option<Transport> {
    step(packet, at).or_else(|| step(packet, at))
}

#[inline(always)]
fn step<P: Packet>(packet: &P, at: &mut Chain) -> Option<Transport> {
    if !is_extension(at.next) {
        return None;
    }
    let Some(extension) = packet.header::<Extension>(at.offset) else {
        return Some(Transport::MALFORMED);
    };
    at.pass(&extension).then_some(Transport::FRAGMENT)
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
    )
}

#[derive(Clone, Copy)]
struct Transport {
    src_port: u16,
    dst_port: u16,
    tcp_flags: u8,
    flags: u8,
}

impl Transport {
    const NONE: Self = Self { src_port: 0, dst_port: 0, tcp_flags: 0, flags: 0 };
    const FRAGMENT: Self = Self { flags: key_flags::FRAGMENT, ..Self::NONE };
    const MALFORMED: Self = Self { flags: key_flags::MALFORMED, ..Self::NONE };
}

#[inline(always)]
fn transport(packet: &impl Packet, protocol: u8, offset: usize, end: usize) -> Transport {
    let read = match protocol {
        protocol::TCP => within(packet, offset, end).map(|tcp: Tcp| Transport {
            src_port: u16::from_be(tcp.src),
            dst_port: u16::from_be(tcp.dst),
            tcp_flags: tcp.flags,
            flags: 0,
        }),
        protocol::UDP | protocol::UDP_LITE | protocol::SCTP | protocol::DCCP => {
            within(packet, offset, end).map(|ports: Ports| Transport {
                src_port: u16::from_be(ports.src),
                dst_port: u16::from_be(ports.dst),
                ..Transport::NONE
            })
        }
        protocol::ICMP | protocol::ICMPV6 => {
            within(packet, offset, end).map(|icmp: Icmp| Transport {
                src_port: u16::from(icmp.kind),
                dst_port: u16::from(icmp.code),
                ..Transport::NONE
            })
        }
        _ => Some(Transport::NONE),
    };
    match read {
        Some(transport) => transport,
        None => Transport::MALFORMED,
    }
}

/// The header at `offset`, if the IP packet holds it.
#[inline(always)]
fn within<T: Header>(packet: &impl Packet, offset: usize, end: usize) -> Option<T> {
    if offset + size_of::<T>() > end { None } else { packet.header(offset) }
}
