//! The loaded probe and its maps.

use std::io;

use orb8_common::{
    drops::Drop,
    syscall::{NUMBERS, SyscallCounts, SyscallSettings, UnslottedKey, told},
};
use orb8_proto::MapStatus;

use super::{
    names,
    slots::{Sums, slots_for},
};
use crate::{
    config::Config,
    probe_loader::{LoadError, Object, RawMap},
};

/// The kernel's count of events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KernelCounts {
    pub(super) events_seen: u64,
    pub(super) events_unwanted: u64,
    pub(super) ring_full: u64,
    pub(super) uncounted: u64,
    /// Calls that were counted, but not how they ended.
    pub(super) ends_unseen: u64,
    /// Calls whose error was counted, but not under its number.
    pub(super) errors_unnumbered: u64,
}

/// The loaded probe and its maps.
pub(super) struct Probe {
    /// Until it is detached.
    object: Option<Object>,
    program: &'static str,
    /// Where calls end.
    ends: Option<&'static str>,
    counts: RawMap,
    slots: RawMap,
    unslotted: RawMap,
    settings: RawMap,
    drops: RawMap,
    written: Box<SyscallSettings>,
    /// What does not work, and why.
    pub(super) missing: Option<String>,
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
        let (mut globals, missing) = match orb8_probes::btf::offsets(orb8_probes::SYSCALL_MEMBERS) {
            Ok(offsets) => (offsets, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        let missing = missing.map(|why| format!("arguments of programs may stay unread: {why}"));
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
            program: "",
            ends: None,
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
        self.object.as_mut().ok_or_else(|| LoadError::Absent("object: it was detached".into()))
    }

    /// Counts no more. The maps stay.
    pub(super) fn detach(&mut self) {
        self.object = None;
    }

    /// Attaches, by the cheapest kind of program that this kernel has. From here on calls are counted.
    pub(super) fn attach(&mut self) -> Result<(), LoadError> {
        self.program = attach_at(self.object()?, &ENTER)?;
        if self.missing.is_none() {
            let attached =
                self.object()?.attach_raw_tracepoint("orb8_process_exec", "sched_process_exec");
            self.missing =
                attached.err().map(|why| format!("arguments of programs may stay unread: {why}"));
        }
        Ok(())
    }

    /// Attaches where calls end, which is of use before calls are counted.
    pub(super) fn attach_ends(&mut self) -> Result<(), LoadError> {
        let object = self.object()?;
        object.attach_raw_tracepoint("orb8_process_exit", "sched_process_exit")?;
        self.ends = Some(attach_at(object, &EXIT)?);
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
        Ok(KernelCounts {
            events_seen: sum(Drop::EventsSeen)?,
            events_unwanted: sum(Drop::EventsUnwanted)?,
            ring_full: sum(Drop::RingFull)?,
            uncounted: sum(Drop::Uncounted)?,
            ends_unseen: sum(Drop::BegunFull)? + sum(Drop::OutcomesFull)?,
            errors_unnumbered: sum(Drop::ErrorsFull)?,
        })
    }

    /// Calls at which the kernel did not run the program, because it was running on that CPU; None
    /// where it does not say.
    pub(super) fn missed(&mut self) -> Option<u64> {
        let program = self.program;
        self.object.as_mut()?.recursion_misses(program)
    }

    /// Calls at whose end the kernel did not run the program.
    pub(super) fn missed_ends(&mut self) -> u64 {
        let Some(program) = self.ends else { return 0 };
        self.object.as_mut().and_then(|object| object.recursion_misses(program)).unwrap_or(0)
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

/// Programs for one tracepoint: by its types, raw, and classic.
struct Kinds {
    at: &'static str,
    programs: [&'static str; 3],
}

const ENTER: Kinds = Kinds {
    at: "sys_enter",
    programs: ["orb8_sys_enter", "orb8_sys_enter_raw", "orb8_sys_enter_tp"],
};
const EXIT: Kinds =
    Kinds { at: "sys_exit", programs: ["orb8_sys_exit", "orb8_sys_exit_raw", "orb8_sys_exit_tp"] };

/// Attaches the cheapest kind of program that this kernel has. What is told of a failure is why the
/// first kind could not be: the others are for old kernels.
fn attach_at(object: &mut Object, kinds: &Kinds) -> Result<&'static str, LoadError> {
    let Kinds { at, programs: [typed, raw, classic] } = *kinds;
    let why = match object.attach_btf_tracepoint(typed, at) {
        Ok(()) => return Ok(typed),
        Err(why) => why,
    };
    tracing::debug!("{at} by its types: {why}");
    if object.attach_raw_tracepoint(raw, at).is_ok() {
        return Ok(raw);
    }
    match object.attach_tracepoint(classic, "raw_syscalls", at) {
        Ok(()) => Ok(classic),
        Err(_as_well) => Err(why),
    }
}
