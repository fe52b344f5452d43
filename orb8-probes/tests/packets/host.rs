//! The probe's parser, run here on a slice of bytes.

use orb8_common::network::{FlowKey4, FlowKey6, key_flags};
use orb8_probes::network::parse::{self, Header, Layer, Sighting, Visitor, parse};

use super::{Answer, Key, Link, Packet, Place};

/// Bytes that the probe's second look has in sight.
pub(crate) const SECOND_LOOK_BYTES: usize = 256;

/// Where the parser is told that it sees `packet`.
pub(crate) fn sighting(place: Place, packet: &Packet) -> Sighting {
    let layer = match packet.link {
        Link::Ethernet(_) => Layer::Ethernet,
        Link::None => Layer::Network(packet.ethertype()),
    };
    at(place, layer)
}

pub(crate) fn at(place: Place, layer: Layer) -> Sighting {
    Sighting {
        layer,
        ifindex: place.ifindex,
        direction: if place.egress { key_flags::HOOK_EGRESS } else { 0 },
        vlan: place.vlan.map_or(0, |id| id | orb8_common::network::VLAN_PRESENT),
    }
}

/// What the probe should find: a first look, and a second one if that was not enough.
pub(crate) fn both_looks(bytes: &[u8], at: Sighting) -> Answer {
    match first_look(bytes, at) {
        found if found.is_malformed() || found.is_not_ip() => {
            second_look(&bytes[..bytes.len().min(SECOND_LOOK_BYTES)], at)
        }
        found => found,
    }
}

pub(crate) fn first_look(bytes: &[u8], at: Sighting) -> Answer {
    look::<true>(bytes, at)
}

pub(crate) fn second_look(bytes: &[u8], at: Sighting) -> Answer {
    look::<false>(bytes, at)
}

/// Parses once, and sees to it that there is one answer.
fn look<const FIRST: bool>(bytes: &[u8], at: Sighting) -> Answer {
    let mut answers = Vec::new();
    parse(&Bytes::<FIRST>(bytes), at, Note(&mut answers));
    assert_eq!(answers.len(), 1, "answers for {bytes:02x?}: {answers:?}");
    answers[0]
}

struct Bytes<'a, const FIRST: bool>(&'a [u8]);

impl<const FIRST: bool> parse::Packet for Bytes<'_, FIRST> {
    const FIRST_LOOK: bool = FIRST;

    fn header<T: Header>(&self, offset: usize) -> Option<T> {
        let bytes = self.0.get(offset..)?.get(..size_of::<T>())?;
        // SAFETY: `bytes` has the size of a T, and a `Header` is valid for every bit pattern.
        #[expect(unsafe_code, reason = "`Header` is the parser's own, and private in its fields")]
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

struct Note<'a>(&'a mut Vec<Answer>);

impl Visitor for Note<'_> {
    fn ipv4(self, key: FlowKey4, tcp_flags: u8) {
        assert_eq!(key.flags & key_flags::NOT_IP, 0, "{key:?}");
        self.0.push(Answer { key: Key::V4(key), tcp_flags });
    }

    fn ipv6(self, key: FlowKey6, tcp_flags: u8) {
        assert_eq!(key.flags & key_flags::NOT_IP, 0, "{key:?}");
        self.0.push(Answer { key: Key::V6(key), tcp_flags });
    }

    fn other(self, key: FlowKey4) {
        assert_ne!(key.flags & key_flags::NOT_IP, 0, "{key:?}");
        self.0.push(Answer { key: Key::V4(key), tcp_flags: 0 });
    }
}

impl Answer {
    fn flags(&self) -> u8 {
        match self.key {
            Key::V4(key) => key.flags,
            Key::V6(key) => key.flags,
        }
    }

    pub(crate) fn is_malformed(&self) -> bool {
        self.flags() & key_flags::MALFORMED != 0
    }

    pub(crate) fn is_not_ip(&self) -> bool {
        self.flags() & key_flags::NOT_IP != 0
    }
}
