//! The pair of programs at the node's own sockets: whom it counts, and that it counts as the
//! classifiers do, less the link header.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use orb8_common::{
    drops::Drop,
    network::{Counts, HOST_SOCKETS, UNLISTED, event_reasons},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    EGRESS, INGRESS,
    packets::{Answer, Link, Network, Packet, Place, strategy},
    probe::{Probe, SHORTEST, Sizes, runs},
    tcp, udp,
};

const ACCOUNT: u32 = 7;
const ETHERNET: u64 = 14;

/// Both pairs, by whether they ask for the network namespace.
const PAIRS: [(bool, [&str; 2]); 2] = [
    (true, ["orb8_host_ingress", "orb8_host_egress"]),
    (false, ["orb8_host_ingress_listed", "orb8_host_egress_listed"]),
];

fn at(account: u32, egress: bool) -> Place {
    Place { ifindex: HOST_SOCKETS | account, egress, vlan: None }
}

/// The socket of a test run is in this thread's cgroup; on older kernels, in the root.
fn own_cgroups() -> [u64; 2] {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("a cgroup2 mount");
    let mount = PathBuf::from(mount.split(' ').nth(4).expect("a mount point"));
    let own = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup");
    [mount.join(own), mount].map(|dir| fs::metadata(dir).expect("this cgroup").ino())
}

/// A probe that takes the socket of a test run for one of the node's, and the pairs that it can run.
fn probe(sizes: &Sizes, account: Option<u32>) -> (Probe, Vec<(bool, [&'static str; 2])>) {
    let mut probe = Probe::load(sizes);
    if let Some(account) = account {
        for id in own_cgroups() {
            probe.list_cgroup(id, account);
        }
    }
    let tells_netns = probe.tells_netns();
    if tells_netns {
        probe.run_at_socket("orb8_host_netns", &udp(0, false).craft(EGRESS).bytes, 1);
    }
    (probe, PAIRS.into_iter().filter(|(asks, _)| tells_netns || !asks).collect())
}

fn counts(packets: u64, bytes: &[u8]) -> Counts {
    Counts { packets, bytes: packets * (bytes.len() as u64 - ETHERNET), extra_segments: 0 }
}

#[test]
fn a_socket_of_a_listed_cgroup_is_counted_under_its_account_from_the_network_header_on() {
    let (mut probe, pairs) = probe(&Sizes::default(), Some(ACCOUNT));
    for (_, programs) in pairs {
        for v6 in [false, true] {
            for egress in [false, true] {
                let crafted = udp(1, v6).craft(at(ACCOUNT, egress));
                probe.run_at_socket(programs[usize::from(egress)], &crafted.bytes, 1_000);
                let key = crafted.answer(crafted.bytes.len()).key;
                assert!(probe.waiting().is_empty(), "slots are not for programs at sockets");
                let flows = Vec::from_iter(probe.take_flows());
                assert_eq!(flows, [(key, counts(1_000, &crafted.bytes))]);
                assert_eq!(probe.take_events().len(), 1, "only the first packet is news");
            }
        }
    }
}

#[test]
fn a_socket_of_another_cgroup_is_unlisted_in_the_own_network_namespace_and_else_not_counted() {
    let (mut probe, pairs) = probe(&Sizes::default(), None);
    for (asks, programs) in pairs {
        for egress in [false, true] {
            let crafted = udp(1, false).craft(at(UNLISTED, egress));
            probe.run_at_socket(programs[usize::from(egress)], &crafted.bytes, 3);
            let entries = Vec::from_iter(probe.entries());
            let flows = Vec::from_iter(probe.take_flows());
            if asks {
                let key = crafted.answer(crafted.bytes.len()).key;
                assert_eq!(flows, [(key, counts(3, &crafted.bytes))]);
                assert!(own_cgroups().contains(&entries[0].1.cgroup_id), "{entries:?}");
            } else {
                assert_eq!(flows, []);
            }
        }
    }
}

#[test]
fn a_socket_of_another_network_namespace_is_not_counted_whatever_its_cgroup() {
    let (mut probe, pairs) = probe(&Sizes::default(), Some(ACCOUNT));
    for (_, programs) in pairs.into_iter().filter(|(asks, _)| *asks) {
        probe.leave_netns();
        for (egress, program) in [false, true].into_iter().zip(programs) {
            probe.run_at_socket(program, &udp(1, false).craft(at(ACCOUNT, egress)).bytes, 3);
        }
        assert!(probe.flows().is_empty());
    }
}

#[test]
fn any_packet_has_the_flow_at_a_socket_that_it_has_on_an_interface() {
    let (mut probe, pairs) = probe(&Sizes::default(), Some(ACCOUNT));
    let (_, programs) = pairs[0];
    let config = Config { cases: 512, failure_persistence: None, ..Config::default() };
    let probe = std::cell::RefCell::new(&mut probe);
    let packets = (strategy::network(), any::<bool>());
    let ran = TestRunner::new(config).run(&packets, |(network, egress)| {
        // Sockets that are looked at have packets of IP only.
        prop_assume!(!matches!(network, Network::Other(_)));
        let packet = Packet { link: Link::Ethernet(vec![]), network };
        let crafted = packet.craft(at(ACCOUNT, egress));
        let probe = &mut **probe.borrow_mut();
        for length in SHORTEST..=crafted.bytes.len() {
            let cut = &crafted.bytes[..length];
            if !runs(cut) {
                continue;
            }
            probe.run_at_socket(programs[usize::from(egress)], cut, 1);
            // As far as classifiers look, less the header that is not there.
            let right: Answer = crafted.answer(length.min(256 + SHORTEST));
            let (flows, events) = (Vec::from_iter(probe.take_flows()), probe.take_events());
            prop_assert_eq!(&flows, &[(right.key, counts(1, cut))], "{:02x?}", cut);
            prop_assert_eq!(events.len(), 1);
            prop_assert_eq!(events[0].tcp_flags, right.tcp_flags);
        }
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn turns_of_a_connection_are_events_with_the_counters_moved() {
    let (mut probe, pairs) = probe(&Sizes::default(), Some(ACCOUNT));
    for (_, [ingress, _]) in pairs {
        let mut seen = Vec::new();
        for (packets, flags) in (1..).zip([2, 16, 16 | 1, 4]) {
            probe.run_at_socket(ingress, &tcp(flags).craft(INGRESS).bytes, 1);
            for event in probe.take_events() {
                assert_eq!(event.stats.counts.packets, packets);
                seen.push(event.reasons);
            }
        }
        let first = event_reasons::NEW | event_reasons::SYN;
        assert_eq!(seen, [first, event_reasons::FIN, event_reasons::RST]);
        let entry = probe.entries().into_values().next().expect("one flow");
        assert_eq!((entry.syn, entry.fin, entry.rst), (1, 1, 1));
        probe.take_flows();
    }
}

#[test]
fn a_full_flow_table_costs_detail_and_no_packet_of_a_socket() {
    let (mut probe, pairs) = probe(&Sizes { flows: 16, ..Sizes::default() }, Some(ACCOUNT));
    let (_, [_, egress]) = pairs[0];
    let mut sent = 0;
    for flow in 0..200 {
        let bytes = udp(flow, flow % 2 == 0).craft(EGRESS).bytes;
        probe.run_at_socket(egress, &bytes, 1 + u32::from(flow % 3));
        sent += 1 + u64::from(flow % 3);
    }
    let flows = probe.take_flows();
    assert_eq!(flows.len(), 32, "16 of each family");
    let packets: u64 = flows.values().map(|counts| counts.packets).sum();
    let overflow = probe.overflow_of(HOST_SOCKETS | ACCOUNT, 1);
    assert_eq!(packets + overflow.packets, sent);
    assert!(overflow.packets > 0 && overflow.bytes > 0);
    assert_eq!(
        (probe.drops(Drop::FlowTableFull), probe.drops(Drop::Uncounted)),
        (overflow.packets, 0)
    );
}
