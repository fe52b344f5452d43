//! Taking what the kernel counted, and giving it to its owners.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use orb8_common::syscall::{NOBODY, NUMBERS, UnslottedKey};

use super::{
    NAME,
    table::{Newcomer, Owner},
    task::Task,
};
use crate::{
    clock::boot_ns,
    enricher::{AttributedBy, Attribution},
    k8s::{cgroup_tree::FoundCgroup, unit::unit_of},
    ledger::{Amount, LossPoint, Stage},
    status::State,
};

/// Calls of a cgroup that nobody knows wait for it to be known, and are then its own under its id.
const WAIT_FOR_OWNER: Duration = Duration::from_secs(3);
/// A counter outside the slots that did not move for this long, and that nobody counts on by then, is
/// removed.
const IDLE: Duration = Duration::from_secs(2);

/// What was taken of a counter outside the slots.
pub(super) struct Taken {
    calls: u64,
    /// When it last moved.
    moved: Instant,
}

impl Task {
    /// Takes everything that was counted so far.
    pub(super) fn harvest(&mut self) {
        if let Err(error) = self.try_harvest() {
            let reason = format!("the counters cannot be read: {error}");
            self.context.status.set(NAME, State::Failed(reason));
        }
    }

    fn try_harvest(&mut self) -> io::Result<()> {
        let now = Instant::now();
        // First, so that no more calls are told to have ended than to have begun.
        self.take_ends(now)?;
        self.take_unslotted(now)?;
        self.take_slots(now)?;
        self.give_ends(now);
        self.count_kernel_losses()
    }

    /// Counters of cgroups without a slot, or from before they had one.
    fn take_unslotted(&mut self, now: Instant) -> io::Result<()> {
        let now_ns = boot_ns();
        let mut new: HashMap<u64, Vec<(UnslottedKey, u64)>> = HashMap::new();
        let mut idle = Vec::new();
        let Self { probe, unslotted, slots, alive, .. } = self;
        probe.each_unslotted(|key, calls| {
            let taken = unslotted.entry(key).or_insert(Taken { calls: 0, moved: now });
            if calls != taken.calls {
                new.entry(key.cgroup_id).or_default().push((key, calls));
                return;
            }
            let over = now.saturating_duration_since(taken.moved) >= IDLE;
            let is_left = slots.is_settled(key.cgroup_id, now) || !alive.contains(&key.cgroup_id);
            if over && is_left {
                idle.push(key);
            }
        })?;
        for (cgroup, counters) in new {
            let Some(owner) = self.owner_of(cgroup, now) else { continue };
            self.take_counters(&owner, &counters, now, now_ns);
            if self.alive.contains(&cgroup) {
                self.give_slot(cgroup, now);
            }
        }
        for key in idle {
            if let Some(calls) = self.probe.take_unslotted(&key)?
                && let Some(owner) = self.owner_of(key.cgroup_id, now)
            {
                self.take_counters(&owner, &[(key, calls)], now, now_ns);
            }
            self.unslotted.remove(&key);
        }
        Ok(())
    }

    fn take_counters(
        &mut self,
        owner: &Owner,
        counters: &[(UnslottedKey, u64)],
        now: Instant,
        now_ns: u64,
    ) {
        let mut new = Vec::with_capacity(counters.len());
        for (key, calls) in counters {
            let taken = self.unslotted.entry(*key).or_insert(Taken { calls: 0, moved: now });
            let calls_new = calls.saturating_sub(taken.calls);
            if calls_new > 0 {
                new.push((u16::try_from(key.number).unwrap_or(u16::MAX), calls_new));
                *taken = Taken { calls: *calls, moved: now };
            }
        }
        if !new.is_empty() {
            self.book(owner, &new, now_ns);
        }
    }

    fn take_slots(&mut self, now: Instant) -> io::Result<()> {
        let now_ns = boot_ns();
        let mut sums = Box::new([0; NUMBERS]);
        let used: Vec<(u32, u64)> = self.slots.used().collect();
        for (slot, cgroup) in used {
            self.probe.counts(slot, &mut sums)?;
            let new = self.slots.take(slot, &sums);
            if !new.is_empty()
                && let Some(owner) = self.owners.get(&cgroup).cloned()
            {
                self.book(&owner, &new, now_ns);
            }
        }
        self.slots.reclaim(now);
        self.probe.counts(NOBODY, &mut sums)?;
        let new = self.slots.take(NOBODY, &sums);
        if !new.is_empty() {
            self.nobodys += new.iter().map(|(_, calls)| calls).sum::<u64>();
            self.accounts.meet(&Owner::Nobody, now_ns, || Newcomer {
                attribution: Attribution { identity: None, by: AttributedBy::None },
                since_start: false,
                nobodys: 0,
            });
            self.book(&Owner::Nobody, &new, now_ns);
        }
        Ok(())
    }

    /// Calls that were anybody's: counted for nobody, or not at all.
    pub(super) fn without_owner(&self) -> u64 {
        self.nobodys + self.kernel.uncounted
    }

    fn count_kernel_losses(&mut self) -> io::Result<()> {
        self.kernel = self.probe.kernel_counts()?;
        let stands_at = |reason, amount| {
            let point = LossPoint { signal: NAME, stage: Stage::Kernel, reason };
            self.context.ledger.stands_at(point, amount);
        };
        let calls = |calls| Amount { calls, ..Amount::default() };
        stands_at("ring_full", Amount::records(self.kernel.ring_full));
        stands_at("unslotted_full", calls(self.nobodys));
        stands_at("uncounted", calls(self.kernel.uncounted));
        stands_at("ends_unseen", calls(self.kernel.ends_unseen));
        stands_at("starts_unseen", Amount::records(self.kernel.starts_unseen));
        stands_at("errors_unnumbered", calls(self.kernel.errors_unnumbered));
        Ok(())
    }

    /// Whose a cgroup is; None while that may still become known. The answer has an account.
    pub(super) fn owner_of(&mut self, cgroup: u64, now: Instant) -> Option<Owner> {
        if let Some(owner) = self.owners.get(&cgroup) {
            return Some(owner.clone());
        }
        let by = AttributedBy::Cgroup;
        let unit = |unit: String| (Owner::Unit(Arc::from(&*unit)), unit);
        let (owner, attribution) = match self.context.cgroups.identify(cgroup, now) {
            Some(FoundCgroup { identity: Some(identity), path }) => {
                let owner = match (identity.container_id, identity.pod_uid) {
                    (Some(id), _) => Owner::Container(id),
                    (None, Some(uid)) => Owner::Pod(uid),
                    (None, None) => Owner::Unit(path),
                };
                (owner, self.enricher.of_container(&identity, by))
            }
            Some(FoundCgroup { path, .. }) => {
                let (owner, unit) = unit(unit_of(&path));
                (owner, self.enricher.of_unit(&unit, by))
            }
            None => {
                let since = *self.unknown.entry(cgroup).or_insert(now);
                if now.saturating_duration_since(since) < WAIT_FOR_OWNER {
                    return None;
                }
                // As pods that nobody knows are called by their UID.
                let (owner, unit) = unit(format!("cgroup-{cgroup}"));
                (owner, self.enricher.of_unit(&unit, by))
            }
        };
        self.unknown.remove(&cgroup);
        let nobodys = self.without_owner();
        let newcomer = || Newcomer { attribution, since_start: true, nobodys };
        let account = self.accounts.meet(&owner, boot_ns(), newcomer);
        account.since_start &= !self.older.contains(&cgroup) && self.started_ns > 0;
        self.owners.insert(cgroup, owner.clone());
        Some(owner)
    }
}
