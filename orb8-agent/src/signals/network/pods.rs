//! Totals per owner: since the start for metrics, per slice for queries.

use std::{collections::HashMap, ops::AddAssign, sync::Arc};

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
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        add(&mut self.ingress, &other.ingress);
        add(&mut self.egress, &other.egress);
        self.overflow_packets += other.overflow_packets;
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

/// Whose traffic: a pod, a container outside Kubernetes, the node, or nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Named(Arc<str>),
    Node,
    Nobody,
}

impl Owner {
    fn of(attribution: &Attribution) -> Self {
        match (&attribution.identity, attribution.by) {
            (Some(identity), _) if !identity.pod_uid.is_empty() => {
                Self::Named(Arc::clone(&identity.pod_uid))
            }
            (Some(identity), _) => Self::Named(Arc::clone(&identity.container_id)),
            (None, AttributedBy::Host) => Self::Node,
            (None, _) => Self::Nobody,
        }
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

/// Totals of one pod since the agent started, for metrics.
#[derive(Clone, Debug)]
pub struct PodTotals {
    /// Namespace; empty for the node and for nobody.
    pub namespace: Arc<str>,
    /// Name; empty for the node and for nobody.
    pub pod: Arc<str>,
    /// What runs the pod, such as `Deployment/web`.
    pub workload: Option<Arc<str>>,
    /// How the owner was found.
    pub by: AttributedBy,
    /// Received.
    pub ingress: Counts,
    /// Sent.
    pub egress: Counts,
}

/// All accounts.
pub(super) struct Accounts {
    accounts: HashMap<Owner, Account>,
    ledger: Ledger,
}

impl Accounts {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self { accounts: HashMap::new(), ledger }
    }

    /// Books traffic of the owner in `attribution`, last seen at `last_ns` since boot.
    pub(super) fn book(
        &mut self,
        attribution: &Attribution,
        traffic: Traffic,
        last_ns: u64,
        interface: &Arc<str>,
    ) {
        let owner = Owner::of(attribution);
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
        if !account.interfaces.contains(interface) {
            account.interfaces.push(Arc::clone(interface));
        }
    }

    fn forget_quietest(&mut self) {
        let quietest = self.accounts.iter().min_by_key(|(_, a)| a.last_ns);
        if let Some(owner) = quietest.map(|(owner, _)| owner.clone()) {
            self.accounts.remove(&owner);
            let point = LossPoint {
                signal: super::NAME,
                stage: Stage::Aggregate,
                reason: "pod_accounts_full",
            };
            self.ledger.lost(point, Amount { records: 1, packets: 0 });
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// Closes accounts that saw nothing since `oldest`: the series of a deleted pod goes away.
    pub(super) fn forget(&mut self, oldest: SliceNumber) {
        self.accounts.retain(|_, a| a.window.newest().is_some_and(|newest| newest >= oldest));
    }

    pub(super) fn totals(&self) -> Vec<PodTotals> {
        let empty: Arc<str> = Arc::from("");
        let totals = self.accounts.values().map(|account| {
            let identity = account.identity.as_ref();
            PodTotals {
                namespace: identity
                    .map_or_else(|| Arc::clone(&empty), |i| Arc::clone(&i.namespace)),
                pod: identity.map_or_else(|| Arc::clone(&empty), |i| Arc::clone(&i.pod_name)),
                workload: identity.and_then(|i| i.workload.clone()),
                by: account.by,
                ingress: account.total.ingress,
                egress: account.total.egress,
            }
        });
        totals.collect()
    }
}
