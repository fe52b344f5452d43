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
    /// Totals of closed accounts that had the same series.
    inherited: Traffic,
    pub(super) window: Window<Traffic>,
    pub(super) last_ns: u64,
    pub(super) interfaces: Vec<Arc<str>>,
}

impl Account {
    fn take_over(&mut self, other: Self) {
        self.total += other.total;
        self.ungiven += other.ungiven;
        self.inherited += other.inherited;
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
            inherited: Traffic::default(),
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
        if closed.is_empty() {
            return;
        }
        let mut heirs = HashMap::new();
        for (owner, account) in &mut self.accounts {
            if let Some(series) = Series::of(owner, account) {
                heirs.insert(series, &mut account.inherited);
            }
        }
        for (owner, mut account) in closed {
            self.workloads.take(account.identity.as_deref(), &mut account.ungiven);
            let heir = Series::of(&owner, &account).and_then(|series| heirs.get_mut(&series));
            if let Some(inherited) = heir {
                **inherited += account.total;
                **inherited += account.inherited;
            }
        }
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
                let sum = totals.entry(series).or_default();
                *sum += account.total;
                *sum += account.inherited;
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{aggregator::slice_start_ns, signals::network::metrics::NetworkMetrics};

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

    /// A pod of one of three workloads in two namespaces, or one without names.
    fn pod(uid: u8, named: bool) -> Arc<Identity> {
        let named_identity = Identity {
            namespace: format!("ns-{}", uid % 2).into(),
            workload: (uid % 4 > 0).then(|| format!("Deployment/{}", uid % 3).into()),
            ..(*identity(&uid.to_string(), "", &format!("pod-{}", uid % 8))).clone()
        };
        if named { Arc::new(named_identity) } else { identity(&uid.to_string(), "", "") }
    }

    fn bytes(counts: u64, direction: Direction) -> Traffic {
        let counts = Counts { bytes: counts, packets: 1, ..Counts::default() };
        Traffic::of(direction, counts)
    }

    type Told = HashMap<(String, String), [u64; 4]>;

    fn told(accounts: &mut Accounts) -> Told {
        let all = accounts.workloads().into_iter().map(|w| {
            let sums = [w.ingress_bytes, w.egress_bytes, w.ingress_packets, w.egress_packets];
            ((w.namespace, w.workload), sums)
        });
        all.collect()
    }

    #[derive(Clone, Debug)]
    enum Act {
        /// Of a pod, with its names or under its UID.
        Book(u8, bool, u32),
        /// Traffic of a unit, of the node, or of nobody.
        BookOther(u8, u32),
        /// Everybody gets the names, but every third pod; some turn out to be others.
        Name,
        Pass(u32),
        Ask,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            8 => (any::<u8>(), any::<bool>(), any::<u32>()).prop_map(|(p, n, b)| Act::Book(p, n, b)),
            2 => (any::<u8>(), any::<u32>()).prop_map(|(w, b)| Act::BookOther(w, b)),
            1 => Just(Act::Name),
            1 => (1_u32..30).prop_map(Act::Pass),
            2 => Just(Act::Ask),
        ];
        prop::collection::vec(act, 0..300)
    }

    proptest! {
        #[test]
        fn workloads_never_fall_and_have_together_all_that_was_booked(acts in acts()) {
            let mut accounts = Accounts::new(Ledger::default());
            let (mut slice, mut booked, mut before) = (100, [0_u64; 2], Told::new());
            for act in acts.into_iter().chain([Act::Ask]) {
                let at = slice_start_ns(slice);
                match act {
                    Act::Book(uid, named, size) => {
                        let attribution =
                            Attribution { identity: Some(pod(uid, named)), by: AttributedBy::Veth };
                        let traffic = bytes(size.into(), Direction::Egress);
                        accounts.book(&attribution, traffic, at, &"veth".into());
                        booked[1] += u64::from(size);
                    }
                    Act::BookOther(who, size) => {
                        let mut unit = (*identity("", "", "")).clone();
                        unit.unit = format!("unit-{who}").into();
                        let (identity, by) = match who % 3 {
                            0 => (Some(Arc::new(unit)), AttributedBy::SocketCgroup),
                            1 => (None, AttributedBy::Host),
                            _ => (None, AttributedBy::None),
                        };
                        let traffic = bytes(size.into(), Direction::Ingress);
                        accounts.book(&Attribution { identity, by }, traffic, at, &"eth0".into());
                        booked[0] += u64::from(size);
                    }
                    Act::Name => accounts.rename(|identity| {
                        let uid: u8 = identity.pod_uid.parse().ok()?;
                        // As a static pod's hash is its mirror's UID by the names.
                        let uid = if uid > 240 { uid - 240 } else { uid };
                        (uid % 3 > 0).then(|| pod(uid, true))
                    }),
                    Act::Pass(slices) => {
                        slice += slices;
                        accounts.forget(slice.saturating_sub(20));
                    }
                    Act::Ask => {
                        let now = told(&mut accounts);
                        for (workload, sums) in &before {
                            let rose = now[workload].iter().zip(sums).all(|(now, then)| now >= then);
                            prop_assert!(rose, "{workload:?}: {sums:?}, then {:?}", now[workload]);
                        }
                        let sum = |of: usize| now.values().map(|sums| sums[of]).sum::<u64>();
                        prop_assert_eq!([sum(0), sum(1)], booked);
                        before = now;
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_not_told_before_its_name_came_is_the_workloads_and_what_was_told_stays() {
        let mut accounts = Accounts::new(Ledger::default());
        let book = |accounts: &mut Accounts, named, size| {
            let attribution = Attribution { identity: Some(pod(1, named)), by: AttributedBy::Veth };
            accounts.book(&attribution, bytes(size, Direction::Egress), 0, &"veth".into());
        };
        let nobodys = (String::new(), String::new());
        let its = ("ns-1".to_owned(), "Deployment/1".to_owned());
        book(&mut accounts, false, 10);
        assert_eq!(told(&mut accounts), HashMap::from([(nobodys.clone(), [0, 10, 0, 1])]));
        book(&mut accounts, false, 20);
        accounts.rename(|_| Some(pod(1, true)));
        book(&mut accounts, true, 40);
        let both = HashMap::from([(nobodys, [0, 10, 0, 1]), (its, [0, 60, 0, 2])]);
        assert_eq!(told(&mut accounts), both);
        // The pod is gone, and stays in the sums.
        accounts.forget(u32::MAX);
        assert_eq!((accounts.iter().count(), told(&mut accounts)), (0, both));
    }

    #[test]
    fn a_full_book_of_accounts_loses_no_workloads_bytes() {
        let (mut accounts, ledger) = (Accounts::new(Ledger::default()), Ledger::default());
        accounts.ledger = ledger.clone();
        for n in 0..MOST + 100 {
            let mut identity = (*identity(&n.to_string(), "", &n.to_string())).clone();
            identity.namespace = "shop".into();
            identity.workload = Some("Deployment/web".into());
            let attribution =
                Attribution { identity: Some(Arc::new(identity)), by: AttributedBy::Veth };
            accounts.book(&attribution, bytes(3, Direction::Egress), n as u64, &"veth".into());
        }
        let all = 3 * (MOST as u64 + 100);
        let its = ("shop".to_owned(), "Deployment/web".to_owned());
        assert_eq!(told(&mut accounts)[&its][1], all);
        assert_eq!(ledger.losses()[0].records, 100);
    }

    #[test]
    fn ten_thousand_pods_that_come_go_and_come_back_leave_no_series_and_make_none_fall() {
        let mut accounts = Accounts::new(Ledger::default());
        let (mut slice, mut most, mut before) = (100, 0, HashMap::new());
        // Two new pods a slice, a fifth of them under names that were there before: a StatefulSet's.
        for n in 0..10_000_u32 {
            slice += n % 2;
            let again = n.is_multiple_of(5);
            let name = if again { format!("db-{}", n / 5 % 4) } else { format!("web-{n}") };
            let mut identity = (*identity(&format!("uid-{n}"), "", &name)).clone();
            identity.namespace = "shop".into();
            let attribution =
                Attribution { identity: Some(Arc::new(identity)), by: AttributedBy::Veth };
            let traffic = bytes(1_000 + u64::from(n % 7), Direction::Egress);
            accounts.book(&attribution, traffic, slice_start_ns(slice), &"veth".into());
            accounts.forget(slice.saturating_sub(20));
            let now = accounts.totals();
            for (series, traffic) in &now {
                let then: Option<&Traffic> = before.get(series);
                assert!(then.is_none_or(|then| then.egress.bytes <= traffic.egress.bytes));
            }
            most = most.max(now.len());
            before = now;
            if n.is_multiple_of(500) {
                // A sample for each direction of bytes, packets and packets on the wire.
                assert_eq!(samples(&accounts), before.len() * 6);
            }
        }
        assert!(most <= 21 * 2, "{most} series at once");
        assert_eq!(before.keys().filter(|series| series.pod.starts_with("db-")).count(), 4);
        accounts.forget(slice + 1);
        assert_eq!(samples(&accounts), 0);
    }

    /// Series of pods in what a scrape gets, after making sure that none is there twice.
    fn samples(accounts: &Accounts) -> usize {
        let metrics = NetworkMetrics { pods: accounts.totals(), flows: 0, peers_unasked: 0 };
        let text = orb8_metrics::encode(Box::new(metrics)).unwrap();
        let names = text.lines().filter(|line| line.starts_with("orb8_network_"));
        let names: Vec<&str> = names.map(|line| line.rsplit_once(' ').unwrap().0).collect();
        let distinct: std::collections::HashSet<&&str> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{text}");
        names.len()
    }
}
