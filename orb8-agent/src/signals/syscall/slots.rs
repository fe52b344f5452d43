//! Which cgroup has which slot of `SYSCALL_COUNTS`, and what was already taken of each.
//!
//! A slot's counters only grow, whoever has it. One that is taken back is counted for its old cgroup
//! until no CPU can count on it any more, and only then given to another.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use orb8_common::syscall::{NOBODY, NUMBERS, SyscallCounts};

/// A CPU looks a slot up again with the next call after one was taken back. What was under way then
/// takes microseconds, or as long as a hypervisor holds the CPU.
const GRACE: Duration = Duration::from_secs(2);

/// Memory of `SYSCALL_COUNTS` in the kernel, over all CPUs.
const MEMORY: usize = 16 << 20;
/// However many CPUs there are.
const FEWEST: usize = 64;
const MOST: usize = 4_096;

/// Slots that a machine with so many CPUs gets.
pub(super) fn slots_for(cpus: usize) -> u32 {
    let per_slot = size_of::<SyscallCounts>() * cpus.max(1);
    u32::try_from((MEMORY / per_slot).clamp(FEWEST, MOST)).unwrap_or(64)
}

/// Counters by number, over all CPUs. They wrap around.
pub(super) type Sums = [u32; NUMBERS];

struct Slot {
    cgroup_id: u64,
    since: Instant,
}

/// The agent's book of slots.
pub(super) struct Slots {
    free: Vec<u32>,
    given: HashMap<u64, u32>,
    used: HashMap<u32, Slot>,
    leaving: VecDeque<(Instant, u32)>,
    /// Of every slot that was ever given.
    taken: HashMap<u32, Box<Sums>>,
    total: u32,
}

impl Slots {
    /// All free, but for the one that is nobody's.
    pub(super) fn new(total: u32) -> Self {
        Self {
            free: (NOBODY + 1..total).rev().collect(),
            given: HashMap::new(),
            used: HashMap::new(),
            leaving: VecDeque::new(),
            taken: HashMap::new(),
            total,
        }
    }

    /// Finds a slot for a cgroup that has none.
    pub(super) fn give(&mut self, cgroup_id: u64, now: Instant) -> Option<u32> {
        if self.given.contains_key(&cgroup_id) {
            return None;
        }
        let slot = self.free.pop()?;
        self.given.insert(cgroup_id, slot);
        self.used.insert(slot, Slot { cgroup_id, since: now });
        Some(slot)
    }

    /// Whether there is so much room that cgroups get slots which may never call.
    pub(super) fn has_plenty(&self) -> bool {
        self.free.len() * 4 > self.total as usize
    }

    /// Takes a cgroup's slot back. Its counts are the cgroup's until [`Self::reclaim`].
    pub(super) fn take_back(&mut self, cgroup_id: u64, now: Instant) {
        if let Some(slot) = self.given.remove(&cgroup_id) {
            self.leaving.push_back((now, slot));
        }
    }

    /// Frees the slots on which nobody counts any more. To be called after they were read.
    pub(super) fn reclaim(&mut self, read_at: Instant) {
        let over =
            |(since, _): &mut (Instant, u32)| read_at.saturating_duration_since(*since) >= GRACE;
        while let Some((_, slot)) = self.leaving.pop_front_if(over) {
            self.used.remove(&slot);
            self.free.push(slot);
        }
    }

    /// Whether a cgroup has had its slot for so long that no CPU counts it anywhere else.
    pub(super) fn is_settled(&self, cgroup_id: u64, now: Instant) -> bool {
        let slot = self.given.get(&cgroup_id).and_then(|slot| self.used.get(slot));
        slot.is_some_and(|slot| now.saturating_duration_since(slot.since) >= GRACE)
    }

    /// Cgroups that have a slot.
    pub(super) fn cgroups(&self) -> impl Iterator<Item = u64> {
        self.given.keys().copied()
    }

    /// Slots that may have counts, and whose they are.
    pub(super) fn used(&self) -> impl Iterator<Item = (u32, u64)> {
        self.used.iter().map(|(slot, used)| (*slot, used.cgroup_id))
    }

    /// How many are used.
    pub(super) fn len(&self) -> usize {
        self.used.len()
    }

    /// Gives what is new in a slot since the last time, by number, and remembers it.
    pub(super) fn take(&mut self, slot: u32, now: &Sums) -> Vec<(u16, u64)> {
        let taken = self.taken.entry(slot).or_insert_with(|| Box::new([0; NUMBERS]));
        if **taken == *now {
            return Vec::new();
        }
        let both = (0..).zip(now.iter().zip(taken.iter()));
        let new = both.filter(|(_, (now, taken))| now != taken);
        let new = new.map(|(n, (now, taken))| (n, u64::from(now.wrapping_sub(*taken)))).collect();
        **taken = *now;
        new
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slot_belongs_to_its_cgroup_until_nobody_counts_on_it_any_more() {
        let mut slots = Slots::new(2);
        let now = Instant::now();
        assert_eq!(
            (slots.give(7, now), slots.give(7, now), slots.give(8, now)),
            (Some(1), None, None)
        );
        slots.take_back(7, now);
        slots.reclaim(now + GRACE / 2);
        assert_eq!((slots.give(8, now), slots.used().next()), (None, Some((1, 7))));
        slots.reclaim(now + GRACE);
        assert_eq!((slots.give(8, now), slots.used().next()), (Some(1), Some((1, 8))));
        assert!(!slots.is_settled(8, now) && slots.is_settled(8, now + GRACE));
        assert!(!slots.is_settled(7, now + GRACE));
    }

    #[test]
    fn slots_take_a_bounded_memory_on_any_machine() {
        assert_eq!(slots_for(2), 4_096);
        assert_eq!(slots_for(64), 128);
        assert_eq!(slots_for(1_024), 64);
        assert_eq!(slots_for(0), 4_096);
    }

    proptest! {
        #[test]
        fn what_is_taken_adds_up_to_what_was_counted_even_over_the_wrap(
            start: u32,
            steps in prop::collection::vec((0_usize..NUMBERS, 0_u32..u32::MAX), 0..50),
        ) {
            let mut slots = Slots::new(4);
            let mut now = [start; NUMBERS];
            slots.take(1, &now);
            let (mut counted, mut taken) = (0_u64, 0_u64);
            for (number, calls) in steps {
                now[number] = now[number].wrapping_add(calls);
                counted += u64::from(calls);
                let new = slots.take(1, &now);
                prop_assert!(new.iter().all(|(n, _)| usize::from(*n) == number));
                taken += new.iter().map(|(_, calls)| calls).sum::<u64>();
            }
            prop_assert_eq!(counted, taken);
        }
    }
}
