//! Telling the probe which events somebody wants.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{NAME, task::Task};
use crate::{
    k8s::pod_metadata::PodMetadataMap,
    live::Interest,
    probe_loader::{LoadError, Object, RawMap},
    status::State,
};

/// New cgroups are told of this often at most: until then nobody is known to own them, and their
/// events are wanted.
const BETWEEN_UPDATES: Duration = Duration::from_millis(500);

/// What the probe was told.
pub(super) struct EventFilter {
    metadata: PodMetadataMap,
    interface_pods: RawMap,
    /// By interface index.
    written: HashMap<u32, u64>,
    told: Option<Facts>,
    told_at: Option<Instant>,
}

/// What it was told for: no need to do it again before one of them changes.
#[derive(Clone, PartialEq, Eq)]
struct Facts {
    interest: Interest,
    cgroups: u64,
    epoch: u32,
}

impl EventFilter {
    pub(super) fn of(object: &mut Object) -> Result<Self, LoadError> {
        Ok(Self {
            metadata: PodMetadataMap::of(object)?,
            interface_pods: object.map("INTERFACE_PODS")?,
            written: HashMap::new(),
            told: None,
            told_at: None,
        })
    }

    /// The index is another interface's now, or nobody's.
    pub(super) fn forget(&mut self, index: u32) -> std::io::Result<()> {
        if self.written.remove(&index).is_some() {
            self.interface_pods.remove(&index)?;
        }
        Ok(())
    }

    pub(super) const fn metadata(&self) -> &PodMetadataMap {
        &self.metadata
    }
}

impl Task {
    /// Tells the probe what changed: who listens, and which cgroups and interfaces are whose.
    pub(super) fn update_filter(&mut self) {
        if let Err(error) = self.try_update_filter() {
            let reason = format!("the probe cannot be told whose events are wanted: {error}");
            self.context.status.set(NAME, State::Failed(reason));
        }
    }

    fn try_update_filter(&mut self) -> std::io::Result<()> {
        let facts = Facts {
            interest: self.context.live.interest(NAME),
            cgroups: *self.cgroup_changes.borrow(),
            epoch: self.epoch,
        };
        if let Some(told) = &self.filter.told {
            let recent = self.filter.told_at.is_some_and(|at| at.elapsed() < BETWEEN_UPDATES);
            if *told == facts || told.interest == facts.interest && recent {
                return Ok(());
            }
        }
        let EventFilter { metadata, interface_pods, written, .. } = &mut self.filter;
        metadata.update(&self.context.cgroups, &*self.context.pods, &facts.interest)?;
        let mut now = HashMap::new();
        for (_, interface) in self.interfaces.attached() {
            let pod = interface.owner.or(interface.sender).and_then(|owner| owner.pod_uid);
            if let Some(cgroup) = pod.and_then(|pod| metadata.cgroup_of(&pod)) {
                now.insert(interface.index, cgroup);
            }
        }
        for (cgroup, index) in self.host_sockets.listed() {
            if metadata.knows(cgroup) {
                now.insert(index, cgroup);
            }
        }
        for index in written.keys().filter(|index| !now.contains_key(index)) {
            interface_pods.remove(index)?;
        }
        for (index, cgroup) in &now {
            if written.get(index) != Some(cgroup) {
                interface_pods.set(index, cgroup)?;
            }
        }
        *written = now;
        self.filter.told = Some(facts);
        self.filter.told_at = Some(Instant::now());
        Ok(())
    }
}
