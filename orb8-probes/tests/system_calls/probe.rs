//! The loaded probe, and what its maps say.

use std::{collections::HashMap, path::Path};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap as BpfHashMap, MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, Program, RawTracePoint, TracePoint},
    util::KernelVersion,
};
use orb8_common::{
    Record,
    drops::Drop,
    syscall::{
        Begun, CallOutcomes, ErrorKey, NUMBERS, OutcomeKey, SyscallEvent, SyscallSettings, TextOf,
        UnslottedKey, event_flags::STARTED, told,
    },
};
use rustix::thread::{MembarrierCommand, membarrier};

pub(crate) const EXECVE: u32 = libc::SYS_execve as u32;
pub(crate) const NEEDS: &str = "this test needs root and a kernel with BTF";

/// By which kind of program.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Btf,
    Raw,
    Classic,
}

impl How {
    /// Every kind of program that this kernel has, the cheapest one first. The one by types asks for
    /// `bpf_get_current_task_btf`, which came with Linux 5.11.
    pub(crate) fn all() -> Vec<Self> {
        let kernel = KernelVersion::current().expect("the kernel's version");
        let mut all = vec![Self::Btf, Self::Raw, Self::Classic];
        all.retain(|how| !matches!(how, Self::Btf) || kernel >= KernelVersion::new(5, 11, 0));
        all
    }

    /// What the agent attaches here.
    pub(crate) fn cheapest() -> Self {
        Self::all()[0]
    }
}

/// How the probe is loaded.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) how: How,
    /// Whether the ends of calls are watched.
    pub(crate) ends: bool,
    /// Maps that get so many entries.
    pub(crate) small: &'static [(&'static str, u32)],
}

pub(crate) struct Probe {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    generation: u32,
    every: u32,
    told: [u32; NUMBERS],
}

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) head: SyscallEvent,
    pub(crate) text: Vec<u8>,
}

impl Event {
    /// The texts, each without its zero byte.
    pub(crate) fn texts(&self) -> Vec<&[u8]> {
        let text = self.text.strip_suffix(&[0]).unwrap_or(&self.text);
        text.split(|byte| *byte == 0).collect()
    }
}

/// Programs that were told of: those of the call alone, and those that were started.
pub(crate) fn execs(events: &[&Event]) -> usize {
    events.iter().filter(|e| e.head.flags & STARTED == 0).count()
}

impl Probe {
    pub(crate) fn attach(how: How) -> Self {
        Self::load(Options { how, ends: false, small: &[] })
    }

    /// With the ends of calls.
    pub(crate) fn attach_ends(how: How) -> Self {
        Self::load(Options { how, ends: true, small: &[] })
    }

    pub(crate) fn load(options: Options) -> Self {
        let object = orb8_probes::SYSCALL_PROBE.unwrap_or_else(|missing| panic!("{missing}"));
        let offsets = orb8_probes::btf::offsets(orb8_probes::SYSCALL_MEMBERS).unwrap();
        let watch_ends = u32::from(options.ends);
        let mut loader = EbpfLoader::new();
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        loader.override_global("WATCH_ENDS", &watch_ends, true);
        for (map, entries) in options.small {
            loader.map_max_entries(map, *entries);
        }
        let mut ebpf = loader.load(object).unwrap_or_else(|e| panic!("{NEEDS}; {e:?}"));
        // What is noted where calls begin is of use only once ends are seen.
        if options.ends {
            raw(&mut ebpf, "orb8_process_exit", "sched_process_exit");
            attach(&mut ebpf, options.how, "exit");
        }
        raw(&mut ebpf, "orb8_process_exec", "sched_process_exec");
        attach(&mut ebpf, options.how, "enter");
        let ring = ebpf.take_map("SYSCALL_EVENTS").unwrap().try_into().unwrap();
        Self { ebpf, ring, generation: 0, every: 0, told: [told::NEVER; NUMBERS] }
    }

    /// No call is seen from here on; what was counted stays.
    pub(crate) fn detach(&mut self) {
        for (_, program) in self.ebpf.programs_mut() {
            // Those that were never loaded cannot be unloaded.
            let _ = match program {
                Program::BtfTracePoint(program) => program.unload(),
                Program::RawTracePoint(program) => program.unload(),
                Program::TracePoint(program) => program.unload(),
                other => panic!("{other:?}"),
            };
        }
        wait_for_programs();
    }

    pub(crate) fn set(&mut self, generation: u32, every: u32) {
        (self.generation, self.every) = (generation, every);
        let mut settings: Array<_, [u8; size_of::<SyscallSettings>()]> =
            self.ebpf.map_mut("SYSCALL_SETTINGS").unwrap().try_into().unwrap();
        let value = SyscallSettings {
            generation,
            sample_every: every,
            execve: EXECVE,
            reserved: 0,
            told: self.told,
        };
        settings.set(0, bytes(&value), 0).unwrap();
    }

    pub(crate) fn give_slot(&mut self, cgroup_id: u64, slot: u32) {
        let mut slots: BpfHashMap<_, u64, u32> =
            self.ebpf.map_mut("SYSCALL_SLOTS").unwrap().try_into().unwrap();
        slots.insert(cgroup_id, slot, 0).unwrap();
        self.set(self.generation + 1, self.every);
    }

    /// Takes it back, so that nothing is counted there any more when this returns.
    pub(crate) fn take_slot(&mut self, cgroup_id: u64) {
        let mut slots: BpfHashMap<_, u64, u32> =
            self.ebpf.map_mut("SYSCALL_SLOTS").unwrap().try_into().unwrap();
        slots.remove(&cgroup_id).unwrap();
        // Whoever sees the new generation has to see that the slot is gone, ...
        wait_for_programs();
        self.set(self.generation + 1, self.every);
        // ... and whoever saw the old one may still be counting.
        wait_for_programs();
    }

    pub(crate) fn tell(&mut self, number: u32, how: u32, text: TextOf) {
        self.told[number as usize] = how;
        self.set(self.generation, self.every);
        let mut texts: Array<_, [u8; 8]> =
            self.ebpf.map_mut("SYSCALL_TEXTS").unwrap().try_into().unwrap();
        texts.set(number, bytes(&text), 0).unwrap();
    }

    /// Calls of a slot by number, over all CPUs.
    pub(crate) fn slotted(&self, slot: u32) -> [u32; NUMBERS] {
        let counts: PerCpuArray<_, [u32; NUMBERS]> =
            self.ebpf.map("SYSCALL_COUNTS").unwrap().try_into().unwrap();
        let mut sum = [0; NUMBERS];
        for cpu in counts.get(&slot, 0).unwrap().iter() {
            sum.iter_mut().zip(cpu).for_each(|(sum, calls)| *sum += calls);
        }
        sum
    }

    /// Calls of a cgroup without a slot by number.
    pub(crate) fn unslotted(&self, cgroup_id: u64) -> HashMap<u32, u64> {
        let entries = self.entries::<UnslottedKey, u64, 16, 8>("SYSCALL_UNSLOTTED");
        entries.filter(|(key, _)| key.cgroup_id == cgroup_id).map(|(k, n)| (k.number, n)).collect()
    }

    /// How calls of a cgroup ended, by number.
    pub(crate) fn outcomes(&self, cgroup_id: u64) -> HashMap<u32, CallOutcomes> {
        const SIZE: usize = size_of::<CallOutcomes>();
        let entries = self.entries::<OutcomeKey, CallOutcomes, 16, SIZE>("SYSCALL_OUTCOMES");
        entries.filter(|(key, _)| key.cgroup_id == cgroup_id).map(|(k, o)| (k.number, o)).collect()
    }

    /// Ends of calls that anybody made.
    pub(crate) fn all_outcomes(&self) -> Vec<CallOutcomes> {
        const SIZE: usize = size_of::<CallOutcomes>();
        let entries = self.entries::<OutcomeKey, CallOutcomes, 16, SIZE>("SYSCALL_OUTCOMES");
        entries.map(|(_, outcomes)| outcomes).collect()
    }

    /// Errors of anybody.
    pub(crate) fn errors(&self) -> HashMap<ErrorKey, u64> {
        self.entries::<ErrorKey, u64, 16, 8>("SYSCALL_ERRORS").collect()
    }

    /// Calls that threads are in, or were.
    pub(crate) fn begun(&self) -> Vec<Begun> {
        self.entries::<u64, Begun, 8, 24>("SYSCALL_BEGUN").map(|(_, begun)| begun).collect()
    }

    fn entries<K: Record, V: Record, const KEY: usize, const VALUE: usize>(
        &self,
        map: &str,
    ) -> impl Iterator<Item = (K, V)> {
        let map: BpfHashMap<_, [u8; KEY], [u8; VALUE]> =
            self.ebpf.map(map).unwrap().try_into().unwrap();
        let entries: Vec<_> = map.iter().map(|entry| entry.unwrap()).collect();
        entries
            .into_iter()
            .map(|(key, value)| (K::decode(&key).unwrap(), V::decode(&value).unwrap()))
    }

    /// What the probe says of itself, over all CPUs.
    pub(crate) fn dropped(&self, slot: Drop) -> u64 {
        let drops: PerCpuArray<_, u64> = self.ebpf.map("DROPS").unwrap().try_into().unwrap();
        drops.get(&(slot as u32), 0).unwrap().iter().sum()
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.ring.next() {
            let head = SyscallEvent::decode(&item).expect("an event");
            let text = &item[size_of::<SyscallEvent>()..];
            events.push(Event { head, text: text[..head.text_size as usize].to_vec() });
        }
        events
    }
}

/// Returns when every program that runs now has ended: they run in a section that this waits for.
fn wait_for_programs() {
    membarrier(MembarrierCommand::Global).unwrap();
}

fn bytes<T: Record, const N: usize>(value: &T) -> [u8; N] {
    value.as_bytes().try_into().unwrap()
}

fn attach(ebpf: &mut Ebpf, how: How, end: &str) {
    let at = format!("sys_{end}");
    match how {
        How::Btf => {
            let btf = Btf::from_sys_fs().unwrap();
            let program: &mut BtfTracePoint =
                ebpf.program_mut(&format!("orb8_{at}")).unwrap().try_into().unwrap();
            program.load(&at, &btf).unwrap_or_else(|e| panic!("{e:?}"));
            program.attach().unwrap();
        }
        How::Raw => raw(ebpf, &format!("orb8_{at}_raw"), &at),
        How::Classic => {
            mount_tracefs();
            let program: &mut TracePoint =
                ebpf.program_mut(&format!("orb8_{at}_tp")).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|e| panic!("{e:?}"));
            program.attach("raw_syscalls", &at).unwrap();
        }
    }
}

/// For this thread alone, where nobody has mounted it.
#[expect(unsafe_code, reason = "to leave the mounts of other threads alone")]
fn mount_tracefs() {
    const AT: &str = "/sys/kernel/tracing";
    if Path::new(AT).join("events").exists() {
        return;
    }
    // SAFETY: it changes what this thread sees, and nothing else.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.expect(NEEDS);
    let private =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tracefs", AT, "tracefs", flags, None).expect(NEEDS);
}

fn raw(ebpf: &mut Ebpf, name: &str, at: &str) {
    let program: &mut RawTracePoint = ebpf.program_mut(name).unwrap().try_into().unwrap();
    program.load().unwrap_or_else(|e| panic!("{name}: {e:?}"));
    program.attach(at).unwrap();
}
