//! How much a flow has had, to the packet and the byte, also where there is no room for it.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use aya::programs::TestRunOptions;
use orb8_common::{
    Record,
    drops::Drop,
    network::{Counts, LastFlow6},
};

use crate::{
    EGRESS, INGRESS, one,
    packets::Link,
    probe::{Probe, Sizes},
    program, tcp, udp,
};

/// Keeps this thread on one CPU, so that one slot is all that its runs use.
fn stay_on_this_cpu() {
    let mut here = rustix::thread::CpuSet::new();
    here.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &here).expect("a CPU that this thread runs on");
}

#[test]
fn a_run_of_one_flow_is_counted_to_the_packet() {
    const RUN: u32 = 100_000;
    let mut probe = Probe::load(&Sizes::default());
    for (v6, place) in [(false, INGRESS), (false, EGRESS), (true, INGRESS), (true, EGRESS)] {
        let packet = udp(1, v6);
        let crafted = packet.craft(place);
        let bytes = &crafted.bytes;
        let options =
            TestRunOptions { data_in: Some(bytes), repeat: RUN, ..TestRunOptions::default() };
        probe.run_with(program(place, &packet.link), options);

        let packets = u64::from(RUN);
        let counts = Counts { packets, bytes: packets * bytes.len() as u64, extra_segments: 0 };
        let flows: Vec<_> = probe.take_flows().into_iter().collect();
        assert_eq!(flows, [(crafted.answer(bytes.len()).key, counts)]);
        assert_eq!(probe.take_events().len(), 1, "only the first packet is news");
    }
}

#[test]
fn flows_that_take_turns_do_not_mix() {
    let probe = Probe::load(&Sizes::default());
    let mut sent = HashMap::new();
    for round in 0..50_u64 {
        for flow in 0..7 {
            for (v6, place) in [(false, INGRESS), (true, INGRESS), (false, EGRESS), (true, EGRESS)]
            {
                let mut crafted = udp(flow, v6).craft(place);
                let key = crafted.answer(crafted.bytes.len()).key;
                let length = crafted.bytes.len() + usize::from(flow);
                crafted.bytes.resize(length, 0);
                // Runs of one to three packets, so that all ways into and out of a slot are used.
                for _ in 0..=(round + u64::from(flow)) % 3 {
                    probe.run(program(place, &Link::Ethernet(vec![])), &crafted.bytes);
                    let counts: &mut Counts = sent.entry(key).or_default();
                    counts.packets += 1;
                    counts.bytes += length as u64;
                }
            }
        }
    }
    assert_eq!(sent.len(), 28);
    assert_eq!(probe.flows(), sent);
}

#[test]
fn segments_that_gso_saved_are_counted_beside_the_packets() {
    const GSO_SEGS: usize = 164; // offset in struct __sk_buff
    let mut probe = Probe::load(&Sizes::default());
    let crafted = tcp(0x10).craft(INGRESS);
    for segments in [44_u32, 44, 1, 0] {
        let mut context = [0; 192];
        context[GSO_SEGS..GSO_SEGS + 4].copy_from_slice(&segments.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&crafted.bytes),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        probe.run_with("orb8_ingress", options);
    }
    let counts: Vec<_> = probe.take_flows().into_values().collect();
    let bytes = 4 * crafted.bytes.len() as u64;
    assert_eq!(counts, [Counts { packets: 4, bytes, extra_segments: 43 + 43 }]);
}

#[test]
fn a_run_does_not_wait_longer_than_its_slot_lives() {
    stay_on_this_cpu();
    let probe = Probe::load(&Sizes::default());
    let crafted = udp(1, false).craft(INGRESS);
    let in_table = |probe: &Probe| -> u64 {
        probe.entries().into_values().map(|stats| stats.counts.packets).sum()
    };
    for packets in 1..=20 {
        probe.run("orb8_ingress", &crafted.bytes);
        assert_eq!(probe.flows().into_values().next().expect("a flow").packets, packets);
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    probe.run("orb8_ingress", &crafted.bytes);
    assert_eq!((in_table(&probe), probe.waiting().len()), (21, 0));
}

#[test]
fn a_run_whose_entry_was_taken_away_is_counted_nowhere_again() {
    stay_on_this_cpu();
    let mut probe = Probe::load(&Sizes::default());
    probe.create_overflow(0);
    let orphan = udp(1, false).craft(INGRESS);
    // The kernel's clock may tick between any two of these, and then the run is in the table.
    while probe.waiting().is_empty() {
        probe.run("orb8_ingress", &orphan.bytes);
    }
    // Whoever takes the entry of a flow takes what waits for it, too.
    probe.remove(&orphan.answer(orphan.bytes.len()).key);
    let other = udp(2, false).craft(INGRESS);
    probe.run("orb8_ingress", &other.bytes);

    let other_key = other.answer(other.bytes.len()).key;
    assert_eq!(Vec::from_iter(probe.flows()), [(other_key, one(&other.bytes))]);
    assert_eq!((probe.overflow(0).packets, probe.drops(Drop::FlowTableFull)), (0, 0));
}

#[test]
fn a_full_flow_table_costs_detail_and_no_packet() {
    const FLOWS: u16 = 100;
    const ROUNDS: u32 = 20;
    for v6 in [false, true] {
        let mut probe = Probe::load(&Sizes { flows: 16, ..Sizes::default() });
        probe.create_overflow(0);
        let mut sent = Counts::default();
        for turn in 0..u32::from(FLOWS) * ROUNDS {
            // 37 and 100 have no common factor: all flows, out of order.
            let flow = u16::try_from(turn * 37 % u32::from(FLOWS)).expect("less than FLOWS");
            let crafted = udp(flow, v6).craft(INGRESS);
            for _ in 0..=turn % 2 {
                probe.run("orb8_ingress", &crafted.bytes);
                sent.packets += 1;
                sent.bytes += crafted.bytes.len() as u64;
            }
        }
        let flows = probe.flows();
        let overflow = probe.overflow(0);
        assert_eq!(flows.len(), 16);
        let packets = flows.values().map(|counts| counts.packets).sum::<u64>();
        let bytes = flows.values().map(|counts| counts.bytes).sum::<u64>();
        assert_eq!(
            (packets + overflow.packets, bytes + overflow.bytes),
            (sent.packets, sent.bytes)
        );
        assert_eq!(probe.drops(Drop::FlowTableFull), overflow.packets);
        assert_eq!(probe.drops(Drop::Uncounted), 0);
        // An entry is made before its event: no event of a flow that found no room.
        assert_eq!(probe.take_events().len(), 16);

        // Room again: the table is asked again.
        probe.take_flows();
        std::thread::sleep(std::time::Duration::from_millis(20));
        probe.run("orb8_ingress", &udp(101, v6).craft(INGRESS).bytes);
        assert_eq!(probe.flows().len(), 1);
    }
}

#[test]
fn packets_without_flow_entry_and_overflow_counter_are_counted_as_such() {
    let probe = Probe::load(&Sizes { flows: 4, ..Sizes::default() });
    for flow in 0..10 {
        probe.run("orb8_egress", &udp(flow, false).craft(EGRESS).bytes);
    }
    let seen: u64 = probe.flows().into_values().map(|counts| counts.packets).sum();
    assert_eq!((seen, probe.overflow(1).packets), (4, 0));
    assert_eq!((probe.drops(Drop::FlowTableFull), probe.drops(Drop::Uncounted)), (6, 6));
}

#[test]
fn a_slot_that_is_read_while_it_changes_hands_says_so() {
    const READS: u32 = 200_000;
    const PRIORITY: usize = 32; // offset in struct __sk_buff
    const RUN: u32 = 10_000;
    let probe = Probe::load(&Sizes::default());
    let bytes = udp(0, true).craft(INGRESS).bytes;
    let mut context = [0; 192];
    context[PRIORITY..PRIORITY + 4].copy_from_slice(&200_u32.to_ne_bytes());
    let run = || {
        let data_in = Some(&bytes[..]);
        let ctx_in = Some(&context[..]);
        let options = TestRunOptions { data_in, ctx_in, repeat: RUN, ..TestRunOptions::default() };
        probe.run_with("orb8_mix", options);
    };
    run();
    let (slots, done) = (probe.slots_v6(), AtomicBool::new(false));
    let mixtures = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                run();
            }
        });
        let mut mixtures = 0;
        for _ in 0..READS {
            let slots = slots.get(&0, 0).expect("reading LAST_V6");
            let slots = slots.iter().map(|slot| LastFlow6::decode(slot).expect("a slot"));
            for slot in slots.filter(|slot| slot.opened == slot.settled) {
                let address = u32::from_be(slot.key.src[3]);
                mixtures += u32::from(address != u32::from(slot.key.src_port));
            }
        }
        done.store(true, Ordering::Relaxed);
        mixtures
    });
    assert_eq!(mixtures, 0, "keys of two flows in one");
}
