//! The pods of a node as the API tells of them, with those that are gone for as long as records of
//! them may still come.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use orb8_proto::{PodSource, PodSourceState};

use self::known::{Gone, Known};
use super::{ContainerId, Pod, PodUid, manifest::Observed};
use crate::enricher::PodLookup;

mod known;

/// How long a pod that is gone, and the id of a container that was replaced, still answer. Records
/// of them come late: a flow's last packets are taken up to a minute after they passed.
const TOMBSTONE: Duration = Duration::from_secs(60);
/// Whether what is known is kept current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchState {
    /// The API is being asked for the first time.
    Syncing,
    /// Every change is told at once.
    Connected,
    /// The API does not answer as it should. What was known stays known.
    Away {
        /// How old what is known is.
        since: Instant,
        /// What went wrong the last time.
        reason: String,
    },
}

/// Pods, found by UID, container and address. The watcher writes it, everybody else reads.
#[derive(Debug)]
pub struct PodStore {
    node: Arc<str>,
    known: RwLock<Known>,
    generation: AtomicU64,
    state: Mutex<WatchState>,
}

impl PodStore {
    /// A store that knows nobody yet. `node` is the node whose pods it will know.
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            known: RwLock::default(),
            generation: AtomicU64::new(0),
            state: Mutex::new(WatchState::Syncing),
        }
    }

    /// Takes in a pod as it is now. `now` is Unix time in nanoseconds, here as everywhere.
    pub(super) fn apply(&self, observed: Observed, now: i64) {
        let mut known = self.write();
        if known.apply(observed, now) {
            self.changed();
        }
    }

    /// Takes in the last that is told of a pod: it was deleted.
    pub(super) fn delete(&self, observed: Observed, now: i64) {
        let uid = observed.pod.uid;
        let mut known = self.write();
        known.apply(observed, now);
        known.end(uid, Gone { at: now, for_good: true });
        self.changed();
    }

    /// Takes in all pods that there are: the others are gone.
    pub(super) fn replace(&self, list: Vec<Observed>, now: i64) {
        let mut known = self.write();
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
        if changed {
            self.changed();
        }
    }

    /// Forgets whatever has been gone for long enough. What was named stays named: the generation
    /// does not change.
    pub(super) fn sweep(&self, now: i64) {
        self.write().sweep(now.saturating_sub(nanos(TOMBSTONE)));
    }

    /// Whether the pod with this UID exists. One that is gone still answers for a while.
    #[must_use]
    pub fn is_alive(&self, uid: &PodUid) -> bool {
        self.read().pods.get(uid).is_some_and(|entry| entry.gone.is_none())
    }

    /// How the watch is doing.
    #[must_use]
    pub fn state(&self) -> WatchState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn connected(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = WatchState::Connected;
    }

    /// What is known was true a moment ago, whether or not changes to it will be told.
    pub(super) fn heard(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let WatchState::Away { since, .. } = &mut *state {
            *since = Instant::now();
        }
    }

    /// The API does not answer as it should. It stays away since when it first did not.
    pub(super) fn away(&self, reason: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match &*state {
            WatchState::Away { since, .. } => *since,
            WatchState::Syncing | WatchState::Connected => Instant::now(),
        };
        *state = WatchState::Away { since, reason: reason.to_owned() };
    }

    fn changed(&self) {
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
        let uid = known.by_ip.owner(ip, at_unix_ns)?;
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
        let (state, age, reason) = match self.state() {
            WatchState::Syncing => {
                (PodSourceState::Syncing, Duration::ZERO, "the API was not heard yet".into())
            }
            WatchState::Connected if pods_known == 0 => {
                let node = &self.node;
                let reason = format!("no pod runs on a node called `{node}`: is that its name?");
                (PodSourceState::Connected, Duration::ZERO, reason)
            }
            WatchState::Connected => (PodSourceState::Connected, Duration::ZERO, String::new()),
            WatchState::Away { since, reason } => (PodSourceState::Away, since.elapsed(), reason),
        };
        PodSource {
            kind: "kubernetes".into(),
            state: state.into(),
            pods_known,
            age_ns: nanos(age),
            reason,
        }
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
