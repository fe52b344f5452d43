//! What each container called: per slice of the last minutes, and since it is watched; and what each
//! workload did.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use orb8_k8s::{ContainerId, PodUid};
use orb8_proto::WorkloadTotals;

use super::ends::{Ends, Figure};
use crate::{
    aggregator::{GONE_MOST, SliceNumber, oldest_kept, slice_of},
    enricher::{Attribution, Identity},
    totals::Book,
};

/// Containers and units that are kept apart, those that are gone included, [`GONE_MOST`] at the most,
/// until their calls have left the window. Beyond it the one that is gone for longest is forgotten, or
/// the quietest, and counted.
/// Some 3 KB each: a container that lives through the window with 60 different calls takes 22 KB, one
/// that came and went 2 KB.
const MOST: usize = 10_000;

/// Whose calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Container(ContainerId),
    /// A pod's own cgroup: helpers of the runtime.
    Pod(PodUid),
    /// A unit of the node itself.
    Unit(Arc<str>),
    /// Calls that found no room to be counted for their cgroup.
    Nobody,
}

/// Whose calls a series of the metrics shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Series {
    pub(super) namespace: Arc<str>,
    pub(super) pod: Arc<str>,
    pub(super) container: Arc<str>,
    pub(super) workload: Arc<str>,
    /// `pod`, `process`: all units of the node together, or `unknown`.
    pub(super) owner: &'static str,
}

impl Series {
    /// Units are one: a node may have very many.
    pub(super) fn processes() -> Self {
        Self::named(None, "process")
    }

    /// None for a unit.
    pub(super) fn of(owner: &Owner, identity: Option<&Identity>) -> Option<Self> {
        match owner {
            Owner::Unit(_) => None,
            Owner::Nobody => Some(Self::named(identity, "unknown")),
            Owner::Container(_) | Owner::Pod(_) => Some(Self::named(identity, "pod")),
        }
    }

    fn named(identity: Option<&Identity>, owner: &'static str) -> Self {
        let of = |of: fn(&Identity) -> &Arc<str>| {
            identity.map(|identity| Arc::clone(of(identity))).unwrap_or_default()
        };
        Self {
            namespace: of(|i| &i.namespace),
            pod: of(|i| &i.pod_name),
            container: of(|i| &i.container),
            workload: identity.and_then(|i| i.workload.clone()).unwrap_or_default(),
            owner,
        }
    }
}

/// One call since the owner is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) number: u16,
    pub(super) calls: u64,
    /// End of the last interval with calls, in nanoseconds since boot.
    pub(super) last_ns: u64,
}

/// What one owner called.
pub(super) struct Account {
    pub(super) attribution: Attribution,
    /// By number.
    totals: Vec<Total>,
    /// Of all of them, what no workload was given yet.
    ungiven: u64,
    /// By number, totals of closed accounts that had the same series.
    inherited: Vec<(u16, u64)>,
    /// Oldest first; each by number.
    slices: VecDeque<(SliceNumber, Vec<(u16, u64)>)>,
    /// How calls ended, where that is watched.
    pub(super) ends: Ends,
    /// When it was first seen.
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    /// All of its cgroups were made while the probe was attached.
    pub(super) since_start: bool,
    /// Of its calls, by number, those that its runtime made to prepare it or to enter it.
    of_runtime: Vec<(u16, u64)>,
    /// Calls that were nobody's when this one was first seen, and when it was last alive.
    pub(super) nobodys: (u64, u64),
    /// A cgroup of it exists.
    pub(super) lives: bool,
}

impl Account {
    fn new(attribution: Attribution, now_ns: u64, since_start: bool, nobodys: u64) -> Self {
        Self {
            attribution,
            totals: Vec::new(),
            ungiven: 0,
            inherited: Vec::new(),
            slices: VecDeque::new(),
            ends: Ends::default(),
            first_ns: now_ns,
            last_ns: now_ns,
            since_start,
            of_runtime: Vec::new(),
            nobodys: (nobodys, nobodys),
            lives: true,
        }
    }

    /// Who it is, as far as that is known.
    pub(super) fn identity(&self) -> Option<&Arc<Identity>> {
        self.attribution.identity.as_ref()
    }

    /// Every call since the owner is watched, by number.
    pub(super) fn totals(&self) -> &[Total] {
        &self.totals
    }

    /// What its series show, by number. A number may come twice.
    pub(super) fn shown(&self) -> impl Iterator<Item = (u16, u64)> {
        let own = self.totals.iter().map(|total| (total.number, total.calls));
        own.chain(self.inherited.iter().copied())
    }

    /// One of its calls was its runtime's.
    pub(super) fn leave_to_runtime(&mut self, number: u16) {
        add(&mut self.of_runtime, number, 1);
    }

    /// Nobody but its runtime called this.
    pub(super) fn is_runtimes_alone(&self, total: &Total) -> bool {
        self.of_runtime.iter().any(|(n, calls)| *n == total.number && *calls >= total.calls)
    }

    /// Calls within some slices, by number.
    pub(super) fn sums(&self, from: SliceNumber, to: SliceNumber) -> Vec<(u16, u64)> {
        let mut sums: Vec<(u16, u64)> = Vec::new();
        for (_, calls) in self.slices.iter().filter(|(slice, _)| (from..=to).contains(slice)) {
            for &(number, calls) in calls {
                add(&mut sums, number, calls);
            }
        }
        sums
    }

    fn book(&mut self, calls: &[(u16, u64)], now_ns: u64) {
        let slice = slice_of(now_ns);
        if self.slices.back().is_none_or(|(newest, _)| *newest < slice) {
            self.slices.push_back((slice, Vec::with_capacity(calls.len())));
        }
        let oldest = oldest_kept(slice);
        while self.slices.pop_front_if(|(slice, _)| *slice < oldest).is_some() {}
        for &(number, calls) in calls {
            self.ungiven += calls;
            if let Some((_, newest)) = self.slices.back_mut() {
                add(newest, number, calls);
            }
            match self.totals.binary_search_by_key(&number, |total| total.number) {
                Ok(at) => {
                    self.totals[at].calls += calls;
                    self.totals[at].last_ns = now_ns;
                }
                Err(at) => self.totals.insert(at, Total { number, calls, last_ns: now_ns }),
            }
        }
        self.last_ns = now_ns;
    }

    fn newest(&self) -> Option<SliceNumber> {
        self.slices.back().map(|(slice, _)| *slice)
    }
}

fn add(sums: &mut Vec<(u16, u64)>, number: u16, calls: u64) {
    match sums.binary_search_by_key(&number, |(number, _)| *number) {
        Ok(at) => sums[at].1 += calls,
        Err(at) => sums.insert(at, (number, calls)),
    }
}

/// All accounts.
#[derive(Default)]
pub(super) struct Accounts {
    accounts: HashMap<Owner, Account>,
    /// Accounts that were forgotten while they were of use, since [`Self::take_forgotten`].
    forgotten: u64,
    /// Likewise, since [`Self::take_forgotten_gone`].
    forgotten_gone: u64,
    workloads: Book<u64>,
}

/// What is known of an owner that is new.
pub(super) struct Newcomer {
    pub(super) attribution: Attribution,
    pub(super) since_start: bool,
    pub(super) nobodys: u64,
}

impl Accounts {
    /// Notes that an owner is there, whether it calls or not.
    pub(super) fn meet(
        &mut self,
        owner: &Owner,
        now_ns: u64,
        newcomer: impl FnOnce() -> Newcomer,
    ) -> &mut Account {
        if !self.accounts.contains_key(owner) {
            if self.accounts.len() >= MOST {
                self.forget_one();
            }
            let Newcomer { attribution, since_start, nobodys } = newcomer();
            let account = Account::new(attribution, now_ns, since_start, nobodys);
            return self.accounts.entry(owner.clone()).or_insert(account);
        }
        let account = self.accounts.entry(owner.clone());
        let account = account.or_insert_with(|| {
            let Newcomer { attribution, since_start, nobodys } = newcomer();
            Account::new(attribution, now_ns, since_start, nobodys)
        });
        account.lives = true;
        account
    }

    /// Books calls of an owner that was met.
    pub(super) fn book(&mut self, owner: &Owner, calls: &[(u16, u64)], now_ns: u64) {
        if let Some(account) = self.accounts.get_mut(owner) {
            account.book(calls, now_ns);
        }
    }

    /// Books how calls of an owner that was met ended.
    pub(super) fn book_ends(&mut self, owner: &Owner, ends: &[((u16, Figure), u64)], now_ns: u64) {
        if let Some(account) = self.accounts.get_mut(owner) {
            account.ends.book(ends, now_ns);
        }
    }

    pub(super) fn get(&self, owner: &Owner) -> Option<&Account> {
        self.accounts.get(owner)
    }

    pub(super) fn get_mut(&mut self, owner: &Owner) -> Option<&mut Account> {
        self.accounts.get_mut(owner)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Owner, &Account)> {
        self.accounts.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Owner, &mut Account)> {
        self.accounts.iter_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Closes the accounts of who is gone and called nothing since `oldest`.
    pub(super) fn forget(&mut self, oldest: SliceNumber) {
        let is_over = |account: &Account| {
            !account.lives && account.newest().is_none_or(|newest| newest < oldest)
        };
        let closed = self.accounts.extract_if(|_, account| is_over(account)).collect();
        self.close(closed);
        self.forget_gone();
    }

    /// Closes the accounts of those that are gone longest, where too many are.
    fn forget_gone(&mut self) {
        let gone = self.accounts.values().filter(|account| !account.lives);
        let mut gone: Vec<u64> = gone.map(|account| account.last_ns).collect();
        let Some(over) = gone.len().checked_sub(GONE_MOST).filter(|over| *over > 0) else { return };
        let (_, limit, _) = gone.select_nth_unstable(over - 1);
        let is_over = |account: &Account| !account.lives && account.last_ns <= *limit;
        let closed: Vec<_> = self.accounts.extract_if(|_, account| is_over(account)).collect();
        self.forgotten_gone += closed.len() as u64;
        self.close(closed);
    }

    /// What closed accounts had stays in their workloads. A series that another account goes on with
    /// must not fall: that of a container that was restarted.
    fn close(&mut self, closed: Vec<(Owner, Account)>) {
        let mut left: HashMap<Series, Vec<(u16, u64)>> = HashMap::new();
        for (owner, mut account) in closed {
            let identity = account.attribution.identity.clone();
            self.workloads.take(identity.as_deref(), &mut account.ungiven);
            if let Some(series) = Series::of(&owner, identity.as_deref()) {
                let sums = left.entry(series).or_default();
                account.shown().for_each(|(number, calls)| add(sums, number, calls));
            }
        }
        if left.is_empty() {
            return;
        }
        for (owner, account) in &mut self.accounts {
            let series = Series::of(owner, account.identity().map(|identity| &**identity));
            for (number, calls) in series.and_then(|s| left.remove(&s)).unwrap_or_default() {
                add(&mut account.inherited, number, calls);
            }
        }
    }

    /// Calls since the start, by workload. What was once told as one workload's stays that one's.
    pub(super) fn workloads(&mut self) -> Vec<WorkloadTotals> {
        for Account { attribution, ungiven, .. } in self.accounts.values_mut() {
            self.workloads.take(attribution.identity.as_deref(), ungiven);
        }
        self.workloads.told(|totals, calls| totals.syscalls = *calls)
    }

    /// How often calls lost their workload because there are too many, since the last call.
    pub(super) fn take_folded(&mut self) -> u64 {
        self.workloads.take_folded()
    }

    /// Accounts of who is gone that had to make room for others that are, since the last call.
    pub(super) fn take_forgotten_gone(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten_gone)
    }

    /// Accounts that had to make room, since the last call.
    pub(super) fn take_forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }

    fn forget_one(&mut self) {
        let least = self.accounts.iter().min_by_key(|(_, a)| (a.lives, a.last_ns));
        if let Some(owner) = least.map(|(owner, _)| owner.clone()) {
            let closed = self.accounts.remove(&owner).map(|account| (owner, account));
            self.close(closed.into_iter().collect());
            self.forgotten += 1;
        }
    }
}

#[cfg(test)]
mod tests;
