//! Totals per owner: since the start for metrics, per slice for queries; and per workload.

use std::{collections::HashMap, ops::AddAssign, sync::Arc};

use indexmap::{IndexMap, map::Entry};
use orb8_common::network::Counts;
use orb8_proto::{Direction, WorkloadTotals};

use super::maps::add;
use crate::{
    aggregator::{SliceNumber, Window, slice_of},
    enricher::{AttributedBy, Attribution, Identity},
    ledger::{Amount, Ledger, LossPoint, Stage},
    totals::Book,
};

/// Owners that are kept apart. More than a node may run; beyond it, the quietest is forgotten, and
/// that is counted.
const MOST: usize = 10_000;

/// Both directions, as the owner sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) ingress: Counts,
    pub(super) egress: Counts,
    /// Included above, without flow detail.
    pub(super) overflow_packets: u64,
    /// Included above, without flow detail: before the interface was attached to.
    pub(super) early_packets: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        add(&mut self.ingress, &other.ingress);
        add(&mut self.egress, &other.egress);
        self.overflow_packets += other.overflow_packets;
        self.early_packets += other.early_packets;
    }
}

impl Traffic {
    pub(super) fn of(direction: Direction, counts: Counts) -> Self {
        match direction {
            Direction::Egress => Self { egress: counts, ..Self::default() },
            _ => Self { ingress: counts, ..Self::default() },
        }
    }
}

/// Whose traffic: a pod, a container outside Kubernetes, a unit of the node, what else its interfaces
/// see, or nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Named(Arc<str>),
    Unit(Arc<str>),
    Node,
    Nobody,
}

impl Owner {
    pub(super) fn of(identity: Option<&Identity>, by: AttributedBy) -> Self {
        match (identity, by) {
            (Some(identity), _) => Self::named(identity),
            (None, AttributedBy::Host) => Self::Node,
            (None, _) => Self::Nobody,
        }
    }

    fn named(identity: &Identity) -> Self {
        if !identity.unit.is_empty() {
            return Self::Unit(Arc::clone(&identity.unit));
        }
        let id =
            if identity.pod_uid.is_empty() { &identity.container_id } else { &identity.pod_uid };
        Self::Named(Arc::clone(id))
    }
}

/// One owner's account.
pub(super) struct Account {
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) by: AttributedBy,
    pub(super) total: Traffic,
    /// Of its total, what no workload was given yet.
    ungiven: Traffic,
    /// Totals of closed accounts that had the same series. Few have any.
    inherited: Option<Box<Traffic>>,
    pub(super) window: Window<Traffic>,
    pub(super) last_ns: u64,
    pub(super) interfaces: Vec<Arc<str>>,
}

impl Account {
    /// What its series shows.
    fn shown(&self) -> Traffic {
        let mut shown = self.total;
        if let Some(inherited) = &self.inherited {
            shown += **inherited;
        }
        shown
    }

    fn inherit(&mut self, traffic: Traffic) {
        **self.inherited.get_or_insert_default() += traffic;
    }

    fn take_over(&mut self, other: Self) {
        self.total += other.total;
        self.ungiven += other.ungiven;
        if let Some(inherited) = other.inherited {
            self.inherit(*inherited);
        }
        self.window.merge(other.window);
        self.last_ns = self.last_ns.max(other.last_ns);
        for interface in other.interfaces {
            if !self.interfaces.contains(&interface) {
                self.interfaces.push(interface);
            }
        }
    }
}

/// Whose totals a series of the metrics shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Series {
    /// Empty for the node and for nobody.
    pub(super) namespace: Arc<str>,
    /// Empty for the node and for nobody.
    pub(super) pod: Arc<str>,
    /// What runs the pod, such as `Deployment/web`, or empty.
    pub(super) workload: Arc<str>,
    /// `pod`, `process`: all processes of the node together, `node` or `unknown`.
    pub(super) owner: &'static str,
}

impl Series {
    /// Units are one: a node may have very many.
    fn processes() -> Self {
        let (namespace, pod, workload) = Default::default();
        Self { namespace, pod, workload, owner: "process" }
    }

    /// None for a unit.
    fn of(owner: &Owner, account: &Account) -> Option<Self> {
        let identity = account.identity.as_ref();
        Some(Self {
            namespace: identity.map(|i| Arc::clone(&i.namespace)).unwrap_or_default(),
            pod: identity.map(|i| Arc::clone(&i.pod_name)).unwrap_or_default(),
            workload: identity.and_then(|i| i.workload.clone()).unwrap_or_default(),
            owner: match owner {
                Owner::Unit(_) => return None,
                Owner::Named(_) => "pod",
                Owner::Node => "node",
                Owner::Nobody => "unknown",
            },
        })
    }
}

/// All accounts.
pub(super) struct Accounts {
    // An index map, as of interfaces.
    accounts: IndexMap<Owner, Account>,
    /// Of all units together, closed accounts included.
    units: Traffic,
    workloads: Book<Traffic>,
    ledger: Ledger,
}

impl Accounts {
    pub(super) fn new(ledger: Ledger) -> Self {
        let (units, workloads) = (Traffic::default(), Book::default());
        Self { accounts: IndexMap::new(), units, workloads, ledger }
    }

    /// Books traffic of the owner in `attribution`, last seen at `last_ns` since boot.
    pub(super) fn book(
        &mut self,
        attribution: &Attribution,
        traffic: Traffic,
        last_ns: u64,
        interface: &Arc<str>,
    ) {
        let owner = Owner::of(attribution.identity.as_deref(), attribution.by);
        if matches!(owner, Owner::Unit(_)) {
            self.units += traffic;
        }
        if !self.accounts.contains_key(&owner) && self.accounts.len() >= MOST {
            self.forget_quietest();
        }
        let account = self.accounts.entry(owner).or_insert_with(|| Account {
            identity: None,
            by: attribution.by,
            total: Traffic::default(),
            ungiven: Traffic::default(),
            inherited: None,
            window: Window::default(),
            last_ns: 0,
            interfaces: Vec::new(),
        });
        if let Some(identity) = &attribution.identity {
            account.identity = Some(Arc::clone(identity));
        }
        // A pod's veth owns all of its traffic; that some sockets could be asked adds containers.
        if account.by != AttributedBy::Veth {
            account.by = attribution.by;
        }
        account.total += traffic;
        account.ungiven += traffic;
        account.window.add(slice_of(last_ns), traffic);
        account.last_ns = account.last_ns.max(last_ns);
        if !interface.is_empty() && !account.interfaces.contains(interface) {
            account.interfaces.push(Arc::clone(interface));
        }
    }

    /// Gives accounts the names that `name` knows by now. One that turns out to be another's goes
    /// to that one: a static pod has two UIDs.
    pub(super) fn rename(&mut self, mut name: impl FnMut(&Arc<Identity>) -> Option<Arc<Identity>>) {
        let mut moved = Vec::new();
        for (owner, account) in &mut self.accounts {
            let Some(named) = account.identity.as_ref().and_then(&mut name) else { continue };
            if Owner::named(&named) != *owner {
                moved.push((owner.clone(), Owner::named(&named)));
            }
            account.identity = Some(named);
        }
        for (from, to) in moved {
            let Some(account) = self.accounts.swap_remove(&from) else { continue };
            match self.accounts.entry(to) {
                Entry::Occupied(mut other) => other.get_mut().take_over(account),
                Entry::Vacant(place) => {
                    place.insert(account);
                }
            }
        }
    }

    fn forget_quietest(&mut self) {
        let quietest = self.accounts.iter().min_by_key(|(_, a)| a.last_ns);
        if let Some(owner) = quietest.map(|(owner, _)| owner.clone())
            && let Some(account) = self.accounts.swap_remove(&owner)
        {
            self.close(vec![(owner, account)]);
            self.lose("pod_accounts_full", 1);
        }
    }

    /// What closed accounts had stays in their workloads. A series that another account goes on with
    /// must not fall: that of a pod that came back under its old name.
    fn close(&mut self, closed: Vec<(Owner, Account)>) {
        let mut left: HashMap<Series, Traffic> = HashMap::new();
        for (owner, mut account) in closed {
            self.workloads.take(account.identity.as_deref(), &mut account.ungiven);
            if let Some(series) = Series::of(&owner, &account) {
                *left.entry(series).or_default() += account.shown();
            }
        }
        if left.is_empty() {
            return;
        }
        for (owner, account) in &mut self.accounts {
            let series = Series::of(owner, account);
            if let Some(traffic) = series.and_then(|series| left.remove(&series)) {
                account.inherit(traffic);
            }
        }
    }

    /// Closes the accounts of owners that are gone and were heard of for the last time before then
    /// (since boot); answers how many.
    pub(super) fn forget_gone(&mut self, gone: &HashMap<Owner, u64>) -> usize {
        let is_over = |owner: &Owner, account: &Account| {
            gone.get(owner).is_some_and(|gone_ns| account.last_ns <= *gone_ns)
        };
        let closed: Vec<_> =
            self.accounts.extract_if(.., |owner, account| is_over(owner, account)).collect();
        let count = closed.len();
        self.close(closed);
        count
    }

    fn lose(&self, reason: &'static str, records: u64) {
        let point = LossPoint { signal: super::NAME, stage: Stage::Aggregate, reason };
        self.ledger.lost(point, Amount::records(records));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// Closes accounts that saw nothing since `oldest`: the series of a deleted pod goes away.
    pub(super) fn forget(&mut self, oldest: SliceNumber) {
        let is_over = |account: &Account| account.window.newest().is_none_or(|n| n < oldest);
        let closed = self.accounts.extract_if(.., |_, account| is_over(account)).collect();
        self.close(closed);
    }

    /// Totals since the start, by series.
    pub(super) fn totals(&self) -> HashMap<Series, Traffic> {
        let mut totals: HashMap<Series, Traffic> = HashMap::new();
        for (owner, account) in &self.accounts {
            if let Some(series) = Series::of(owner, account) {
                *totals.entry(series).or_default() += account.shown();
            }
        }
        if self.units != Traffic::default() {
            totals.insert(Series::processes(), self.units);
        }
        totals
    }

    /// Totals since the start, by workload. What was once told as one workload's stays that one's.
    pub(super) fn workloads(&mut self) -> Vec<WorkloadTotals> {
        for account in self.accounts.values_mut() {
            self.workloads.take(account.identity.as_deref(), &mut account.ungiven);
        }
        let folded = self.workloads.take_folded();
        if folded > 0 {
            self.lose("workload_totals_full", folded);
        }
        self.workloads.told(|totals, traffic| {
            totals.ingress_bytes = traffic.ingress.bytes;
            totals.ingress_packets = traffic.ingress.packets;
            totals.egress_bytes = traffic.egress.bytes;
            totals.egress_packets = traffic.egress.packets;
        })
    }
}

#[cfg(test)]
mod tests;
