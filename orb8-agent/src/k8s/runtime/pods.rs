//! Pods and containers as the runtime tells of them.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use orb8_k8s::{
    ContainerId, Pod, PodLookup, PodUid,
    contact::{Contact, WatchState},
    manifest::Observed,
    store::PodStore,
    watcher::unix_ns,
};
use orb8_proto::{PodSource, PodSourceState};

use super::wanted::{Wanted, WantedIds};

/// For so long after a list it is taken for granted that nobody else has got a pod's address.
const FRESH: Duration = Duration::from_secs(10);

/// What the runtime knows, found by UID, container and address. Whoever is gone answers for another
/// minute, as with the Kubernetes API.
#[derive(Debug)]
pub struct RuntimePods {
    store: PodStore,
    contact: Contact,
    pub(super) wanted: WantedIds,
    about: Mutex<About>,
    /// When the last list was asked for; Unix time in nanoseconds.
    listed_at: AtomicI64,
    /// Every change is told at once.
    is_live: AtomicBool,
}

/// Which runtime it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    /// `containerd`, `cri-o`, `docker`, `podman`, `cri`; empty before any has answered.
    pub(super) kind: &'static str,
    /// Its version and socket.
    pub(super) detail: String,
}

impl RuntimePods {
    pub(super) fn new() -> Self {
        Self {
            store: PodStore::new(""),
            contact: Contact::default(),
            wanted: WantedIds::default(),
            about: Mutex::default(),
            listed_at: AtomicI64::new(0),
            is_live: AtomicBool::new(false),
        }
    }

    /// How it is going with the runtime.
    #[must_use]
    pub fn state(&self) -> WatchState {
        self.contact.state()
    }

    /// Whether the pod with this UID exists. One that is gone still answers for a while.
    #[must_use]
    pub fn is_alive(&self, uid: &PodUid) -> bool {
        self.store.is_alive(uid)
    }

    /// A runtime answers, and told at `at` of all pods that there are.
    pub(super) fn replace(&self, about: &About, pods: Vec<Observed>, at: i64) {
        self.store.replace_and(pods, unix_ns(), || self.listed_at.store(at, Ordering::Release));
        about.clone_into(&mut self.about());
        self.contact.connected();
    }

    /// A pod is told of by itself.
    pub(super) fn apply(&self, pod: Observed) {
        self.store.apply(pod, unix_ns());
    }

    pub(super) fn set_live(&self, is_live: bool) {
        self.is_live.store(is_live, Ordering::Release);
    }

    pub(super) fn away(&self, reason: &str) {
        self.set_live(false);
        self.contact.away(reason);
    }

    pub(super) fn sweep(&self) {
        self.store.forget(unix_ns());
    }

    fn about(&self) -> std::sync::MutexGuard<'_, About> {
        self.about.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it would have been told by now if a pod had lost its address before `at`.
    fn is_current(&self, at: i64) -> bool {
        let fresh = i64::try_from(FRESH.as_nanos()).unwrap_or(i64::MAX);
        self.is_live.load(Ordering::Acquire)
            || at <= self.listed_at.load(Ordering::Acquire).saturating_add(fresh)
    }
}

impl PodLookup for RuntimePods {
    fn by_uid(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        let found = self.store.by_uid(uid);
        if found.is_none() {
            self.wanted.ask(Wanted::Pod(*uid));
        }
        found
    }

    fn by_container(&self, id: &ContainerId) -> Option<(Arc<Pod>, Arc<str>)> {
        let found = self.store.by_container(id);
        if found.is_none() {
            self.wanted.ask(Wanted::Container(*id));
        }
        found
    }

    fn by_ip(&self, ip: IpAddr, at_unix_ns: i64) -> Option<Arc<Pod>> {
        // In this order: what is current by a new list is looked up in that list, not in the last.
        self.is_current(at_unix_ns).then(|| self.store.by_ip(ip, at_unix_ns))?
    }

    fn generation(&self) -> u64 {
        self.store.generation()
    }

    fn namespaces(&self) -> Vec<Arc<str>> {
        let mut names = self.store.namespaces();
        // Containers that Kubernetes did not start have none.
        names.retain(|name| !name.is_empty());
        names
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.store.pods()
    }

    fn source(&self) -> PodSource {
        let About { kind, detail } = self.about().clone();
        let pods_known = self.store.source().pods_known;
        let is_live = self.is_live.load(Ordering::Acquire);
        let (state, age_ns, reason) = match self.state() {
            WatchState::Syncing => {
                (PodSourceState::Syncing, 0, "no container runtime was heard yet".into())
            }
            WatchState::Connected if is_live => (PodSourceState::Connected, 0, detail),
            WatchState::Connected => {
                let age = unix_ns().saturating_sub(self.listed_at.load(Ordering::Acquire));
                (PodSourceState::Connected, age.max(0), detail)
            }
            WatchState::Away { since, reason } => {
                let age = i64::try_from(since.elapsed().as_nanos()).unwrap_or(i64::MAX);
                (PodSourceState::Away, age, reason)
            }
        };
        PodSource { kind: kind.into(), state: state.into(), pods_known, age_ns, reason }
    }

    fn runtime_source(&self) -> Option<PodSource> {
        Some(self.source())
    }
}
