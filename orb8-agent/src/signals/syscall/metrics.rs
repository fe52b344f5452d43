//! Metrics that only this signal has: calls per container.

use std::{cmp::Reverse, collections::BTreeMap};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};

use super::{NAME, anomaly::AnomalyMetrics, classes::class_of, names, table::Owner, task::Task};
use crate::{config::SyscallMetrics as By, prom_exporter::gauge};

/// Containers that have series of their own: those that call most. A node runs 110 pods, or 500. The
/// others' series are left out, and how many containers that are is told.
const MOST: usize = 2_000;

/// Calls by class and, if that is asked for, by name.
type Calls = BTreeMap<(&'static str, &'static str), u64>;

/// What one scrape tells of system calls.
#[derive(Debug)]
pub(super) struct SyscallMetrics {
    /// Labels but for the call.
    containers: Vec<(Labels, Calls)>,
    by: By,
    omitted: usize,
    tracked: usize,
    anomalies: AnomalyMetrics,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Labels {
    namespace: String,
    pod: String,
    container: String,
    workload: String,
    owner: &'static str,
}

impl SyscallMetrics {
    pub(super) fn of(task: &Task) -> Self {
        let by = task.context.config.syscall_metrics;
        let mut containers = Vec::new();
        let processes = task.units.iter().map(|(number, calls)| (*number, *calls));
        containers.push((labels(None, "process"), sums(processes, by)));
        let mut omitted = 0;
        let mut accounts: Vec<_> = task
            .accounts
            .iter()
            .filter(|(owner, _)| !matches!(owner, Owner::Unit(_)))
            .map(|(owner, account)| {
                let calls: u64 = account.totals().iter().map(|total| total.calls).sum();
                (Reverse(calls), owner, account)
            })
            .collect();
        accounts.sort_by_key(|(calls, ..)| *calls);
        for (at, (_, owner, account)) in accounts.into_iter().enumerate() {
            if at >= MOST {
                omitted += 1;
                continue;
            }
            let owner = if *owner == Owner::Nobody { "unknown" } else { "pod" };
            let totals = account.totals().iter().map(|total| (total.number, total.calls));
            let identity = account.identity().map(|identity| &**identity);
            containers.push((labels(identity, owner), sums(totals, by)));
        }
        let anomalies = AnomalyMetrics::of(&task.anomalies.detector);
        Self { containers, by, omitted, tracked: task.accounts.len(), anomalies }
    }
}

fn labels(identity: Option<&crate::enricher::Identity>, owner: &'static str) -> Labels {
    let of = |of: fn(&crate::enricher::Identity) -> &str| identity.map_or("", of).to_owned();
    Labels {
        namespace: of(|i| &i.namespace),
        pod: of(|i| &i.pod_name),
        container: of(|i| &i.container),
        workload: of(|i| i.workload.as_deref().unwrap_or_default()),
        owner,
    }
}

fn sums(calls: impl Iterator<Item = (u16, u64)>, by: By) -> Calls {
    let mut sums = BTreeMap::new();
    for (number, calls) in calls {
        let name = names::name(number.into());
        let shown = if by == By::Names { name } else { "" };
        *sums.entry((class_of(name), shown)).or_insert(0) += calls;
    }
    sums
}

impl Collector for SyscallMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "System calls, counted at their beginning";
        let mut family =
            encoder.encode_descriptor("orb8_syscalls", help, None, MetricType::Counter)?;
        for (of, calls) in &self.containers {
            for ((class, name), calls) in calls {
                let mut labels = vec![
                    ("namespace", of.namespace.as_str()),
                    ("pod", &of.pod),
                    ("container", &of.container),
                    ("workload", &of.workload),
                    ("owner", of.owner),
                    ("class", class),
                ];
                if self.by == By::Names {
                    labels.push(("syscall", name));
                }
                ConstCounter::new(*calls).encode(family.encode_family(&labels)?)?;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "containers below 2^53")]
        let (omitted, tracked) = (self.omitted as f64, self.tracked as f64);
        let labels = [("signal", NAME)];
        gauge(
            &mut encoder,
            "orb8_owners_without_series",
            "Containers whose series are left out because there are too many",
            &labels,
            omitted,
        )?;
        gauge(
            &mut encoder,
            "orb8_tracked_callers",
            "Containers and units whose calls are in the agent's table",
            &[],
            tracked,
        )?;
        self.anomalies.encode(&mut encoder)
    }
}
