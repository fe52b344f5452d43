//! Metrics that only this signal has: calls per container.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fmt,
};

use orb8_metrics::{Families, Scrape, one};

use super::{
    NAME,
    anomaly::AnomalyMetrics,
    classes::class_of,
    names,
    table::{Accounts, Series},
    task::Task,
};
use crate::config::SyscallMetrics as By;

/// Containers that have series of their own: those that call most. A node runs 110 pods, or 500. The
/// others' series are left out, and how many containers that are is told.
const MOST: usize = 2_000;

/// Calls by class and, if that is asked for, by name.
type Calls = BTreeMap<(&'static str, &'static str), u64>;

/// What one scrape tells of system calls.
#[derive(Debug)]
pub(super) struct SyscallMetrics {
    calls: CallMetrics,
    tracked: usize,
    anomalies: AnomalyMetrics,
}

impl SyscallMetrics {
    pub(super) fn of(task: &Task) -> Self {
        let units = task.units.iter().map(|(number, calls)| (*number, *calls));
        Self {
            calls: CallMetrics::of(&task.accounts, units, task.context.config.syscall_metrics),
            tracked: task.accounts.len(),
            anomalies: AnomalyMetrics::of(&task.anomalies.detector),
        }
    }
}

impl Scrape for SyscallMetrics {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        self.calls.write(families)?;
        let help = "Containers and units whose calls are in the agent's table";
        families.gauge("orb8_tracked_callers", help, None, one(self.tracked))?;
        self.anomalies.write(families)
    }
}

/// Calls, as far as they have series.
#[derive(Debug)]
pub(super) struct CallMetrics {
    series: Vec<(Series, Calls)>,
    by: By,
    omitted: usize,
}

impl CallMetrics {
    /// `units` are the calls of all units, by number.
    pub(super) fn of(accounts: &Accounts, units: impl Iterator<Item = (u16, u64)>, by: By) -> Self {
        // A container that was restarted has more than one account.
        let mut sums: HashMap<Series, Calls> = HashMap::new();
        for (owner, account) in accounts.iter() {
            let identity = account.identity().map(|identity| &**identity);
            if let Some(series) = Series::of(owner, identity) {
                add(sums.entry(series).or_default(), account.shown(), by);
            }
        }
        let mut sums: Vec<(Series, Calls)> = sums.into_iter().collect();
        sums.sort_by_cached_key(|(of, calls)| (Reverse(calls.values().sum::<u64>()), of.clone()));
        let omitted = sums.len().saturating_sub(MOST);
        sums.truncate(MOST);
        let mut processes = Calls::new();
        add(&mut processes, units, by);
        let mut series = vec![(Series::processes(), processes)];
        series.append(&mut sums);
        Self { series, by, omitted }
    }
}

fn add(sums: &mut Calls, calls: impl Iterator<Item = (u16, u64)>, by: By) {
    for (number, calls) in calls {
        let name = names::name(number.into());
        let shown = if by == By::Names { name } else { "" };
        *sums.entry((class_of(name), shown)).or_insert(0) += calls;
    }
}

impl Scrape for CallMetrics {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let rows = self.series.iter().flat_map(|(of, calls)| {
            calls.iter().map(move |((class, name), calls)| {
                let mut labels = vec![
                    ("namespace", &*of.namespace),
                    ("pod", &*of.pod),
                    ("container", &*of.container),
                    ("workload", &*of.workload),
                    ("owner", of.owner),
                    ("class", *class),
                ];
                if self.by == By::Names {
                    labels.push(("syscall", *name));
                }
                (labels, *calls)
            })
        });
        let help = "System calls, counted at their beginning";
        families.counter("orb8_syscalls", help, None, rows)?;
        let help = "Containers whose series are left out because there are too many";
        let omitted = [([("signal", NAME)], self.omitted)];
        families.gauge("orb8_owners_without_series", help, None, omitted)
    }
}
