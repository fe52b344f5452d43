//! The pods of a node as the API tells of them, with those that are gone for as long as records of
//! them may still come.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use orb8_proto::{PodSource, PodSourceState};

use self::known::{Gone, Known};
pub use super::contact::WatchState;
use super::{
    ContainerId, Pod, PodUid,
    api::Query,
    contact::Contact,
    manifest::{Object, Observed},
    watcher::Mirror,
};
use crate::PodLookup;

mod known;

/// For how long who is gone still answers. Records come late: a flow's last packets are taken up to
/// a minute after they passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// After it was told that they are gone.
    pub time: Duration,
    /// So many, at most. The oldest go early when there are more: their late records then have ids
    /// and no names.
    pub most: usize,
}

impl Default for Keep {
    fn default() -> Self {
        Self { time: Duration::from_secs(60), most: 10_000 }
    }
}

impl Keep {
    /// What was gone before this is forgotten at `now`.
    pub(super) fn after(&self, now: i64) -> i64 {
        now.saturating_sub(nanos(self.time))
    }
}

/// Pods, found by UID, container and address. The watcher writes it, everybody else reads.
#[derive(Debug)]
pub struct PodStore {
    node: Arc<str>,
    place: Place,
    keep: Keep,
    known: RwLock<Known>,
    generation: AtomicU64,
    contact: Contact,
}

/// Whose pods a store is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The node's own.
    Here,
    /// All the others: as peers only, so they are kept without containers and labels.
    Elsewhere,
    /// All that have a node, kept as those elsewhere.
    Everywhere,
}

impl PodStore {
    /// A store that knows nobody yet. `node` is the node whose pods it will know.
    pub fn new(node: &str) -> Self {
        Self::of(node, Place::Here, Keep::default())
    }

    /// A store of the pods that are not on `node`.
    pub(super) fn elsewhere(node: &str) -> Self {
        Self::of(node, Place::Elsewhere, Keep::default())
    }

    /// A store of the pods of the whole cluster.
    pub(super) fn everywhere(keep: Keep) -> Self {
        Self::of("", Place::Everywhere, keep)
    }

    fn of(node: &str, place: Place, keep: Keep) -> Self {
        Self {
            node: node.into(),
            place,
            keep,
            known: RwLock::default(),
            generation: AtomicU64::new(0),
            contact: Contact::default(),
        }
    }

    /// Takes in a pod as it is now. `now` is Unix time in nanoseconds, here as everywhere.
    pub fn apply(&self, observed: Observed, now: i64) {
        let mut known = self.write();
        if known.apply(observed, now) {
            self.news();
        }
    }

    /// Takes in the last that is told of a pod: it was deleted.
    pub(super) fn delete(&self, observed: Observed, now: i64) {
        let uid = observed.pod.uid;
        let mut known = self.write();
        known.apply(observed, now);
        known.end(uid, Gone { at: now, for_good: true });
        self.news();
    }

    /// Takes in all pods that there are: the others are gone.
    pub(super) fn replace(&self, list: Vec<Observed>, now: i64) {
        self.replace_and(list, now, || ());
    }

    /// Takes in all pods that there are: the others are gone. `and` is done before anybody sees the
    /// new pods.
    pub fn replace_and(&self, list: Vec<Observed>, now: i64, and: impl FnOnce()) {
        let mut known = self.write();
        and();
        let listed: HashSet<PodUid> = list.iter().map(|observed| observed.pod.uid).collect();
        let mut changed = false;
        for observed in list {
            changed |= known.apply(observed, now);
        }
        let alive = known.pods.iter().filter(|(_, entry)| entry.gone.is_none());
        let missing: Vec<PodUid> =
            alive.map(|(uid, _)| *uid).filter(|uid| !listed.contains(uid)).collect();
        for uid in missing {
            known.end(uid, Gone { at: now, for_good: false });
            changed = true;
        }
        known.complete_since = now;
        if changed {
            self.news();
        }
    }

    /// Forgets whatever has been gone for long enough. What was named stays named: the generation
    /// does not change.
    pub fn forget(&self, now: i64) {
        self.write().sweep(self.keep.after(now), self.keep.most);
    }

    /// Whether the pod with this UID exists. One that is gone still answers for a while.
    #[must_use]
    pub fn is_alive(&self, uid: &PodUid) -> bool {
        self.read().pods.get(uid).is_some_and(|entry| entry.gone.is_none())
    }

    /// The nodes of the pods of `namespace` (empty: of all) whose names begin with `prefix`, of those
    /// that exist and of those that were told to be gone after `since` (Unix time in nanoseconds).
    /// None where some may be missing: the API is away, or was first heard or listed anew after
    /// `since`, so that pods may have come and gone unseen, or there were too many to remember.
    #[must_use]
    pub fn nodes_of(
        &self,
        namespace: &str,
        prefix: &str,
        since: i64,
    ) -> Option<BTreeSet<Arc<str>>> {
        if self.state() != WatchState::Connected {
            return None;
        }
        let known = self.read();
        let wanted = |entry: &&known::Entry| {
            let pod = &entry.pod;
            (namespace.is_empty() || *pod.namespace == *namespace)
                && pod.name.starts_with(prefix)
                && entry.gone.is_none_or(|gone| gone.at >= since)
        };
        let found = || known.pods.values().filter(wanted).map(|entry| Arc::clone(&entry.pod.node));
        (known.complete_since <= since).then(|| found().collect())
    }

    /// How the watch is doing.
    #[must_use]
    pub fn state(&self) -> WatchState {
        self.contact.state()
    }

    fn news(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodLookup for PodStore {
    fn by_uid(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        let known = self.read();
        let api_uid = known.by_hash.get(uid).unwrap_or(uid);
        known.pods.get(api_uid).map(|entry| Arc::clone(&entry.pod))
    }

    fn by_container(&self, id: &ContainerId) -> Option<(Arc<Pod>, Arc<str>)> {
        let known = self.read();
        let (uid, name) = known.by_container.get(id)?;
        Some((Arc::clone(&known.pods.get(uid)?.pod), Arc::clone(name)))
    }

    fn by_ip(&self, ip: IpAddr, at_unix_ns: i64) -> Option<Arc<Pod>> {
        let known = self.read();
        let uid = known.by_ip.owner(&ip.to_canonical(), at_unix_ns)?;
        known.pods.get(&uid).map(|entry| Arc::clone(&entry.pod))
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn namespaces(&self) -> Vec<Arc<str>> {
        let known = self.read();
        let names: BTreeSet<_> =
            known.pods.values().map(|entry| Arc::clone(&entry.pod.namespace)).collect();
        names.into_iter().collect()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.read().pods.values().map(|entry| Arc::clone(&entry.pod)).collect()
    }

    fn source(&self) -> PodSource {
        let pods_known = self.read().alive as u64;
        let (state, age, mut reason) = self.state().told();
        if state == PodSourceState::Connected && pods_known == 0 && self.place == Place::Here {
            let node = &self.node;
            reason = format!("no pod runs on a node called `{node}`: is that its name?");
        }
        PodSource {
            kind: "kubernetes".into(),
            state: state.into(),
            pods_known,
            age_ns: nanos(age),
            reason,
        }
    }
}

impl Mirror for PodStore {
    type Object = Object;

    fn what(&self) -> &'static str {
        match self.place {
            Place::Here | Place::Everywhere => "pods",
            Place::Elsewhere => "pods elsewhere",
        }
    }

    fn query(&self) -> Query {
        let fields = match self.place {
            Place::Here => Some(format!("spec.nodeName={}", self.node)),
            Place::Elsewhere => Some(format!("spec.nodeName!={}", self.node)),
            Place::Everywhere => None,
        };
        Query { fields, ..Query::all("/api/v1/pods") }
    }

    fn contact(&self) -> &Contact {
        &self.contact
    }

    fn listed(&self, objects: Vec<Object>, now: i64) {
        self.replace(objects.into_iter().filter_map(|pod| self.observe(pod)).collect(), now);
    }

    fn changed(&self, object: Object, now: i64) {
        if let Some(observed) = self.observe(object) {
            self.apply(observed, now);
        }
    }

    fn deleted(&self, object: Object, now: i64) {
        if let Some(observed) = self.observe(object) {
            self.delete(observed, now);
        }
    }

    fn sweep(&self, now: i64) {
        self.forget(now);
    }
}

impl PodStore {
    /// A pod that this store is about, whatever the API sends.
    fn observe(&self, object: Object) -> Option<Observed> {
        let mut observed = object
            .observe("from the API")
            .inspect_err(|why| tracing::warn!("pods: left out: {why}"))
            .ok()?;
        for problem in &observed.problems {
            tracing::debug!("pods: {problem}");
        }
        let node = &*observed.pod.node;
        let is_wanted = match self.place {
            Place::Here => *node == *self.node,
            Place::Elsewhere => *node != *self.node,
            Place::Everywhere => !node.is_empty(),
        };
        if self.place != Place::Here {
            observed.pod.keep_what_peers_need();
        }
        is_wanted.then_some(observed)
    }
}

pub(super) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
