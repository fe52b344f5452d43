//! Totals per owner: since the start for metrics, per slice for queries.

use std::{ops::AddAssign, sync::Arc};

use indexmap::{IndexMap, map::Entry};
use orb8_common::network::Counts;
use orb8_proto::Direction;

use super::maps::add;
use crate::{
    aggregator::{SliceNumber, Window, slice_of},
    enricher::{AttributedBy, Attribution, Identity},
    ledger::{Amount, Ledger, LossPoint, Stage},
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
    pub(super) window: Window<Traffic>,
    pub(super) last_ns: u64,
    pub(super) interfaces: Vec<Arc<str>>,
}

impl Account {
    fn take_over(&mut self, other: Self) {
        self.total += other.total;
        self.window.merge(other.window);
        self.last_ns = self.last_ns.max(other.last_ns);
        for interface in other.interfaces {
            if !self.interfaces.contains(&interface) {
                self.interfaces.push(interface);
            }
        }
    }
}

/// Totals of one pod since the agent started, for metrics.
#[derive(Clone, Debug)]
pub(super) struct PodTotals {
    /// Namespace; empty for the node and for nobody.
    pub namespace: Arc<str>,
    /// Name; empty for the node and for nobody.
    pub pod: Arc<str>,
    /// What runs the pod, such as `Deployment/web`.
    pub workload: Option<Arc<str>>,
    /// How the owner was found.
    pub by: AttributedBy,
    /// All processes of the node together.
    pub is_processes: bool,
    /// Received.
    pub ingress: Counts,
    /// Sent.
    pub egress: Counts,
}

/// All accounts.
pub(super) struct Accounts {
    // An index map, as of interfaces.
    accounts: IndexMap<Owner, Account>,
    /// Of all units together, closed accounts included.
    units: Traffic,
    ledger: Ledger,
}

impl Accounts {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self { accounts: IndexMap::new(), units: Traffic::default(), ledger }
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
        if let Some(owner) = quietest.map(|(owner, _)| owner.clone()) {
            self.accounts.swap_remove(&owner);
            let point = LossPoint {
                signal: super::NAME,
                stage: Stage::Aggregate,
                reason: "pod_accounts_full",
            };
            self.ledger.lost(point, Amount::records(1));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// Closes accounts that saw nothing since `oldest`: the series of a deleted pod goes away.
    pub(super) fn forget(&mut self, oldest: SliceNumber) {
        self.accounts.retain(|_, a| a.window.newest().is_some_and(|newest| newest >= oldest));
    }

    /// Units are one: a node may have very many.
    pub(super) fn totals(&self) -> Vec<PodTotals> {
        let empty: Arc<str> = Arc::from("");
        let processes = PodTotals {
            namespace: Arc::clone(&empty),
            pod: Arc::clone(&empty),
            workload: None,
            by: AttributedBy::SocketCgroup,
            is_processes: true,
            ingress: self.units.ingress,
            egress: self.units.egress,
        };
        let accounts = self.accounts.iter().filter(|(owner, _)| !matches!(owner, Owner::Unit(_)));
        let totals = accounts.map(|(_, account)| {
            let identity = account.identity.as_ref();
            PodTotals {
                namespace: identity
                    .map_or_else(|| Arc::clone(&empty), |i| Arc::clone(&i.namespace)),
                pod: identity.map_or_else(|| Arc::clone(&empty), |i| Arc::clone(&i.pod_name)),
                workload: identity.and_then(|i| i.workload.clone()),
                by: account.by,
                is_processes: false,
                ingress: account.total.ingress,
                egress: account.total.egress,
            }
        });
        let processes = (self.units != Traffic::default()).then_some(processes);
        totals.chain(processes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(pod_uid: &str, container_id: &str, pod_name: &str) -> Arc<Identity> {
        let empty: Arc<str> = "".into();
        Arc::new(Identity {
            pod_uid: pod_uid.into(),
            namespace: Arc::clone(&empty),
            pod_name: pod_name.into(),
            container_id: container_id.into(),
            container: empty,
            qos: None,
            workload: None,
            unit: "".into(),
        })
    }

    #[test]
    fn an_account_that_turns_out_to_be_anothers_goes_to_that_one_whole() {
        let mut accounts = Accounts::new(Ledger::default());
        let mut book = |identity: &Arc<Identity>, bytes, last_ns, interface: &str| {
            let by = AttributedBy::Veth;
            let attribution = Attribution { identity: Some(Arc::clone(identity)), by };
            let counts = Counts { bytes, packets: 1, ..Counts::default() };
            let traffic = Traffic::of(Direction::Egress, counts);
            accounts.book(&attribution, traffic, last_ns, &interface.into());
        };
        let (bare, named) = (identity("hash", "", "hash"), identity("uid", "", "proxy"));
        let (other, renamed) = (identity("2", "", "2"), identity("2", "", "web"));
        book(&bare, 10, 5, "veth1");
        book(&named, 1, 7, "veth2");
        book(&other, 100, 9, "veth3");
        accounts.rename(|identity| match &*identity.pod_uid {
            "hash" => Some(Arc::clone(&named)),
            "2" => Some(Arc::clone(&renamed)),
            _ => None,
        });
        let mut all: Vec<_> = accounts.iter().collect();
        all.sort_by_key(|account| account.last_ns);
        let told =
            all.iter().map(|a| (&*a.identity.as_ref().unwrap().pod_name, a.total.egress.bytes));
        assert_eq!(told.collect::<Vec<_>>(), [("proxy", 11), ("web", 100)]);
        assert_eq!(
            (all[0].window.sum(0, 9).unwrap().egress.bytes, all[0].interfaces.len()),
            (11, 2)
        );
    }
}
