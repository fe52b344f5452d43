//! The loaded probe and its maps.

use std::io;

use orb8_common::{
    drops::Drop,
    syscall::{NUMBERS, SyscallCounts, SyscallSettings, UnslottedKey, told},
};
use orb8_probes::tracepoint;
use orb8_proto::MapStatus;

use super::{
    hooks::{self, Attached, Hook, Kinds},
    names,
    slots::{Sums, slots_for},
};
use crate::{
    config::Config,
    probe_loader::{LoadError, Object, RawMap, Skips},
};

/// The kernel's count of events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KernelCounts {
    pub(super) events_seen: u64,
    pub(super) events_unwanted: u64,
    pub(super) ring_full: u64,
    /// Calls that nobody counted.
    pub(super) uncounted: u64,
    /// Calls that were counted, but not how they ended.
    pub(super) ends_unseen: u64,
    /// Programs that were started and not told.
    pub(super) starts_unseen: u64,
    /// Calls whose error was counted, but not under its number.
    pub(super) errors_unnumbered: u64,
}

/// The loaded probe and its maps.
pub(super) struct Probe {
    /// Until it is detached.
    object: Option<Object>,
    kinds: Kinds,
    /// What the kernel did not run the programs for, where calls begin, where they end, and where
    /// programs are started.
    skips: [Option<Skips>; 3],
    /// Whether arguments of programs can be read.
    reads_arguments: bool,
    counts: RawMap,
    slots: RawMap,
    unslotted: RawMap,
    settings: RawMap,
    drops: RawMap,
    written: Box<SyscallSettings>,
    /// What does not work, and why.
    pub(super) missing: Vec<String>,
}

/// Which of [`Probe::skips`].
#[derive(Clone, Copy)]
enum At {
    Enter,
    Exit,
    Started,
}

impl Probe {
    /// Loads the object. Nothing is attached yet.
    pub(super) fn load(config: &Config) -> Result<Self, LoadError> {
        let slots = slots_for(aya::util::nr_cpus().unwrap_or(1));
        let latency = config.syscall_latency;
        let mut sizes = vec![
            ("SYSCALL_EVENTS", config.syscall_ring_buffer_size),
            ("SYSCALL_COUNTS", slots),
            ("SYSCALL_SLOTS", slots),
        ];
        if !latency {
            sizes.extend(
                ["SYSCALL_BEGUN", "SYSCALL_OUTCOMES", "SYSCALL_ERRORS"].map(|map| (map, 1)),
            );
        }
        let kernel = tracepoint::kernel().map_err(LoadError::Kernel)?;
        let mut missing = Vec::new();
        let mut globals = match orb8_probes::btf::offsets(orb8_probes::SYSCALL_MEMBERS) {
            Ok(offsets) => offsets,
            Err(why) => {
                missing.push(unread(&why));
                Vec::new()
            }
        };
        let reads_arguments = missing.is_empty();
        globals.extend(tracepoint::globals(kernel));
        globals.push(("WATCH_ENDS", u32::from(latency)));
        let mut object = Object::load(orb8_probes::SYSCALL_PROBE?, &sizes, &globals)?;
        let mut map = |name| object.map(name);
        let (counts, slots) = (map("SYSCALL_COUNTS")?, map("SYSCALL_SLOTS")?);
        let (unslotted, settings) = (map("SYSCALL_UNSLOTTED")?, map("SYSCALL_SETTINGS")?);
        let drops = map("DROPS")?;
        let written = Box::new(SyscallSettings {
            generation: 1,
            sample_every: config.syscall_sample,
            execve: names::number("execve").unwrap_or_default(),
            reserved: 0,
            told: [told::NEVER; NUMBERS],
        });
        let object = Some(object);
        let probe = Self {
            object,
            kinds: Kinds::new(kernel, config.tracepoints),
            skips: [const { None }; 3],
            reads_arguments,
            counts,
            slots,
            unslotted,
            settings,
            drops,
            written,
            missing,
        };
        let failed = |error| LoadError::MapIo { name: "SYSCALL_SETTINGS".into(), error };
        probe.settings.set(&0_u32, &*probe.written).map_err(failed)?;
        Ok(probe)
    }

    /// The object, as long as it is attached or about to be.
    pub(super) fn object(&mut self) -> Result<&mut Object, LoadError> {
        object(&mut self.object)
    }

    /// Counts no more. The maps stay.
    pub(super) fn detach(&mut self) {
        self.object = None;
    }

    /// Attaches. From here on calls are counted.
    pub(super) fn attach(&mut self) -> Result<(), LoadError> {
        self.attach_at(&hooks::ENTER, At::Enter)?;
        if self.reads_arguments
            && let Err(why) = self.attach_at(&hooks::STARTED, At::Started)
        {
            self.missing.push(unread(&why));
        }
        Ok(())
    }

    /// Attaches where calls end, which is of use before calls are counted.
    pub(super) fn attach_ends(&mut self) -> Result<(), LoadError> {
        hooks::attach(object(&mut self.object)?, &hooks::ENDED, &self.kinds)?;
        self.attach_at(&hooks::EXIT, At::Exit)
    }

    fn attach_at(&mut self, hook: &Hook, at: At) -> Result<(), LoadError> {
        let Attached { skips, lossy } =
            hooks::attach(object(&mut self.object)?, hook, &self.kinds)?;
        self.skips[at as usize] = Some(skips);
        // Once is enough.
        if let (At::Enter, Some(lossy)) = (at, lossy) {
            self.missing.push(lossy);
        }
        Ok(())
    }

    /// Slots that there are.
    pub(super) fn slots(&self) -> u32 {
        self.counts.max_entries()
    }

    /// Has a cgroup counted in a slot, from its next call on.
    pub(super) fn give_slot(&self, cgroup_id: u64, slot: u32) -> io::Result<()> {
        self.slots.set(&cgroup_id, &slot)
    }

    /// Has calls told so from now on, by number.
    pub(super) fn tell(&mut self, told: [u32; NUMBERS]) -> io::Result<()> {
        if self.written.told != told {
            self.written.told = told;
            self.settings.set(&0_u32, &*self.written)?;
        }
        Ok(())
    }

    pub(super) fn take_slot_back(&self, cgroup_id: u64) -> io::Result<()> {
        self.slots.remove(&cgroup_id)
    }

    /// Has every CPU look up its cgroup's slot again.
    pub(super) fn slots_changed(&mut self) -> io::Result<()> {
        self.written.generation = self.written.generation.wrapping_add(1);
        self.settings.set(&0_u32, &*self.written)
    }

    /// Reads the counters of a slot by number, over all CPUs.
    pub(super) fn counts(&mut self, slot: u32, sums: &mut Sums) -> io::Result<()> {
        sums.fill(0);
        self.counts.each_per_cpu(slot, |counts: &SyscallCounts| {
            for (sum, calls) in sums.iter_mut().zip(&counts.calls) {
                *sum = sum.wrapping_add(*calls);
            }
        })
    }

    /// Every counter of a cgroup without a slot.
    pub(super) fn each_unslotted(
        &mut self,
        visit: impl FnMut(UnslottedKey, u64),
    ) -> io::Result<()> {
        self.unslotted.for_each(visit)
    }

    /// Removes a counter on which nobody counts any more, and gives its last value.
    pub(super) fn take_unslotted(&self, key: &UnslottedKey) -> io::Result<Option<u64>> {
        self.unslotted.take(key)
    }

    pub(super) fn kernel_counts(&self) -> io::Result<KernelCounts> {
        let sum = |slot: Drop| -> io::Result<u64> {
            Ok(self.drops.get_per_cpu::<u64>(slot as u32)?.iter().sum())
        };
        let skipped = |at: At| self.skips[at as usize].as_ref().and_then(Skips::count).unwrap_or(0);
        Ok(KernelCounts {
            events_seen: sum(Drop::EventsSeen)?,
            events_unwanted: sum(Drop::EventsUnwanted)?,
            ring_full: sum(Drop::RingFull)?,
            uncounted: sum(Drop::Uncounted)? + skipped(At::Enter),
            ends_unseen: sum(Drop::BegunFull)? + sum(Drop::OutcomesFull)? + skipped(At::Exit),
            starts_unseen: skipped(At::Started),
            errors_unnumbered: sum(Drop::ErrorsFull)?,
        })
    }

    /// Fill of the maps, and their memory in the kernel.
    pub(super) fn fill(
        &self,
        slots_used: usize,
        unslotted: usize,
        ring: (u64, u64),
    ) -> (Vec<MapStatus>, u64) {
        let maps = vec![
            status(
                "SYSCALL_COUNTS",
                "percpu_array",
                slots_used as u64,
                u64::from(self.counts.max_entries()),
            ),
            status(
                "SYSCALL_UNSLOTTED",
                "hash",
                unslotted as u64,
                u64::from(self.unslotted.max_entries()),
            ),
            status("SYSCALL_EVENTS", "ringbuf", ring.0, ring.1),
        ];
        let all = [&self.counts, &self.slots, &self.unslotted, &self.settings, &self.drops];
        (maps, all.iter().map(|map| map.memory()).sum::<u64>() + ring.1)
    }
}

/// How full a map is.
pub(super) fn status(name: &str, kind: &str, entries: u64, max_entries: u64) -> MapStatus {
    MapStatus { name: name.into(), r#type: kind.into(), entries, max_entries }
}

fn object(object: &mut Option<Object>) -> Result<&mut Object, LoadError> {
    object.as_mut().ok_or_else(|| LoadError::Absent("object: it was detached".into()))
}

fn unread(why: &dyn std::fmt::Display) -> String {
    format!("arguments of programs may stay unread: {why}")
}
