//! Findings as metrics: how many, of whom, how many last, and what was not judged.

use std::{collections::BTreeMap, fmt};

use orb8_metrics::{Families, Scrape};

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
}

impl Scrape for AnomalyMetrics {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let totals = self.totals.iter().map(|((namespace, workload, kind), count)| {
            let labels = [
                ("namespace", namespace.as_str()),
                ("workload", workload.as_str()),
                ("kind", kind.as_str()),
            ];
            (labels, *count)
        });
        let help =
            "Anomalies that were reported; of workloads beyond the first 1,000 without a name";
        families.counter("orb8_anomalies", help, None, totals)?;
        let lasting = self.lasting.iter().map(|(kind, count)| ([("kind", kind.as_str())], *count));
        families.gauge("orb8_anomalies_active", "Anomalies that last", None, lasting)?;
        let help = "Workloads whose usual system calls are being learnt, and those that are learnt";
        let (learning, learnt) = self.learning_and_learnt;
        let states = [([("state", "learning")], learning), ([("state", "learnt")], learnt)];
        families.gauge("orb8_anomaly_workloads", help, None, states)?;
        let losses = self.tally.losses();
        let unjudged = losses.iter().map(|(reason, count)| ([("reason", *reason)], *count));
        let help = "What found no room to be judged or reported";
        families.counter("orb8_anomalies_unjudged", help, None, unjudged)
    }
}
