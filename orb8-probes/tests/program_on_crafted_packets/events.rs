//! What is reported of a flow's life, what could not be, and what the pulse tells.

use orb8_common::{
    drops::Drop,
    network::{NetworkFlowEvent, event_reasons, family},
};

use crate::{
    EGRESS, INGRESS, one,
    packets::Key,
    probe::{Probe, SHORTEST, Sizes},
    tcp, udp,
};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

#[test]
fn events_that_found_no_room_are_counted_to_the_record() {
    const FLOWS: u16 = 1_000;
    let page = u32::try_from(rustix::param::page_size()).expect("pages are small");
    let mut probe = Probe::load(&Sizes { flows: FLOWS.into(), ring: page });
    let mut read = 0;
    for flow in 0..FLOWS {
        probe.run("orb8_ingress", &udp(flow, false).craft(INGRESS).bytes);
        if flow == FLOWS / 2 {
            read += probe.take_events().len();
        }
    }
    read += probe.take_events().len();
    let lost = probe.drops(Drop::RingFull);
    assert!(read > 0 && lost > 0, "{read} read, {lost} lost");
    assert_eq!(probe.drops(Drop::EventsSeen), u64::from(FLOWS));
    assert_eq!(probe.drops(Drop::EventsSeen), read as u64 + lost);
    assert_eq!(probe.flows().len(), usize::from(FLOWS), "a lost event costs no counter");
}

#[test]
fn every_syn_fin_and_rst_is_an_event_and_no_other_packet_of_a_known_flow_is() {
    let mut probe = Probe::load(&Sizes::default());
    let talk = [SYN, ACK, ACK, SYN | ACK, ACK, ACK | 8, FIN | ACK, RST, SYN, RST | ACK, ACK, FIN];
    let mut seen = Vec::new();
    for (packets, flags) in (1..).zip(talk) {
        let crafted = tcp(flags).craft(INGRESS);
        probe.run("orb8_ingress", &crafted.bytes);
        for event in probe.take_events() {
            assert_eq!(Key::V4(event.key.narrow()), crafted.answer(crafted.bytes.len()).key);
            assert_eq!(event.family, family::V4);
            assert_eq!(event.stats.counts.packets, packets, "the counters moved first");
            seen.push((event.tcp_flags, event.reasons));
        }
    }
    let expected = [
        (SYN, event_reasons::NEW | event_reasons::SYN),
        (SYN | ACK, event_reasons::SYN),
        (FIN | ACK, event_reasons::FIN),
        (RST, event_reasons::RST),
        (SYN, event_reasons::SYN),
        (RST | ACK, event_reasons::RST),
        (FIN, event_reasons::FIN),
    ];
    assert_eq!(seen, expected);
    let entry = probe.entries().into_values().next().expect("one flow");
    assert_eq!((entry.syn, entry.syn_ack, entry.fin, entry.rst), (1, 1, 1, 1));
}

#[test]
fn who_opens_a_connection_is_told_from_who_answers() {
    let cases = [
        (vec![SYN, ACK], (1, 0)),
        (vec![SYN | ACK, ACK], (0, 1)),
        (vec![ACK, SYN | ACK], (0, 1)),
        (vec![ACK, SYN | 0xc0], (1, 0)), // with ECN, as RFC 3168 has it
        (vec![SYN, SYN | ACK], (1, 1)),  // at once from both sides
        (vec![ACK, ACK | 8], (0, 0)),
    ];
    for (flags, expected) in cases {
        let mut probe = Probe::load(&Sizes::default());
        for flags in &flags {
            probe.run("orb8_ingress", &tcp(*flags).craft(INGRESS).bytes);
        }
        let entry = probe.entries().into_values().next().expect("one flow");
        assert_eq!((entry.syn, entry.syn_ack), expected, "{flags:?}");
        let last = probe.take_events().pop().expect("its first packet");
        assert!(last.stats.syn <= entry.syn && last.stats.syn_ack <= entry.syn_ack);
    }
}

#[test]
fn a_new_flow_is_reported_with_its_first_packet_counted() {
    let mut probe = Probe::load(&Sizes::default());
    for v6 in [false, true] {
        let crafted = udp(9, v6).craft(EGRESS);
        probe.run("orb8_egress", &crafted.bytes);
        let [event] = probe.take_events()[..] else { panic!("one event") };
        let key = if v6 { Key::V6(event.key) } else { Key::V4(event.key.narrow()) };
        assert_eq!(key, crafted.answer(crafted.bytes.len()).key);
        assert_eq!(event.stats.counts, one(&crafted.bytes));
        assert_eq!(event.reasons, event_reasons::NEW);
        assert_eq!((event.reserved, event.stats.reserved), (0, [0; 4]));
        assert!(event.stats.first_ns > 0 && event.timestamp_ns >= event.stats.first_ns);
    }
}

#[test]
fn the_pulse_tells_the_clocks_and_what_waits_in_the_ring() {
    let probe = Probe::load(&Sizes::default());
    let nothing = [0; SHORTEST];
    probe.run("orb8_pulse", &nothing);
    let before = probe.pulse();
    probe.run("orb8_ingress", &udp(3, false).craft(INGRESS).bytes);
    std::thread::sleep(std::time::Duration::from_millis(50));
    probe.run("orb8_pulse", &nothing);
    let after = probe.pulse();

    assert!(after.jiffies > before.jiffies);
    assert!(after.boot_ns - before.boot_ns >= 50_000_000);
    assert_eq!(before.ring_pending, 0);
    // Items have a header of 8 bytes.
    assert_eq!(after.ring_pending, 8 + size_of::<NetworkFlowEvent>() as u64);
}

#[test]
fn the_empty_program_touches_nothing() {
    let probe = Probe::load(&Sizes::default());
    probe.run("orb8_empty", &udp(3, false).craft(INGRESS).bytes);
    assert_eq!((probe.flows().len(), probe.drops(Drop::EventsSeen)), (0, 0));
}
