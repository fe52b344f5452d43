//! The loaded probe, and cgroups whose calls it counts.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap as BpfHashMap, MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, RawTracePoint},
};
use orb8_common::{
    Record,
    syscall::{NUMBERS, SyscallEvent, SyscallSettings, TextOf, UnslottedKey, event_flags::STARTED},
};

use crate::acts;

pub(crate) const EXECVE: u32 = libc::SYS_execve as u32;
const NEEDS: &str = "this test needs root and a kernel with BTF";

/// By which kind of program.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Btf,
    Raw,
}

pub(crate) struct Probe {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    generation: u32,
    every: u32,
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
        let object = orb8_probes::SYSCALL_PROBE.unwrap_or_else(|missing| panic!("{missing}"));
        let offsets = orb8_probes::btf::offsets(orb8_probes::SYSCALL_MEMBERS).unwrap();
        let mut loader = EbpfLoader::new();
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        let mut ebpf = loader.load(object).unwrap_or_else(|e| panic!("{NEEDS}; {e:?}"));
        match how {
            How::Btf => {
                let btf = Btf::from_sys_fs().unwrap();
                let program: &mut BtfTracePoint =
                    ebpf.program_mut("orb8_sys_enter").unwrap().try_into().unwrap();
                program.load("sys_enter", &btf).unwrap_or_else(|e| panic!("{e:?}"));
                program.attach().unwrap();
            }
            How::Raw => raw(&mut ebpf, "orb8_sys_enter_raw", "sys_enter"),
        }
        raw(&mut ebpf, "orb8_process_exec", "sched_process_exec");
        let ring = ebpf.take_map("SYSCALL_EVENTS").unwrap().try_into().unwrap();
        Self { ebpf, ring, generation: 0, every: 0 }
    }

    pub(crate) fn set(&mut self, generation: u32, every: u32) {
        (self.generation, self.every) = (generation, every);
        let mut settings: Array<_, [u8; 16]> =
            self.ebpf.map_mut("SYSCALL_SETTINGS").unwrap().try_into().unwrap();
        let value =
            SyscallSettings { generation, sample_every: every, execve: EXECVE, reserved: 0 };
        settings.set(0, bytes(&value), 0).unwrap();
    }

    pub(crate) fn give_slot(&mut self, cgroup_id: u64, slot: u32) {
        let mut slots: BpfHashMap<_, u64, u32> =
            self.ebpf.map_mut("SYSCALL_SLOTS").unwrap().try_into().unwrap();
        slots.insert(cgroup_id, slot, 0).unwrap();
        self.set(self.generation + 1, self.every);
    }

    pub(crate) fn tell(&mut self, number: u32, how: u32, text: TextOf) {
        self.set(self.generation, self.every);
        let mut texts: Array<_, [u8; 8]> =
            self.ebpf.map_mut("SYSCALL_TEXTS").unwrap().try_into().unwrap();
        texts.set(number, bytes(&text), 0).unwrap();
        let mut told: Array<_, u32> =
            self.ebpf.map_mut("SYSCALL_TOLD").unwrap().try_into().unwrap();
        told.set(number, how, 0).unwrap();
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
        let counts: BpfHashMap<_, [u8; 16], u64> =
            self.ebpf.map("SYSCALL_UNSLOTTED").unwrap().try_into().unwrap();
        let entries = counts.iter().map(|entry| entry.unwrap());
        let entries = entries.map(|(key, calls)| (UnslottedKey::decode(&key).unwrap(), calls));
        entries.filter(|(key, _)| key.cgroup_id == cgroup_id).map(|(k, n)| (k.number, n)).collect()
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

fn bytes<T: Record, const N: usize>(value: &T) -> [u8; N] {
    value.as_bytes().try_into().unwrap()
}

fn raw(ebpf: &mut Ebpf, name: &str, at: &str) {
    let program: &mut RawTracePoint = ebpf.program_mut(name).unwrap().try_into().unwrap();
    program.load().unwrap_or_else(|e| panic!("{name}: {e:?}"));
    program.attach(at).unwrap();
}

/// A cgroup of its own, which ends with the value.
pub(crate) struct Cgroup {
    dir: PathBuf,
    pub(crate) id: u64,
}

impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2")).expect(NEEDS);
        let mount = mount.split(' ').nth(1).unwrap();
        let number = NUMBER.fetch_add(1, Relaxed);
        let dir =
            PathBuf::from(mount).join(format!("orb8-test-{name}-{}-{number}", std::process::id()));
        fs::create_dir(&dir).expect(NEEDS);
        let id = fs::metadata(&dir).unwrap().ino();
        Self { dir, id }
    }

    /// Does something in the cgroup, in a process with so many threads, each so often.
    pub(crate) fn run(&self, what: &str, threads: usize, times: u64) {
        let this = std::env::current_exe().unwrap();
        let mut command = Command::new(this);
        command.args(["--exact", "acts::act", "--quiet"]);
        command.env(acts::ACT, format!("{what} {threads} {times}"));
        self.run_command(&command);
    }

    /// Runs a program in the cgroup to its end.
    pub(crate) fn run_program(&self, program: &str, arguments: &[&str]) {
        self.run_command(Command::new(program).args(arguments));
    }

    /// Runs a command in the cgroup to its end: a shell enters it and becomes the command.
    pub(crate) fn run_command(&self, command: &Command) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", r#"echo 0 > "$1"; shift; exec "$@""#, "sh"]);
        shell.arg(self.dir.join("cgroup.procs")).arg(command.get_program());
        shell.args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let out = shell.output().unwrap();
        assert!(out.status.success(), "{out:?}");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut tries = 0;
        while fs::remove_dir(&self.dir).is_err() && tries < 1_000 {
            tries += 1;
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
