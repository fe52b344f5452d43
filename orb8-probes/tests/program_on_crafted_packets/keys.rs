//! Which flow a packet is counted under.

use std::cell::RefCell;

use orb8_common::network::event_reasons;
use orb8_probes::network::parse::Layer;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    INGRESS, one,
    packets::{
        Answer, Extension, Ipv4, Ipv6, Link, Network, Packet, Place, Tag, Upper, host, strategy,
    },
    probe::{self, Probe, SHORTEST, Sizes},
    program,
};

/// Puts `cases` values of `strategy` to the `test`, and shows the smallest one that fails.
fn for_all<S: Strategy>(cases: u32, strategy: &S, test: impl FnMut(S::Value)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let test = RefCell::new(test);
    let ran = TestRunner::new(config).run(strategy, |value| {
        (test.borrow_mut())(value);
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
}

/// One packet, one flow: its key, one packet, its bytes.
fn assert_counted_as(probe: &mut Probe, place: Place, link: &Link, bytes: &[u8], right: Answer) {
    probe.run(program(place, link), bytes);
    // Both, before anything can fail: the next packet needs them empty.
    let (flows, events) = (Vec::from_iter(probe.take_flows()), probe.take_events());
    assert_eq!(flows, [(right.key, one(bytes))], "{} bytes: {bytes:02x?}", bytes.len());
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].reasons & event_reasons::NEW, event_reasons::NEW);
    assert_eq!(events[0].tcp_flags, right.tcp_flags);
}

fn assert_every_cut_is_counted_right(probe: &mut Probe, place: Place, packet: &Packet) {
    let crafted = packet.craft(place);
    for length in SHORTEST..=crafted.bytes.len() {
        let cut = &crafted.bytes[..length];
        let right = crafted.answer(length.min(host::SECOND_LOOK_BYTES));
        assert_eq!(host::both_looks(cut, host::sighting(place, packet)), right);
        if probe::runs(cut) {
            assert_counted_as(probe, place, &packet.link, cut, right);
        }
    }
}

#[test]
fn packets_that_are_cut_anywhere_are_counted_under_what_the_rest_tells() {
    let mut probe = Probe::load(&Sizes::default());
    let cases = (strategy::ethernet(), strategy::network(), any::<bool>());
    for_all(192, &cases, |(link, network, egress)| {
        let place = Place { egress, ..INGRESS };
        let packet = Packet { link, network };
        assert_every_cut_is_counted_right(&mut probe, place, &packet);
    });
}

#[test]
fn packets_of_devices_without_a_link_header_are_read_from_their_first_byte() {
    let mut probe = Probe::load(&Sizes::default());
    for_all(192, &(strategy::network(), any::<bool>()), |(mut network, egress)| {
        // A test run takes the EtherType from where an Ethernet header has it. Here that is in the
        // source address, so this has to spell it.
        match &mut network {
            Network::Ipv4(ip) => ip.src[..2].copy_from_slice(&[0x08, 0x00]),
            Network::Ipv6(ip) => ip.src[4..6].copy_from_slice(&[0x86, 0xdd]),
            Network::Other(ethertype) => *ethertype = 0xa5a5, // as the payload
        }
        let place = Place { egress, ..INGRESS };
        let packet = Packet { link: Link::None, network };
        assert_every_cut_is_counted_right(&mut probe, place, &packet);
    });
}

#[test]
fn any_bytes_are_counted_once_and_as_the_host_parses_them() {
    let mut probe = Probe::load(&Sizes::default());
    let sound = (strategy::packet(), strategy::place()).prop_map(|(p, at)| p.craft(at).bytes);
    let damage = vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let damaged = (sound, damage).prop_map(|(mut bytes, changes)| {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    });
    let bytes = prop_oneof![vec(any::<u8>(), SHORTEST..400), damaged];
    let bytes = bytes.prop_filter("no test run of such", |bytes| probe::runs(bytes));
    for_all(4096, &(bytes, any::<bool>()), |(bytes, egress)| {
        let place = Place { egress, ..INGRESS };
        let right = host::both_looks(&bytes, host::at(place, Layer::Ethernet));
        assert_counted_as(&mut probe, place, &Link::Ethernet(vec![]), &bytes, right);
    });
}

#[test]
fn headers_are_read_up_to_byte_256_and_no_further() {
    let mut probe = Probe::load(&Sizes::default());
    let with = |extensions| Packet {
        link: Link::Ethernet(vec![]),
        network: Network::Ipv6(Ipv6 {
            version: 6,
            src: [1; 16],
            dst: [2; 16],
            extensions,
            upper: Upper::Icmpv6([128, 0]),
        }),
    };
    // 14 of Ethernet, 40 of IPv6, 200 of options, 2 of ICMPv6.
    let inside = with(vec![Extension::Destination(24)]);
    // 4 more: options of 176 and an authentication header of 28.
    let outside = with(vec![Extension::Destination(21), Extension::Authentication(5)]);
    for (packet, readable) in [(inside, true), (outside, false)] {
        let crafted = packet.craft(INGRESS);
        let right = crafted.answer(256);
        assert_eq!(right.is_malformed(), !readable);
        assert_counted_as(&mut probe, INGRESS, &packet.link, &crafted.bytes, right);
    }
}

#[test]
fn packets_that_differ_in_one_field_of_the_key_are_of_two_flows() {
    let plain = Ipv4 {
        version: 4,
        words: 5,
        fragment_offset: 0,
        src: [10, 0, 0, 1],
        dst: [10, 0, 0, 2],
        upper: Upper::Udp([40_000, 443]),
    };
    let fragment = Ipv4 { fragment_offset: 1, ..plain };
    let v4 = |ip| Packet { link: Link::Ethernet(vec![]), network: Network::Ipv4(ip) };
    let tag = Tag { ethertype: 0x8100, control: 9 };
    let tagged = Packet { link: Link::Ethernet(vec![tag]), ..v4(plain.clone()) };
    let mut twins = vec![
        (v4(plain.clone()), tagged),
        (v4(plain.clone()), v4(Ipv4 { src: [10, 0, 0, 3], ..plain.clone() })),
        (v4(plain.clone()), v4(Ipv4 { dst: [10, 0, 0, 3], ..plain.clone() })),
        (v4(plain.clone()), v4(Ipv4 { upper: Upper::Udp([40_001, 443]), ..plain.clone() })),
        (v4(plain.clone()), v4(Ipv4 { upper: Upper::Udp([40_000, 444]), ..plain.clone() })),
        (v4(plain.clone()), v4(Ipv4 { upper: Upper::Sctp([40_000, 443]), ..plain.clone() })),
        // Without ports, both: a later fragment, and a header that cannot be.
        (v4(fragment), v4(Ipv4 { words: 4, ..plain })),
    ];
    let upper = Upper::Udp([40_000, 443]);
    let v6 = Ipv6 { version: 6, src: [1; 16], dst: [2; 16], extensions: vec![], upper };
    for octet in 0..16 {
        let (mut from, mut to) = (v6.clone(), v6.clone());
        from.src[octet] = 3;
        to.dst[octet] = 3;
        for other in [from, to] {
            let packet = |ip| Packet { link: Link::Ethernet(vec![]), network: Network::Ipv6(ip) };
            twins.push((packet(v6.clone()), packet(other)));
        }
    }
    let mut probe = Probe::load(&Sizes::default());
    for (one, other) in twins {
        let crafted = [one.craft(INGRESS), other.craft(INGRESS)];
        for packet in [0, 0, 1, 1, 0, 1] {
            probe.run("orb8_ingress", &crafted[packet].bytes);
        }
        let flows = probe.take_flows();
        assert_eq!(flows.len(), 2, "{one:?} and {other:?}");
        for crafted in crafted {
            let packets = flows[&crafted.answer(crafted.bytes.len()).key].packets;
            assert_eq!(packets, 3, "{one:?} and {other:?}");
        }
    }
}
