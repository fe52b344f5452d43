//! Findings as metrics: how many, of whom, how many last, and what was not judged.

use std::collections::BTreeMap;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{
    detector::{Detector, Tally},
    finding::Kind,
};

/// What one scrape tells of findings.
#[derive(Debug)]
pub(crate) struct AnomalyMetrics {
    totals: BTreeMap<(String, String, Kind), u64>,
    lasting: [(Kind, u64); 4],
    learning_and_learnt: (u64, u64),
    tally: Tally,
}

impl AnomalyMetrics {
    pub(crate) fn of(detector: &Detector) -> Self {
        Self {
            totals: detector.totals().clone(),
            lasting: detector.lasting(),
            learning_and_learnt: detector.learning_and_learnt(),
            tally: detector.tally(),
        }
    }

    pub(crate) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let help =
            "Anomalies that were reported; of workloads beyond the first 1,000 without a name";
        let mut family =
            encoder.encode_descriptor("orb8_anomalies", help, None, MetricType::Counter)?;
        for ((namespace, workload, kind), count) in &self.totals {
            let labels = [
                ("namespace", namespace.as_str()),
                ("workload", workload),
                ("kind", kind.as_str()),
            ];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Anomalies that last";
        let mut family =
            encoder.encode_descriptor("orb8_anomalies_active", help, None, MetricType::Gauge)?;
        for (kind, count) in self.lasting {
            let labels = [("kind", kind.as_str())];
            ConstGauge::new(float(count)).encode(family.encode_family(&labels)?)?;
        }
        let help = "Workloads whose usual system calls are being learnt, and those that are learnt";
        let mut family =
            encoder.encode_descriptor("orb8_anomaly_workloads", help, None, MetricType::Gauge)?;
        let (learning, learnt) = self.learning_and_learnt;
        for (state, count) in [("learning", learning), ("learnt", learnt)] {
            ConstGauge::new(float(count)).encode(family.encode_family(&[("state", state)])?)?;
        }
        let help = "What found no room to be judged or reported";
        let mut family = encoder.encode_descriptor(
            "orb8_anomalies_unjudged",
            help,
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in self.tally.losses() {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

fn float(n: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of workloads")]
    let n = n as f64;
    n
}
