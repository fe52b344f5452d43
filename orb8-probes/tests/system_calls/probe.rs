//! The loaded probe, and what its maps say.

use std::{
    collections::HashMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap as BpfHashMap, MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, Program, RawTracePoint, TracePoint},
};
use orb8_common::{
    Record,
    drops::Drop,
    syscall::{
        Begun, CallOutcomes, ErrorKey, NUMBERS, OutcomeKey, SyscallEvent, SyscallSettings, TextOf,
        UnslottedKey, event_flags::STARTED, told,
    },
};
use orb8_probes::tracepoint::{self, Kind};
use rustix::thread::{MembarrierCommand, membarrier};

pub(crate) const EXECVE: u32 = libc::SYS_execve as u32;
pub(crate) const NEEDS: &str = "this test needs root and a kernel with BTF";

/// Every kind of program that this kernel has and that misses no call, the one that the agent takes
/// first.
pub(crate) fn kinds() -> impl Iterator<Item = Kind> {
    let kernel = tracepoint::kernel().unwrap();
    tracepoint::kinds(kernel)
        .iter()
        .copied()
        .filter(move |kind| !tracepoint::is_preemptible(*kind, kernel))
}

/// How the probe is loaded.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) kind: Kind,
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
    /// As the agent attaches it.
    pub(crate) fn attach() -> Self {
        Self::attach_by(kinds().next().unwrap())
    }

    pub(crate) fn attach_by(kind: Kind) -> Self {
        Self::load(Options { kind, ends: false, small: &[] })
    }

    /// With the ends of calls, as the agent attaches it.
    pub(crate) fn attach_ends() -> Self {
        Self::attach_ends_by(kinds().next().unwrap())
    }

    pub(crate) fn attach_ends_by(kind: Kind) -> Self {
        Self::load(Options { kind, ends: true, small: &[] })
    }

    pub(crate) fn load(options: Options) -> Self {
        let object = orb8_probes::SYSCALL_PROBE.unwrap_or_else(|missing| panic!("{missing}"));
        let offsets = orb8_probes::btf::offsets(orb8_probes::SYSCALL_MEMBERS).unwrap();
        let watch_ends = u32::from(options.ends);
        let mut loader = EbpfLoader::new();
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        let by_version = tracepoint::globals(tracepoint::kernel().unwrap());
        for (name, value) in &by_version {
            loader.override_global(name, value, true);
        }
        loader.override_global("WATCH_ENDS", &watch_ends, true);
        for (map, entries) in options.small {
            loader.map_max_entries(map, *entries);
        }
        let mut ebpf = loader.load(object).unwrap_or_else(|e| panic!("{NEEDS}; {e:?}"));
        // What is noted where calls begin is of use only once ends are seen.
        if options.ends {
            attach_process(&mut ebpf, options.kind, "exit");
            attach(&mut ebpf, options.kind, "exit");
        }
        attach_process(&mut ebpf, options.kind, "exec");
        attach(&mut ebpf, options.kind, "enter");
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

    /// Calls that the kernel skipped, of anybody.
    pub(crate) fn skipped(&self) -> u64 {
        let of = |program: &Program| -> Option<u64> {
            let fd = program.fd().ok()?.as_fd().as_raw_fd();
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
            let line = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
            Some(line.trim().parse().unwrap())
        };
        self.ebpf.programs().filter_map(|(_, program)| of(program)).sum()
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

fn attach(ebpf: &mut Ebpf, kind: Kind, end: &str) {
    let at = format!("sys_{end}");
    match kind {
        Kind::Typed => {
            let btf = Btf::from_sys_fs().unwrap();
            let program: &mut BtfTracePoint =
                ebpf.program_mut(&format!("orb8_{at}")).unwrap().try_into().unwrap();
            program.load(&at, &btf).unwrap_or_else(|e| panic!("{e:?}"));
            program.attach().unwrap();
        }
        Kind::Raw => raw(ebpf, &format!("orb8_{at}_raw"), &at),
        Kind::Classic => classic(ebpf, &format!("orb8_{at}_tp"), "raw_syscalls", &at),
    }
}

/// Where a process starts a program, or ends.
fn attach_process(ebpf: &mut Ebpf, kind: Kind, what: &str) {
    let (name, at) = (format!("orb8_process_{what}"), format!("sched_process_{what}"));
    match kind {
        Kind::Typed | Kind::Raw => raw(ebpf, &name, &at),
        Kind::Classic => classic(ebpf, &format!("{name}_tp"), "sched", &at),
    }
}

fn classic(ebpf: &mut Ebpf, name: &str, category: &str, at: &str) {
    mount_tracefs();
    let program: &mut TracePoint = ebpf.program_mut(name).unwrap().try_into().unwrap();
    program.load().unwrap_or_else(|e| panic!("{name}: {e:?}"));
    program.attach(category, at).unwrap();
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
