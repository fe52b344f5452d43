//! The parser on the host: any bytes at all, and sound packets cut at every offset.

mod packets;

use orb8_probes::network::parse::Layer;
use packets::{Answer, Key, Place, host, strategy};
use proptest::{collection::vec, prelude::*};

/// Bytes that get past the first checks more often than chance would have it.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let whole = (strategy::packet(), strategy::place())
        .prop_map(|(packet, place)| packet.craft(place).bytes);
    let damaged = (whole, vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)).prop_map(
        |(mut bytes, changes)| {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        },
    );
    prop_oneof![1 => vec(any::<u8>(), 0..400), 3 => damaged]
}

fn layer() -> impl Strategy<Value = Layer> {
    prop_oneof![
        3 => Just(Layer::Ethernet),
        1 => Just(Layer::Network(0x0800)),
        1 => Just(Layer::Network(0x86dd)),
        1 => any::<u16>().prop_map(Layer::Network),
    ]
}

fn ports(answer: &Answer) -> [u16; 2] {
    match answer.key {
        Key::V4(key) => [key.src_port, key.dst_port],
        Key::V6(key) => [key.src_port, key.dst_port],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_bytes_give_one_answer(bytes in bytes(), place in strategy::place(), layer in layer()) {
        let at = host::at(place, layer);
        for answer in [host::first_look(&bytes, at), host::second_look(&bytes, at)] {
            let (ifindex, direction) = match answer.key {
                Key::V4(key) => (key.ifindex, key.flags & 1),
                Key::V6(key) => (key.ifindex, key.flags & 1),
            };
            prop_assert_eq!((ifindex, direction), (place.ifindex, u8::from(place.egress)));
            if answer.is_malformed() && !answer.is_not_ip() {
                prop_assert_eq!((ports(&answer), answer.tcp_flags), ([0, 0], 0));
            }
        }
    }

    #[test]
    fn a_first_look_that_finds_no_fault_needs_no_second(
        bytes in bytes(), place in strategy::place(), layer in layer(),
    ) {
        let at = host::at(place, layer);
        let first = host::first_look(&bytes, at);
        if !first.is_malformed() {
            prop_assert_eq!(first, host::second_look(&bytes, at));
        }
    }

    #[test]
    fn a_packet_that_is_cut_anywhere_gives_what_the_rest_tells(
        packet in strategy::packet(), place in strategy::place(),
    ) {
        let crafted = packet.craft(place);
        let at = host::sighting(place, &packet);
        let whole = crafted.answer(crafted.bytes.len());
        for length in 0..=crafted.bytes.len() {
            let seen = host::second_look(&crafted.bytes[..length], at);
            prop_assert_eq!(seen, crafted.answer(length), "the first {} bytes", length);
            // Said once more without the model: no ports but the right ones.
            if !seen.is_not_ip() && ports(&seen) != [0, 0] {
                prop_assert_eq!(seen, whole, "the first {} bytes", length);
            }
        }
    }

    #[test]
    fn what_the_probe_has_in_sight_is_enough_or_malformed(
        packet in strategy::packet(), place in strategy::place(),
    ) {
        let crafted = packet.craft(place);
        let seen = host::both_looks(&crafted.bytes, host::sighting(place, &packet));
        let in_sight = crafted.bytes.len().min(host::SECOND_LOOK_BYTES);
        prop_assert_eq!(seen, crafted.answer(in_sight));
    }
}

#[test]
fn a_first_look_reads_plain_packets_to_the_end() {
    use packets::{Ipv4, Ipv6, Link, Network, Packet, Upper};

    let place = Place { ifindex: 7, egress: false, vlan: Some(5) };
    let upper = Upper::Tcp { ports: [40_000, 443], flags: 0x12 };
    let (src, dst) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let ipv4 =
        |words| Network::Ipv4(Ipv4 { version: 4, words, fragment_offset: 0, src, dst, upper });
    let ipv6 =
        Network::Ipv6(Ipv6 { version: 6, src: [1; 16], dst: [2; 16], extensions: vec![], upper });
    for network in (5..=15).map(ipv4).chain([ipv6]) {
        for link in [Link::Ethernet(vec![]), Link::None] {
            let packet = Packet { link, network: network.clone() };
            let crafted = packet.craft(place);
            let seen = host::first_look(&crafted.bytes, host::sighting(place, &packet));
            assert_eq!(seen, crafted.answer(crafted.bytes.len()), "{packet:?}");
            assert_eq!((ports(&seen), seen.tcp_flags), ([40_000, 443], 0x12), "{packet:?}");
        }
    }
}

#[test]
fn padding_behind_a_short_ip_packet_has_no_ports() {
    // Ethernet frames have at least 60 bytes; what fills them up is not part of the IP packet.
    let place = Place { ifindex: 7, egress: false, vlan: None };
    let mut ipv4 = vec![0xee; 60];
    ipv4[12..14].copy_from_slice(&[0x08, 0x00]);
    ipv4[14] = 0x45;
    ipv4[20..22].copy_from_slice(&[0, 0]);
    ipv4[23] = 17;
    let mut ipv6 = vec![0xee; 60];
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    ipv6[14] = 0x60;
    ipv6[20] = 17;
    for length in [20_u16, 23, 24, 28] {
        ipv4[16..18].copy_from_slice(&length.to_be_bytes());
        let seen = host::second_look(&ipv4, host::at(place, Layer::Ethernet));
        assert_eq!(seen.is_malformed(), length < 24, "an IPv4 packet of {length} bytes");
        assert_eq!(ports(&seen) == [0, 0], length < 24);
    }
    for length in [1_u16, 3, 4, 6] {
        ipv6[18..20].copy_from_slice(&length.to_be_bytes());
        let seen = host::second_look(&ipv6, host::at(place, Layer::Ethernet));
        assert_eq!(seen.is_malformed(), length < 4, "an IPv6 payload of {length} bytes");
        assert_eq!(ports(&seen) == [0, 0], length < 4);
    }
}
