//! Metrics that only this signal has: traffic per pod, and what its tables hold.

use orb8_common::network::Counts;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
    registry::Unit,
};

use super::pods::PodTotals;
use crate::{
    enricher::AttributedBy,
    prom_exporter::{counter, gauge},
};

/// What one scrape tells of the network.
#[derive(Debug)]
pub(super) struct NetworkMetrics {
    /// Totals since the start, per pod.
    pub(super) pods: Vec<PodTotals>,
    /// Flows that are tracked.
    pub(super) flows: u64,
    /// Flows whose first record went out before the kernel was asked who is behind their peer.
    pub(super) peers_unasked: u64,
}

/// Every direction of a pod's account, with its labels.
fn each_direction(pod: &PodTotals) -> [(Vec<(&'static str, String)>, Counts); 2] {
    let labels = |direction: &str| {
        let owner = match pod.by {
            _ if pod.is_processes => "process",
            AttributedBy::Host => "node",
            AttributedBy::None => "unknown",
            _ => "pod",
        };
        vec![
            ("namespace", pod.namespace.to_string()),
            ("pod", pod.pod.to_string()),
            ("workload", pod.workload.as_deref().unwrap_or_default().to_owned()),
            ("owner", owner.to_owned()),
            ("direction", direction.to_owned()),
        ]
    };
    [(labels("ingress"), pod.ingress), (labels("egress"), pod.egress)]
}

impl Collector for NetworkMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        type Of = fn(&Counts) -> u64;
        let families: [(&str, &str, Option<&Unit>, Of); 3] = [
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
        for (name, help, unit, of) in families {
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
            for pod in &self.pods {
                for (labels, counts) in each_direction(pod) {
                    ConstCounter::new(of(&counts)).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        counter(
            &mut encoder,
            "orb8_peers_unasked",
            "Flows whose first record went out before the kernel was asked who is behind their peer",
            &[("signal", super::NAME)],
            self.peers_unasked,
        )?;
        #[expect(clippy::cast_precision_loss, reason = "flows below 2^53")]
        let flows = self.flows as f64;
        gauge(&mut encoder, "orb8_tracked_flows", "Flows in the agent's table", &[], flows)
    }
}
