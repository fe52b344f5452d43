//! Putting a packet together, and writing down beside it what an observer of so many bytes should
//! find.

use orb8_common::network::{FlowKey4, FlowKey6, VLAN_PRESENT, key_flags};

use super::{
    Answer, Crafted, Extension, Ipv4, Ipv6, Key, Link, MAX_EXTENSIONS, MAX_VLAN_TAGS, Network,
    Packet, Place, Upper,
};

/// What follows the headers. Taken for a port, it is one that a test should notice.
const PAYLOAD: [u8; 24] = [0xa5; 24];

impl Packet {
    /// The bytes of this packet when it is seen at `place`.
    pub(crate) fn craft(&self, place: Place) -> Crafted {
        let mut craft = Craft {
            bytes: Vec::new(),
            answers: Vec::new(),
            open: true,
            at: FlowKey4 {
                src: [0],
                dst: [0],
                src_port: 0,
                dst_port: 0,
                ifindex: place.ifindex,
                vlan: place.vlan.map_or(0, |id| id | VLAN_PRESENT),
                protocol: 0,
                flags: if place.egress { key_flags::HOOK_EGRESS } else { 0 },
            },
        };
        craft.link(&self.link, self.ethertype());
        match &self.network {
            Network::Ipv4(ip) => craft.ipv4(ip),
            Network::Ipv6(ip) => craft.ipv6(ip),
            Network::Other(_) => {}
        }
        craft.bytes.extend(PAYLOAD);
        Crafted { bytes: craft.bytes, answers: craft.answers }
    }
}

/// A packet being put together.
struct Craft {
    bytes: Vec<u8>,
    answers: Vec<(usize, Answer)>,
    /// Whether more bytes still make for a better answer.
    open: bool,
    /// What place and link header say.
    at: FlowKey4,
}

impl Craft {
    /// From `length` bytes on, `key` is the answer.
    fn known_from(&mut self, length: usize, key: Key, tcp_flags: u8) {
        if self.open {
            self.answers.push((length, Answer { key, tcp_flags }));
        }
    }

    /// With all the bytes that there are by now, the packet is of this type and no more is known.
    fn not_ip(&mut self, ethertype: u16, flags: u8) {
        let flags = self.at.flags | key_flags::NOT_IP | flags;
        let key = FlowKey4 { src_port: ethertype, flags, ..self.at };
        self.known_from(self.bytes.len(), Key::V4(key), 0);
    }

    fn link(&mut self, link: &Link, network: u16) {
        let mut tags = 0;
        if let Link::Ethernet(stack) = link {
            self.not_ip(0, key_flags::MALFORMED);
            self.bytes.extend([0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2]);
            for tag in stack {
                self.bytes.extend(tag.ethertype.to_be_bytes());
                if tags == MAX_VLAN_TAGS {
                    self.not_ip(tag.ethertype, 0);
                    self.open = false;
                }
                self.not_ip(tag.ethertype, key_flags::MALFORMED);
                self.bytes.extend(tag.control.to_be_bytes());
                if self.at.vlan == 0 {
                    // The tag counts when its whole header is there, and the type ends that.
                    self.at.vlan = tag.control & 0x0fff | VLAN_PRESENT;
                }
                tags += 1;
            }
            self.bytes.extend(network.to_be_bytes());
        }
        let is_ip = matches!(network, 0x0800 | 0x86dd);
        self.not_ip(network, if is_ip { key_flags::MALFORMED } else { 0 });
    }

    fn ipv4(&mut self, ip: &Ipv4) {
        let (start, protocol) = (self.bytes.len(), ip.upper.protocol());
        self.bytes.extend([ip.version << 4 | ip.words, 0xa5]);
        self.bytes.extend([0xa5; 4]); // total length and identification: not looked at
        self.bytes.extend(ip.fragment_offset.to_be_bytes());
        self.bytes.extend([64, protocol, 0xa5, 0xa5]);
        self.bytes.extend(ip.src);
        self.bytes.extend(ip.dst);
        self.bytes.extend(vec![0xa5; usize::from(ip.words.saturating_sub(5)) * 4]);

        let base = FlowKey4 {
            src: [u32::from_ne_bytes(ip.src)],
            dst: [u32::from_ne_bytes(ip.dst)],
            protocol,
            ..self.at
        };
        self.upper(start + 20, ip.upper, ip.flags(), |[src_port, dst_port], flags| {
            Key::V4(FlowKey4 { src_port, dst_port, flags: base.flags | flags, ..base })
        });
    }

    fn ipv6(&mut self, ip: &Ipv6) {
        let numbers = ip.extensions.iter().map(|extension| extension.number());
        let mut nexts = numbers.chain([ip.upper.protocol()]);
        let mut next = nexts.next().expect("at least the upper layer");

        let start = self.bytes.len();
        self.bytes.extend([ip.version << 4, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, next, 64]);
        self.bytes.extend(ip.src);
        self.bytes.extend(ip.dst);

        let base = FlowKey6 {
            src: words(ip.src),
            dst: words(ip.dst),
            src_port: 0,
            dst_port: 0,
            ifindex: self.at.ifindex,
            vlan: self.at.vlan,
            protocol: 0,
            flags: self.at.flags,
        };
        let key = |protocol, [src_port, dst_port]: [u16; 2], flags| {
            let flags = base.flags | flags;
            Key::V6(FlowKey6 { src_port, dst_port, protocol, flags, ..base })
        };
        let mut known = start + 40;
        let mut fault = (ip.version != 6).then_some(key_flags::MALFORMED);
        for (count, extension) in ip.extensions.iter().enumerate() {
            if fault.is_none() && count == MAX_EXTENSIONS {
                fault = Some(key_flags::MALFORMED);
            }
            self.known_from(known, key(next, [0, 0], fault.unwrap_or(key_flags::MALFORMED)), 0);
            self.open &= fault.is_none();

            // Four octets of an extension header say all that there is to know about it.
            known = self.bytes.len() + 4;
            next = nexts.next().expect("one more than there are extensions");
            self.bytes.extend(extension.bytes(next));
            fault = extension.is_later_fragment().then_some(key_flags::FRAGMENT);
        }
        self.upper(known, ip.upper, fault, |ports, flags| key(next, ports, flags));
    }

    /// The upper layer of a packet of which `known` bytes tell addresses and protocol. With `fault`
    /// nothing of it is to be read.
    fn upper(
        &mut self,
        known: usize,
        upper: Upper,
        fault: Option<u8>,
        key: impl Fn([u16; 2], u8) -> Key,
    ) {
        let start = self.bytes.len();
        let (needed, ports, tcp_flags) = upper.append(&mut self.bytes);
        match fault {
            Some(flags) => self.known_from(known, key([0, 0], flags), 0),
            None if needed == 0 => self.known_from(known, key([0, 0], 0), 0),
            None => {
                self.known_from(known, key([0, 0], key_flags::MALFORMED), 0);
                self.known_from(start + needed, key(ports, 0), tcp_flags);
            }
        }
    }
}

impl Ipv4 {
    /// Why nothing of the upper layer is to be read.
    fn flags(&self) -> Option<u8> {
        if self.version != 4 || self.words < 5 {
            Some(key_flags::MALFORMED)
        } else {
            (self.fragment_offset & 0x1fff != 0).then_some(key_flags::FRAGMENT)
        }
    }
}

impl Extension {
    fn number(self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing(_) => 43,
            Self::Fragment(_) => 44,
            Self::Authentication(_) => 51,
            Self::Destination(_) => 60,
            Self::Mobility(_) => 135,
            Self::Hip(_) => 139,
            Self::Shim6(_) => 140,
        }
    }

    fn is_later_fragment(self) -> bool {
        matches!(self, Self::Fragment(offset) if offset & 0x1fff != 0)
    }

    fn bytes(self, next: u8) -> Vec<u8> {
        let (length_field, size) = match self {
            Self::HopByHop(n)
            | Self::Routing(n)
            | Self::Destination(n)
            | Self::Mobility(n)
            | Self::Hip(n)
            | Self::Shim6(n) => (n, (usize::from(n) + 1) * 8),
            Self::Authentication(n) => (n, (usize::from(n) + 2) * 4),
            // A length field would be reserved here: what it holds must not be believed.
            Self::Fragment(_) => (0xa5, 8),
        };
        let mut bytes = vec![0xa5; size];
        bytes[0] = next;
        bytes[1] = length_field;
        if let Self::Fragment(offset) = self {
            bytes[2..4].copy_from_slice(&(offset << 3 | 1).to_be_bytes()); // more fragments follow
        }
        bytes
    }
}

impl Upper {
    pub(crate) fn protocol(self) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp(_) => 17,
            Self::UdpLite(_) => 136,
            Self::Sctp(_) => 132,
            Self::Dccp(_) => 33,
            Self::Icmp(_) => 1,
            Self::Icmpv6(_) => 58,
            Self::Portless(protocol) => protocol,
        }
    }

    /// Adds the header; says how much of it must be there to be read, and what it then tells.
    fn append(self, bytes: &mut Vec<u8>) -> (usize, [u16; 2], u8) {
        match self {
            Self::Tcp { ports, flags } => {
                bytes.extend(ports.map(u16::to_be_bytes).as_flattened());
                bytes.extend([0xa5; 8]);
                bytes.extend([0x50, flags]);
                bytes.extend([0xa5; 6]);
                (16, ports, flags)
            }
            Self::Udp(ports) | Self::UdpLite(ports) | Self::Sctp(ports) | Self::Dccp(ports) => {
                bytes.extend(ports.map(u16::to_be_bytes).as_flattened());
                bytes.extend([0xa5; 4]);
                (4, ports, 0)
            }
            Self::Icmp(kind_code) | Self::Icmpv6(kind_code) => {
                bytes.extend(kind_code);
                bytes.extend([0xa5; 6]);
                (2, kind_code.map(u16::from), 0)
            }
            Self::Portless(_) => (0, [0, 0], 0),
        }
    }
}

/// An address as keys hold it.
fn words(address: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}
