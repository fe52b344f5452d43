//! Following what changes outside: cgroups that come and go, and who listens.

use std::time::{Duration, Instant};

use super::{NAME, task::Task, telling::Listener};
use crate::{
    k8s::pod_metadata::PodMetadataMap,
    live::Interest,
    probe_loader::{LoadError, Object},
    status::State,
};

/// New cgroups are told of this often at most: until then nobody is known to own them, and their
/// events are wanted.
const BETWEEN_UPDATES: Duration = Duration::from_millis(500);

/// What the probe was told of whose events are wanted.
pub(super) struct EventFilter {
    pub(super) metadata: PodMetadataMap,
    told: Option<Facts>,
    told_at: Option<Instant>,
}

/// What it was told for: no need to do it again before one of them changes.
#[derive(Clone, PartialEq, Eq)]
struct Facts {
    interest: Interest,
    cgroups: u64,
    pods: u64,
}

impl EventFilter {
    pub(super) fn of(object: &mut Object) -> Result<Self, LoadError> {
        let metadata = PodMetadataMap::of(object)?.with_units();
        Ok(Self { metadata, told: None, told_at: None })
    }
}

impl Task {
    /// Gives slots to containers that came, and takes those back whose cgroup is gone.
    pub(super) fn follow_cgroups(&mut self) {
        let now = Instant::now();
        self.cgroup_changes.mark_unchanged();
        self.context.cgroups.refresh(now);
        let mut new = Vec::new();
        let Self { alive, owners, context, .. } = self;
        alive.clear();
        context.cgroups.for_each(|id, cgroup| {
            alive.insert(id);
            let is_container = cgroup.identity.is_some_and(|i| i.container_id.is_some());
            if is_container && !owners.contains_key(&id) {
                new.push(id);
            }
        });
        for id in new {
            self.owner_of(id, now);
            if self.slots.has_plenty() {
                self.give_slot(id, now);
            }
        }
        let gone: Vec<u64> =
            self.slots.cgroups().filter(|cgroup| !self.alive.contains(cgroup)).collect();
        for id in gone {
            self.slots.take_back(id, now);
            let taken = self.probe.take_slot_back(id);
            self.slots_changed(taken);
        }
    }

    /// Has a cgroup counted in a slot, if there is one.
    pub(super) fn give_slot(&mut self, id: u64, now: Instant) {
        if let Some(slot) = self.slots.give(id, now) {
            let given = self.probe.give_slot(id, slot);
            self.slots_changed(given);
        }
    }

    fn slots_changed(&mut self, done: std::io::Result<()>) {
        if let Err(error) = done.and_then(|()| self.probe.slots_changed()) {
            let reason = format!("the probe cannot be told where to count: {error}");
            self.context.status.set(NAME, State::Failed(reason));
        }
    }

    /// Does what does not wait for the tick.
    pub(super) fn follow_changes(&mut self) {
        if self.cgroup_changes.has_changed().unwrap_or(false) {
            self.follow_cgroups();
        }
        self.update_telling();
    }

    /// Tells the probe which calls to tell, and whose.
    pub(super) fn update_telling(&mut self) {
        if let Err(error) = self.try_update_telling() {
            let reason = format!("the probe cannot be told what to tell: {error}");
            self.context.status.set(NAME, State::Failed(reason));
        }
    }

    fn try_update_telling(&mut self) -> std::io::Result<()> {
        let listeners = self.context.live.listeners(NAME);
        let same = listeners.len() == self.listeners.len()
            && listeners.iter().all(|(id, _)| self.listeners.contains_key(id));
        if !same {
            // They were checked when they subscribed.
            let wanted = listeners
                .into_iter()
                .filter_map(|(id, request)| Some((id, Listener::parse(&request).ok()?)));
            self.listeners = wanted.collect();
        }
        self.probe.tell(self.telling.told(self.listeners.values()))?;
        let facts = Facts {
            interest: self.context.live.interest(NAME),
            cgroups: *self.cgroup_changes.borrow(),
            pods: self.context.pods.generation(),
        };
        if let Some(told) = &self.filter.told {
            let recent = self.filter.told_at.is_some_and(|at| at.elapsed() < BETWEEN_UPDATES);
            if *told == facts || told.interest == facts.interest && recent {
                return Ok(());
            }
        }
        let metadata = &mut self.filter.metadata;
        metadata.update(&self.context.cgroups, &*self.context.pods, &facts.interest)?;
        self.filter.told = Some(facts);
        self.filter.told_at = Some(Instant::now());
        Ok(())
    }
}
