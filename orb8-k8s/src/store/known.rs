//! The indices of a [`PodStore`](super::PodStore): who is known, who is gone, and until when that is
//! remembered.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    ContainerId, Pod, PodUid,
    addresses::{Addresses, Tenure, given_up_by},
    manifest::{Observed, Times},
};

#[derive(Debug)]
pub(super) struct Known {
    pub(super) pods: HashMap<PodUid, Entry>,
    /// Static pods, by the kubelet's UID.
    pub(super) by_hash: HashMap<PodUid, PodUid>,
    pub(super) by_container: HashMap<ContainerId, (PodUid, Arc<str>)>,
    pub(super) by_ip: Addresses<IpAddr>,
    pub(super) alive: usize,
    /// What is to be forgotten, in the order of its time.
    pub(super) gone: VecDeque<(i64, PodUid)>,
    replaced: VecDeque<(i64, ContainerId)>,
    /// Every pod is known that existed at this time or later.
    pub(super) complete_since: i64,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            pods: HashMap::new(),
            by_hash: HashMap::new(),
            by_container: HashMap::new(),
            by_ip: Addresses::default(),
            alive: 0,
            gone: VecDeque::new(),
            replaced: VecDeque::new(),
            complete_since: i64::MAX,
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) pod: Arc<Pod>,
    pub(super) times: Times,
    pub(super) gone: Option<Gone>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Gone {
    pub(super) at: i64,
    /// It was seen to be deleted, so it does not come back. A pod that a list lacks may: lists can
    /// be old.
    pub(super) for_good: bool,
}

impl Known {
    /// True when an answer may have changed.
    pub(super) fn apply(&mut self, observed: Observed, now: i64) -> bool {
        let Observed { pod, times, .. } = observed;
        let (uid, pod) = (pod.uid, Arc::new(pod));
        let known = self.pods.get(&uid);
        if known.is_some_and(|known| known.gone.is_some_and(|gone| gone.for_good)) {
            return false;
        }
        let news = known.is_none_or(|known| known.pod != pod || known.gone.is_some());
        if let Some(known) = known {
            self.retire(&Arc::clone(&known.pod), &pod, now);
        }
        for container in &pod.containers {
            self.by_container.insert(container.id, (uid, Arc::clone(&container.name)));
        }
        if let Some(hash) = pod.config_hash {
            self.by_hash.insert(hash, uid);
        }
        let moved = self.settle(&pod, &times, now);
        let before = self.pods.insert(uid, Entry { pod, times, gone: None });
        if before.is_none_or(|before| before.gone.is_some()) {
            self.alive += 1;
        }
        news || moved
    }

    /// Lets go of what `before` had and `after` has not.
    fn retire(&mut self, before: &Pod, after: &Pod, now: i64) {
        for container in &before.containers {
            if after.containers.iter().all(|other| other.id != container.id) {
                self.replaced.push_back((now, container.id));
            }
        }
        for &ip in before.ips.iter().filter(|ip| !after.ips.contains(ip)) {
            self.by_ip.end(&ip.to_canonical(), before.uid, None, now);
        }
    }

    /// Notes when `pod` has its addresses. That of a pod on the host network is the node's.
    fn settle(&mut self, pod: &Pod, times: &Times, now: i64) -> bool {
        if pod.host_network {
            return false;
        }
        let from = times.accepted.unwrap_or(now).min(now);
        let networked = times.networked.unwrap_or(now).clamp(from, now);
        let (surely, maybe) = match (times.ends, pod.finished) {
            (false, _) => (i64::MAX, i64::MAX),
            (true, false) => (times.last_alive.unwrap_or(networked), i64::MAX),
            (true, true) => (times.last_alive.unwrap_or(networked), given_up_by(times.ended, now)),
        };
        let maybe = from..maybe.max(from);
        let networked = networked.min(maybe.end);
        let tenure = Tenure { surely: networked..surely.clamp(networked, maybe.end), maybe };
        let mut news = false;
        for &ip in &pod.ips {
            news |= self.by_ip.set(ip.to_canonical(), pod.uid, tenure.clone());
        }
        news
    }

    pub(super) fn end(&mut self, uid: PodUid, gone: Gone) {
        let Some(entry) = self.pods.get_mut(&uid) else { return };
        if entry.gone.is_some() {
            return;
        }
        entry.gone = Some(gone);
        self.alive -= 1;
        let by = given_up_by(entry.times.ended, gone.at);
        for &ip in &entry.pod.ips {
            self.by_ip.end(&ip.to_canonical(), uid, entry.times.last_alive, by);
        }
        self.gone.push_back((gone.at, uid));
    }

    pub(super) fn sweep(&mut self, before: i64, most: usize) {
        while let Some(&(at, uid)) = self.gone.front() {
            if at >= before && self.gone.len() <= most {
                break;
            }
            self.gone.pop_front();
            self.complete_since = self.complete_since.max(at.saturating_add(1));
            // It may have come back since, and even have gone again.
            if self.pods.get(&uid).and_then(|entry| entry.gone).is_some_and(|gone| gone.at == at) {
                self.forget(uid);
            }
        }
        while let Some(&(at, id)) = self.replaced.front() {
            if at >= before {
                break;
            }
            self.replaced.pop_front();
            let owner = self.by_container.get(&id).and_then(|(uid, _)| self.pods.get(uid));
            if owner.is_none_or(|entry| entry.pod.containers.iter().all(|c| c.id != id)) {
                self.by_container.remove(&id);
            }
        }
    }

    fn forget(&mut self, uid: PodUid) {
        let Some(Entry { pod, .. }) = self.pods.remove(&uid) else { return };
        for container in &pod.containers {
            self.by_container.remove(&container.id);
        }
        for &ip in &pod.ips {
            self.by_ip.forget(&ip.to_canonical(), uid);
        }
        // A mirror that was made again has the same hash.
        if let Some(hash) = pod.config_hash
            && self.by_hash.get(&hash) == Some(&uid)
        {
            self.by_hash.remove(&hash);
        }
    }
}
