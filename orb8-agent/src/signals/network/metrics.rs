//! Metrics that only this signal has: traffic per pod, and what its tables hold.

use std::{collections::HashMap, fmt};

use orb8_common::network::Counts;
use orb8_metrics::{Families, Scrape, Unit, one};

use super::pods::{Series, Traffic};

/// What one scrape tells of the network.
#[derive(Debug)]
pub(super) struct NetworkMetrics {
    /// Totals since the start.
    pub(super) pods: HashMap<Series, Traffic>,
    /// Flows that are tracked.
    pub(super) flows: u64,
    /// Flows whose first record went out before the kernel was asked who is behind their peer.
    pub(super) peers_unasked: u64,
}

impl Scrape for NetworkMetrics {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        type Of = fn(&Counts) -> u64;
        let all: [(&str, &str, Option<&Unit>, Of); 3] = [
            (
                "orb8_network",
                "L2 length of packets, as the interface counts it",
                Some(&Unit::Bytes),
                |c| c.bytes,
            ),
            ("orb8_network_packets", "Packets, as the interface counts them", None, |c| c.packets),
            (
                "orb8_network_wire_packets",
                "Packets with GSO packets counted by their segments",
                None,
                |c| c.packets + c.extra_segments,
            ),
        ];
        for (name, help, unit, of) in all {
            let series = self.pods.iter().flat_map(|(of_pod, traffic)| {
                [("ingress", &traffic.ingress), ("egress", &traffic.egress)].map(
                    |(direction, counts)| {
                        let labels = [
                            ("namespace", &*of_pod.namespace),
                            ("pod", &*of_pod.pod),
                            ("workload", &*of_pod.workload),
                            ("owner", of_pod.owner),
                            ("direction", direction),
                        ];
                        (labels, of(counts))
                    },
                )
            });
            families.counter(name, help, unit, series)?;
        }
        let help = "Flows whose first record went out before the kernel was asked who is behind their peer";
        let unasked = [([("signal", super::NAME)], self.peers_unasked)];
        families.counter("orb8_peers_unasked", help, None, unasked)?;
        families.gauge("orb8_tracked_flows", "Flows in the agent's table", None, one(self.flows))
    }
}
