//! Taking from the probe how calls ended, where it watches that.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use orb8_common::syscall::{CallOutcomes, ErrorKey, OutcomeKey};
use orb8_proto::MapStatus;

use super::{
    ends::{Figure, Figures},
    probe::status,
    task::Task,
};
use crate::{
    clock::boot_ns,
    probe_loader::{LoadError, Object, RawMap},
};

/// An entry of a cgroup that is gone is removed when it did not move for this long.
const IDLE: Duration = Duration::from_secs(2);

/// The probe's tables of ends, and what was taken of them.
pub(super) struct Watcher {
    outcomes: RawMap,
    errors: RawMap,
    taken: HashMap<OutcomeKey, Taken<CallOutcomes>>,
    taken_errors: HashMap<ErrorKey, Taken<u64>>,
}

struct Taken<T> {
    value: T,
    /// When it last moved.
    moved: Instant,
}

/// What is new, by cgroup.
type New = HashMap<u64, Figures>;

impl Watcher {
    pub(super) fn of(object: &mut Object) -> Result<Self, LoadError> {
        Ok(Self {
            outcomes: object.map("SYSCALL_OUTCOMES")?,
            errors: object.map("SYSCALL_ERRORS")?,
            taken: HashMap::new(),
            taken_errors: HashMap::new(),
        })
    }

    /// Takes what is new, and removes what nobody adds to any more.
    fn take(&mut self, now: Instant, is_gone: impl Fn(u64) -> bool) -> io::Result<New> {
        let Self { outcomes, errors, taken, taken_errors } = self;
        let mut new = New::new();
        let mut idle = Vec::new();
        outcomes.for_each(|key: OutcomeKey, value: CallOutcomes| {
            let before =
                taken.entry(key).or_insert(Taken { value: CallOutcomes::NONE, moved: now });
            if value != before.value {
                figures(&mut new, key, &before.value, &value);
                *before = Taken { value, moved: now };
            } else if now.saturating_duration_since(before.moved) >= IDLE && is_gone(key.cgroup_id)
            {
                idle.push(key);
            }
        })?;
        for key in idle {
            if let Some(last) = outcomes.take::<_, CallOutcomes>(&key)?
                && let Some(before) = taken.remove(&key)
            {
                figures(&mut new, key, &before.value, &last);
            }
        }
        let mut idle = Vec::new();
        errors.for_each(|key: ErrorKey, value: u64| {
            let before = taken_errors.entry(key).or_insert(Taken { value: 0, moved: now });
            if value != before.value {
                error(&mut new, key, value.saturating_sub(before.value));
                *before = Taken { value, moved: now };
            } else if now.saturating_duration_since(before.moved) >= IDLE && is_gone(key.cgroup_id)
            {
                idle.push(key);
            }
        })?;
        for key in idle {
            if let Some(last) = errors.take::<_, u64>(&key)?
                && let Some(before) = taken_errors.remove(&key)
            {
                error(&mut new, key, last.saturating_sub(before.value));
            }
        }
        Ok(new)
    }

    /// Fill of the tables, and their memory in the kernel.
    pub(super) fn fill(&self) -> (Vec<MapStatus>, u64) {
        let maps = [(&self.outcomes, self.taken.len()), (&self.errors, self.taken_errors.len())];
        let fill = maps.iter().map(|(map, entries)| {
            status(map.name(), "hash", *entries as u64, u64::from(map.max_entries()))
        });
        (fill.collect(), maps.iter().map(|(map, _)| map.memory()).sum())
    }
}

fn figures(new: &mut New, key: OutcomeKey, before: &CallOutcomes, now: &CallOutcomes) {
    let Ok(number) = u16::try_from(key.number) else { return };
    let new = new.entry(key.cgroup_id).or_default();
    let mut add = |figure, now: u64, before: u64| {
        // The kernel adds to one after the other, so one may be read before it has moved.
        let more = now.saturating_sub(before);
        if more > 0 {
            new.push(((number, figure), more));
        }
    };
    for (bucket, (now, before)) in (0..).zip(now.latency.iter().zip(&before.latency)) {
        add(Figure::Latency(bucket), *now, *before);
    }
    add(Figure::Duration, now.duration_ns, before.duration_ns);
    add(Figure::Errors, now.errors, before.errors);
    add(Figure::Unbegun, now.unbegun, before.unbegun);
}

fn error(new: &mut New, key: ErrorKey, more: u64) {
    if more > 0
        && let (Ok(number), Ok(errno)) = (u16::try_from(key.number), u16::try_from(key.errno))
    {
        new.entry(key.cgroup_id).or_default().push(((number, Figure::Error(errno)), more));
    }
}

impl Task {
    /// Takes how calls ended.
    pub(super) fn take_ends(&mut self, now: Instant) -> io::Result<()> {
        let Self { ends, alive, .. } = self;
        let Some(ends) = ends else { return Ok(()) };
        let new = ends.take(now, |cgroup| !alive.contains(&cgroup))?;
        for (cgroup, figures) in new {
            self.ended.entry(cgroup).or_default().extend(figures);
        }
        Ok(())
    }

    /// Gives the ends that were taken to their owners.
    pub(super) fn give_ends(&mut self, now: Instant) {
        let now_ns = boot_ns();
        let waiting: Vec<u64> = self.ended.keys().copied().collect();
        for cgroup in waiting {
            if let Some(owner) = self.owner_of(cgroup, now)
                && let Some(figures) = self.ended.remove(&cgroup)
            {
                self.accounts.book_ends(&owner, &figures, now_ns);
                self.judge_ends(&owner, &figures);
            }
        }
    }
}
