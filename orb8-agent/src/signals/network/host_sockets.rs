//! Sockets of the node itself: attaching the programs that count them, and keeping the list of their
//! cgroups as cgroups come and go. Each listed cgroup is an interface to the rest of the slice.

use std::{collections::HashMap, time::Instant};

use orb8_common::network::{HOST_CGROUPS_SIZE, HOST_SOCKETS, UNLISTED};

use super::{
    host_cgroups::{Change, HostCgroups, Looks},
    interfaces::{Interface, Sockets},
    maps::Probe,
    task::Task,
};
use crate::{
    enricher::{AttributedBy, Attribution},
    k8s::{cgroup_tree::FoundCgroup, cgroups::Cgroups, unit::unit_of},
    probe_loader::CgroupAttachment,
};

/// The programs at sockets, and whom they count.
pub(super) struct HostSockets {
    /// Dropping it detaches.
    attachment: Option<CgroupAttachment>,
    /// Why they are not attached.
    missing: Option<String>,
    /// The kernel counts what is not listed, too.
    counts_unlisted: bool,
    cgroups: HostCgroups,
    /// Pseudo interface of every listed cgroup.
    listed: HashMap<u64, u32>,
    /// The list is full.
    without_room: HashMap<u64, FoundCgroup>,
    last_account: u32,
    /// Which changes of the node's cgroups were followed.
    cgroup_changes: u64,
    /// A cgroup without an account has begun to talk.
    has_news: bool,
}

impl HostSockets {
    /// Attaches to the root of the hierarchy. Where that fails the rest of the signal goes on.
    pub(super) fn start(probe: &mut Probe, cgroups: &Cgroups) -> Self {
        let mut sockets = Self {
            attachment: None,
            missing: None,
            counts_unlisted: false,
            cgroups: HostCgroups::new(None),
            listed: HashMap::new(),
            without_room: HashMap::new(),
            last_account: UNLISTED,
            cgroup_changes: 0,
            has_news: false,
        };
        if let Err(why) = sockets.attach(probe, cgroups) {
            tracing::warn!("sockets of the node are not counted: {why}");
            sockets.missing = Some(why);
        }
        sockets
    }

    fn attach(&mut self, probe: &mut Probe, cgroups: &Cgroups) -> Result<(), String> {
        let mount = cgroups.mount().ok_or("no cgroup2 mount was found")?;
        let attached = probe.attach_to_sockets(&mount.mount_point);
        let (attachment, tells_netns) = attached.map_err(|error| error.to_string())?;
        if !tells_netns {
            let looks = Looks::new(mount);
            let looks = looks.map_err(|error| format!("/proc/thread-self/ns/net: {error}"))?;
            self.cgroups = HostCgroups::new(Some(looks));
        }
        self.counts_unlisted = tells_netns;
        self.attachment = Some(attachment);
        Ok(())
    }

    pub(super) fn detach(&mut self) {
        self.attachment = None;
    }

    /// The listed cgroups, and the pseudo interface of each.
    pub(super) fn listed(&self) -> impl Iterator<Item = (u64, u32)> {
        self.listed.iter().map(|(cgroup, index)| (*cgroup, *index))
    }

    /// What is not counted, and why.
    pub(super) fn shortcoming(&self) -> Option<String> {
        if let Some(why) = &self.missing {
            return Some(format!(
                "pods on the host network and the node's processes are not counted: {why}"
            ));
        }
        let missed = if self.counts_unlisted { 0 } else { self.without_room.len() };
        (missed > 0).then(|| {
            format!(
                "the sockets of {missed} cgroups of the node are not counted: HOST_CGROUPS has room \
                 for {HOST_CGROUPS_SIZE}"
            )
        })
    }

    /// Notes whose packets are counted without an account of their own.
    pub(super) fn talks(&mut self, cgroup_id: u64) {
        self.has_news |= self.cgroups.talks(cgroup_id);
    }

    /// Whether what the sockets of a cgroup send and receive is counted there. On an interface of the
    /// node it is then the node's: nobody gets the same byte twice.
    pub(super) fn counts(&self, cgroup_id: u64) -> bool {
        self.attachment.is_some() && cgroup_id != 0 && self.cgroups.counts(cgroup_id)
    }
}

impl Task {
    /// Sockets whose cgroup is not listed have an interface from the start.
    pub(super) fn begin_host_sockets(&mut self) {
        if self.host_sockets.counts_unlisted {
            let interface =
                Interface::of_sockets(HOST_SOCKETS | UNLISTED, Sockets::Unlisted, Instant::now());
            self.interfaces.add(interface);
        }
        self.follow_host_sockets();
    }

    /// A cgroup that has begun to talk gets its account soon. On kernels that do not count what is not
    /// listed, a new one is listed as soon as it is heard of: its packets are missing until then.
    pub(super) fn follow_new_cgroups(&mut self) {
        let sockets = &self.host_sockets;
        let changes = *self.cgroup_changes.borrow() != sockets.cgroup_changes;
        if sockets.has_news || changes && !sockets.counts_unlisted {
            self.follow_host_sockets();
        }
    }

    /// Lists the cgroups that came, and takes those off the list that are gone for good.
    pub(super) fn follow_host_sockets(&mut self) {
        if self.host_sockets.attachment.is_none() {
            return;
        }
        let now = Instant::now();
        self.host_sockets.cgroup_changes = *self.cgroup_changes.borrow();
        self.host_sockets.has_news = false;
        let there = self.cgroups_there(now);
        let changes = self.host_sockets.cgroups.step(there, &*self.context.pods, now);
        // What a socket sends is the node's on its interfaces if the socket is counted, too. Where the
        // kernel tells namespaces, that was known with the first packet.
        let by_looks = !self.host_sockets.counts_unlisted;
        self.epoch += u32::from(by_looks && !changes.is_empty());
        for change in changes {
            match change {
                Change::List(id, cgroup) => self.list(id, cgroup, now),
                Change::Unlist(id) => self.unlist(id, now),
            }
        }
    }

    /// The cgroups that there are.
    fn cgroups_there(&mut self, now: Instant) -> Vec<(u64, FoundCgroup)> {
        self.context.cgroups.refresh(now);
        let mut there = Vec::new();
        self.context.cgroups.for_each(|id, cgroup| there.push((id, cgroup.clone())));
        there
    }

    fn list(&mut self, id: u64, cgroup: FoundCgroup, now: Instant) {
        let sockets = &mut self.host_sockets;
        let account = sockets.last_account + 1;
        if sockets.listed.len() >= HOST_CGROUPS_SIZE as usize || account >= HOST_SOCKETS {
            sockets.without_room.insert(id, cgroup);
            return;
        }
        sockets.last_account = account;
        let index = HOST_SOCKETS | account;
        sockets.listed.insert(id, index);
        // Before the first packet can be counted on it.
        self.interfaces.add(Interface::of_sockets(index, Sockets::Of(cgroup), now));
        if let Err(error) = self.probe.list_cgroup(id, account) {
            tracing::warn!("HOST_CGROUPS: {error}");
        }
    }

    fn unlist(&mut self, id: u64, now: Instant) {
        let sockets = &mut self.host_sockets;
        sockets.without_room.remove(&id);
        let Some(index) = sockets.listed.remove(&id) else { return };
        if let Err(error) = self.probe.unlist_cgroup(id) {
            tracing::warn!("HOST_CGROUPS: {error}");
        }
        self.begin_retiring(index);
        let waiting = &mut self.host_sockets.without_room;
        if let Some(next) = waiting.keys().next().copied()
            && let Some(cgroup) = waiting.remove(&next)
        {
            self.list(next, cgroup, now);
        }
    }

    /// The owner of a socket in `cgroup_id`, which is `cgroup` if that is known.
    pub(super) fn socket_attribution(
        &mut self,
        cgroup_id: u64,
        cgroup: Option<&FoundCgroup>,
    ) -> Attribution {
        match cgroup {
            Some(FoundCgroup { identity: Some(identity), .. }) => {
                self.enricher.of_container(identity, AttributedBy::SocketCgroup)
            }
            Some(FoundCgroup { path, .. }) => {
                self.enricher.of_unit(&unit_of(path), AttributedBy::SocketCgroup)
            }
            // As pods that nobody knows are called by their UID.
            None => {
                self.enricher.of_unit(&format!("cgroup-{cgroup_id}"), AttributedBy::SocketCgroup)
            }
        }
    }
}
