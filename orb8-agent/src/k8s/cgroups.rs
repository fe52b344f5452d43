//! The node's cgroups, kept current: by the kernel's own word as they come and go, and by walking
//! the file system where that word is missing. Every signal asks here whose a cgroup id is.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{io::unix::AsyncFd, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    births::{Births, Change},
    cgroup_tree::{CgroupMount, CgroupTree, FoundCgroup},
};
use crate::ledger::Ledger;

/// Looks for news this often even if nobody says that there are any.
const AT_LEAST_EVERY: Duration = Duration::from_secs(1);

/// The node's cgroups. Clones share them.
#[derive(Clone)]
pub struct Cgroups {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<u64>>,
}

struct Inner {
    /// None where there is no version 2 hierarchy: ids then mean nothing.
    tree: Option<CgroupTree>,
    births: Option<Births>,
    missing: Option<String>,
}

impl Cgroups {
    /// Reads the tree, and has the kernel tell what becomes of it. What is missing is told by
    /// [`Self::missing`]; the rest works.
    #[must_use]
    pub fn open(ledger: Ledger) -> Self {
        let mut missing = None;
        let births = Births::attach(ledger)
            .inspect_err(|e| missing = Some(format!("short-lived containers stay unnamed: {e}")))
            .ok();
        let mut tree = CgroupTree::open()
            .inspect_err(|e| missing = Some(format!("containers stay unnamed: {e}")))
            .ok();
        // After the probe: what is made from here on is told, what was there is found.
        if let Some(tree) = &mut tree {
            tree.walk(Instant::now());
        }
        if let Some(missing) = &missing {
            tracing::warn!("{missing}");
        }
        let inner = Arc::new(Mutex::new(Inner { tree, births, missing }));
        Self { inner, changed: Arc::new(watch::Sender::new(0)) }
    }

    /// Cgroups that nobody tells of, as where a process may not load probes: they are found by
    /// walking.
    #[must_use]
    pub fn of_tree(tree: CgroupTree) -> Self {
        let inner = Inner { tree: Some(tree), births: None, missing: None };
        Self { inner: Arc::new(Mutex::new(inner)), changed: Arc::new(watch::Sender::new(0)) }
    }

    /// What does not work, and why.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        self.lock().missing.clone()
    }

    /// Follows the kernel's word until `token` is cancelled.
    pub async fn follow(self, token: CancellationToken) {
        let readable = self.lock().births.as_ref().map(Births::readable);
        let readable = match readable {
            Some(Ok(readable)) => Some(readable),
            Some(Err(error)) => {
                tracing::warn!("cgroups are looked at once a second only: {error}");
                None
            }
            None => None,
        };
        while !token.is_cancelled() {
            tokio::select! {
                () = token.cancelled() => return,
                () = is_readable(readable.as_ref()) => {}
                () = tokio::time::sleep(AT_LEAST_EVERY) => {}
            }
            self.update(Instant::now());
        }
    }

    /// Takes what the kernel has told. Look-ups do so themselves.
    pub fn update(&self, now: Instant) {
        let changes = self.lock().update(now);
        if changes {
            self.changed.send_modify(|generation| *generation += 1);
        }
    }

    /// Sees every later change of the set of cgroups.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The cgroup with this id, also for a while after it was removed; see
    /// [`CgroupTree::identify`].
    pub fn identify(&self, cgroup_id: u64, now: Instant) -> Option<FoundCgroup> {
        self.update(now);
        self.lock().tree.as_mut().and_then(|tree| tree.identify(cgroup_id, now))
    }

    /// The cgroups that were removed of late: their ids come no more, but with the last packets of
    /// sockets that outlived them.
    #[must_use]
    pub fn gone(&self) -> HashSet<u64> {
        self.lock().tree.as_ref().map(CgroupTree::gone).unwrap_or_default()
    }

    /// Where the hierarchy is mounted, if it is.
    #[must_use]
    pub fn mount(&self) -> Option<CgroupMount> {
        self.lock().tree.as_ref().map(|tree| tree.mount().clone())
    }

    /// Takes what the kernel has told or, where it does not tell, walks the tree now and then.
    pub fn refresh(&self, now: Instant) {
        self.update(now);
        let mut inner = self.lock();
        if let Inner { tree: Some(tree), births: None, .. } = &mut *inner {
            tree.refresh(now);
        }
    }

    /// Calls `visit` with every cgroup that exists.
    pub fn for_each(&self, visit: impl FnMut(u64, &FoundCgroup)) {
        if let Some(tree) = &self.lock().tree {
            tree.for_each(visit);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Answers whether there was news.
    fn update(&mut self, now: Instant) -> bool {
        let (Some(tree), Some(births)) = (&mut self.tree, &mut self.births) else { return false };
        let mut news = false;
        let mut unread = false;
        let complete = births.take(|id, change| {
            news = true;
            match change {
                Change::Made(Some(path)) => tree.born(id, &path),
                Change::Made(None) => unread = true,
                Change::Removed => tree.removed(id, now),
            }
        });
        if !complete || unread {
            tree.walk(now);
            news = true;
        }
        tree.forget(now);
        news
    }
}

async fn is_readable(descriptor: Option<&AsyncFd<std::os::fd::OwnedFd>>) {
    let Some(descriptor) = descriptor else { return std::future::pending().await };
    match descriptor.readable().await {
        // What is there is taken next; more will make it readable again.
        Ok(mut ready) => ready.clear_ready(),
        Err(error) => {
            let _why: io::Error = error;
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    const UID: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";

    #[test]
    fn a_container_that_lived_for_an_instant_is_known_afterwards() {
        let cgroups = Cgroups::open(Ledger::default());
        assert_eq!(cgroups.missing(), None);
        let mount = CgroupTree::open().unwrap().mount().mount_point.clone();
        let top = mount.join(format!("orb8-test-births-{}", std::process::id()));
        let container = "7".repeat(64);
        let dir = top.join(format!("kubepods/burstable/pod{UID}/{container}"));
        let mut ids = Vec::new();
        for _ in 0..50 {
            fs::create_dir_all(&dir).expect("making a cgroup takes root");
            ids.push(fs::metadata(&dir).unwrap().ino());
            for dir in dir.ancestors().take(5) {
                fs::remove_dir(dir).unwrap();
            }
        }
        ids.dedup();
        assert_eq!(ids.len(), 50, "an id is never used again");
        for id in ids {
            let found = cgroups.identify(id, Instant::now()).expect("told by the kernel");
            let identity = found.identity.unwrap();
            assert_eq!(identity.pod_uid.unwrap().to_string(), UID);
            assert_eq!(identity.container_id.unwrap().to_string(), container);
        }
        let mut alive = 0;
        cgroups.for_each(|_, cgroup| alive += u32::from(cgroup.path.contains("orb8-test-births")));
        assert_eq!(alive, 0, "they are gone");
    }

    #[tokio::test]
    async fn whoever_waits_for_changes_hears_of_a_new_cgroup() {
        let cgroups = Cgroups::open(Ledger::default());
        let mut changes = cgroups.changes();
        let token = CancellationToken::new();
        let follower = tokio::spawn(cgroups.clone().follow(token.clone()));
        let mount = CgroupTree::open().unwrap().mount().mount_point.clone();
        let dir = mount.join(format!("orb8-test-heard-{}", std::process::id()));
        fs::create_dir(&dir).expect("making a cgroup takes root");
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let heard = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                changes.changed().await.unwrap();
                let mut there = false;
                cgroups.for_each(|_, cgroup| there |= cgroup.path.ends_with(&name));
                if there {
                    return;
                }
            }
        });
        let heard = heard.await;
        fs::remove_dir(&dir).unwrap();
        token.cancel();
        follower.await.unwrap();
        heard.expect("the new cgroup is heard of");
    }
}
