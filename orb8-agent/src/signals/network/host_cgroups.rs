//! Which cgroups' sockets are the node's own: those of its processes, and of pods that live in its
//! network namespace.
//!
//! Where the kernel tells in which network namespace a socket is, nothing hangs on the list but that
//! a cgroup has flows of its own: it holds what is likely to talk in ours, and what does. Where the
//! kernel does not tell, the list has to be right: what Kubernetes does not tell of a cgroup is then
//! seen by its processes.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use orb8_k8s::PodLookup;
use rustix::fs::stat;

use crate::k8s::{
    cgroup::CgroupIdentity,
    cgroup_tree::{CgroupMount, FoundCgroup},
};

/// Sockets outlive their cgroup: a connection is closed after its process has ended.
const LINGER: Duration = Duration::from_secs(60);

/// Processes do not change namespaces for longer than this after they came: a container's first
/// process enters its cgroup before it enters its pod's namespaces.
const SETTLED: Duration = Duration::from_secs(1);
/// A cgroup without processes is looked at again this often at least.
const LONGEST_BETWEEN_LOOKS: Duration = Duration::from_secs(60);
/// Cgroups that are looked at in one step: a look reads a few files.
const LOOKS_PER_STEP: usize = 512;
/// Processes of a cgroup that are looked at.
const PIDS_PER_LOOK: usize = 8;

/// What to do about a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Its sockets are the node's own from now on.
    List(u64, FoundCgroup),
    /// They are not, or no longer.
    Unlist(u64),
}

/// Every cgroup that there is, and what was decided about it.
pub(super) struct HostCgroups {
    known: HashMap<u64, Known>,
    /// Numbers the steps, to find what a step did not see.
    step: u64,
    pods_generation: u64,
    looks: Option<Looks>,
    /// Cgroups without an account of which packets were counted since the last step.
    talking: HashSet<u64>,
}

/// Where processes are looked for, on kernels on which they have to be.
pub(super) struct Looks {
    pub(super) mount: CgroupMount,
    /// Inode of the own network namespace.
    pub(super) own_netns: u64,
}

struct Known {
    cgroup: FoundCgroup,
    listed: bool,
    /// Packets of its sockets were counted, so they are in our network namespace.
    talks: bool,
    /// When it was missed.
    gone: Option<Instant>,
    step: u64,
    seen: Instant,
    found: Option<(Found, Instant)>,
    look_at: Option<Instant>,
}

/// Where the processes of a cgroup are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// At least one is in our network namespace.
    Here,
    /// All that were seen are in others.
    Elsewhere,
    /// There is none, or none that we may look at.
    Nobody,
}

impl HostCgroups {
    /// With `looks`, on kernels that do not tell in which network namespace a socket is.
    pub(super) fn new(looks: Option<Looks>) -> Self {
        let (known, talking) = (HashMap::new(), HashSet::new());
        Self { known, step: 0, pods_generation: 0, looks, talking }
    }

    /// Whether the sockets of a cgroup are counted as sockets.
    pub(super) fn counts(&self, id: u64) -> bool {
        self.talking.contains(&id) || self.known.get(&id).is_some_and(|known| known.listed)
    }

    /// Notes that packets of a cgroup were counted that has no account. True: that is news.
    pub(super) fn talks(&mut self, id: u64) -> bool {
        self.talking.insert(id)
    }

    /// Compares with the cgroups that there are now, and says what is to change. Costs a look-up for
    /// each, and file reads for those that are looked at.
    pub(super) fn step(
        &mut self,
        there: impl IntoIterator<Item = (u64, FoundCgroup)>,
        pods: &dyn PodLookup,
        now: Instant,
    ) -> Vec<Change> {
        self.step += 1;
        let mut changes = Vec::new();
        for (id, cgroup) in there {
            let step = self.step;
            let known = self.known.entry(id).or_insert_with(|| Known::new(cgroup, now));
            known.step = step;
        }
        self.follow_removed(now, &mut changes);
        for id in self.talking.drain() {
            // What is gone by now has no use for an account.
            if let Some(known) = self.known.get_mut(&id) {
                known.talks = true;
                known.look_at = Some(now);
            }
        }
        // Before the answers are asked for: what changes in between is asked for again.
        let generation = pods.generation();
        let told = std::mem::replace(&mut self.pods_generation, generation) != generation;
        let mut looks_left = LOOKS_PER_STEP;
        for (id, known) in self.known.iter_mut().filter(|(_, known)| known.gone.is_none()) {
            if !told && known.look_at.is_none_or(|at| now < at) {
                continue;
            }
            let own = match (known.by_pods(pods), &self.looks) {
                (Some(own), _) => {
                    known.look_at = None;
                    own || known.talks
                }
                (None, None) => {
                    known.look_at = None;
                    known.talks || known.cgroup.identity.is_none()
                }
                (None, Some(looks)) => {
                    if known.look_at.is_some_and(|at| now >= at) && looks_left > 0 {
                        looks_left -= 1;
                        known.note(looks.look(&known.cgroup.path), now);
                    }
                    known.is_here(now)
                }
            };
            if own != known.listed {
                known.listed = own;
                changes.push(if own {
                    Change::List(*id, known.cgroup.clone())
                } else {
                    Change::Unlist(*id)
                });
            }
        }
        changes
    }

    fn follow_removed(&mut self, now: Instant, changes: &mut Vec<Change>) {
        let step = self.step;
        self.known.retain(|id, known| {
            if known.step == step {
                known.gone = None;
                return true;
            }
            let gone = *known.gone.get_or_insert(now);
            let stays = known.listed && now.saturating_duration_since(gone) < LINGER;
            if known.listed && !stays {
                changes.push(Change::Unlist(*id));
            }
            stays
        });
    }
}

impl Known {
    fn new(cgroup: FoundCgroup, now: Instant) -> Self {
        Self {
            cgroup,
            listed: false,
            talks: false,
            gone: None,
            step: 0,
            seen: now,
            found: None,
            look_at: Some(now),
        }
    }

    /// What is known of its pod, if anything is.
    fn by_pods(&self, pods: &dyn PodLookup) -> Option<bool> {
        let CgroupIdentity { pod_uid, container_id, .. } = self.cgroup.identity?;
        let pod = pod_uid.and_then(|uid| pods.by_uid(&uid));
        let pod = pod.or_else(|| Some(pods.by_container(&container_id?)?.0));
        pod.map(|pod| pod.host_network)
    }

    /// Notes what a look found, and when to look again.
    fn note(&mut self, found: Found, now: Instant) {
        let since = match self.found {
            Some((before, since)) if before == found => since,
            _ => now,
        };
        self.found = Some((found, since));
        let settled = now.saturating_duration_since(since) >= SETTLED;
        let age = now.saturating_duration_since(self.seen);
        self.look_at = match found {
            // Processes that come later are children of these.
            Found::Here if settled => None,
            Found::Elsewhere if settled && self.cgroup.identity.is_some() => None,
            Found::Here | Found::Elsewhere if !settled => Some(now + SETTLED),
            _ => Some(now + age.clamp(SETTLED, LONGEST_BETWEEN_LOOKS)),
        };
    }

    /// Whether, by its processes, it is ours. A container's have to be seen here for a while.
    fn is_here(&self, now: Instant) -> bool {
        match self.found {
            Some((Found::Here, since)) => {
                self.cgroup.identity.is_none() || now.saturating_duration_since(since) >= SETTLED
            }
            // Sockets may be left of those that were here.
            Some((Found::Nobody, _)) => self.listed,
            _ => false,
        }
    }
}

impl Looks {
    /// Of the calling thread's network namespace.
    pub(super) fn new(mount: CgroupMount) -> io::Result<Self> {
        Ok(Self { mount, own_netns: stat("/proc/thread-self/ns/net")?.st_ino })
    }

    fn look(&self, path: &str) -> Found {
        let procs = self.mount.directory(path).map(|dir| dir.join("cgroup.procs"));
        let processes = procs.and_then(|procs| fs::read_to_string(procs).ok()).unwrap_or_default();
        let mut found = Found::Nobody;
        // A process of another pid namespace is listed as 0, and cannot be looked at.
        for pid in processes.lines().filter(|pid| *pid != "0").take(PIDS_PER_LOOK) {
            match stat(Path::new("/proc").join(pid).join("ns/net")) {
                Ok(netns) if netns.st_ino == self.own_netns => return Found::Here,
                Ok(_) => found = Found::Elsewhere,
                Err(_ended) => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
