//! The network probe, loaded for one case.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{self, MapData, PerCpuArray},
    programs::{Program, ProgramInfo, TestRun as _, TestRunOptions},
};
use orb8_common::{
    Record,
    network::{FlowKey4, FlowKey6, FlowStats, LastFlow4, LastFlow6},
};
use rustix::time::{ClockId, clock_gettime};

use super::cases::{Case, Family, Seat, Whose};

/// Programs that the agent attaches, and those that are measured in their place.
const PROGRAMS: [&str; 9] = [
    "orb8_ingress",
    "orb8_egress",
    "orb8_ingress_l3",
    "orb8_egress_l3",
    "orb8_mix",
    "orb8_host_ingress",
    "orb8_host_egress",
    "orb8_host_ingress_listed",
    "orb8_host_egress_listed",
];

const STATS: usize = size_of::<FlowStats>();

/// How large a program is.
pub(super) struct Size {
    pub(super) program: &'static str,
    /// Loaded in which way; empty where there is one.
    pub(super) with: &'static str,
    /// Instructions that the verifier walked through, over all paths.
    pub(super) verified: u32,
    /// Bytes of eBPF as the kernel keeps it.
    pub(super) translated: u32,
    /// Bytes of machine code.
    pub(super) jited: u32,
}

/// The sizes of all programs that see packets.
pub(super) fn sizes() -> Result<Vec<Size>> {
    let mut ebpf = load(1, 1)?;
    PROGRAMS
        .into_iter()
        .map(|program| {
            let info = program_info(program_mut(&mut ebpf, program)?)?;
            Ok(Size {
                program,
                with: "",
                verified: info.verified_instruction_count().unwrap_or_default(),
                translated: info.size_translated().unwrap_or_default(),
                jited: info.size_jitted(),
            })
        })
        .collect()
}

/// A loaded probe and the packet that it is given.
pub(super) struct Probe {
    ebpf: Ebpf,
    case: Case,
    packet: Vec<u8>,
    /// Packets that went through the program so far.
    sent: u64,
}

/// Which program of a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Floor,
    Subject,
}

impl Probe {
    pub(super) fn load(case: &Case) -> Result<Self> {
        let (v4, v6) = match case.family {
            Family::Ipv4 => (case.table, 1),
            Family::Ipv6 => (1, case.table),
        };
        let packet = case.family.packet().to_vec();
        let mut ebpf = load(v4, v6)?;
        if let Seat::Socket(_, Whose::Ours) = case.seat {
            claim_sockets(&mut ebpf)?;
        }
        Ok(Self { ebpf, case: *case, packet, sent: 0 })
    }

    /// The time on this thread's CPU clock that `packets` packets take, the call included. `first`
    /// is the number of the first packet: equal numbers are equal traffic.
    pub(super) fn time(&mut self, half: Half, first: u32, packets: u32) -> Result<Duration> {
        let name = match (half, self.case.seat, self.case.flows) {
            (Half::Floor, Seat::Socket(..), _) => "orb8_host_empty",
            (Half::Subject, Seat::Socket(program, _), _) => program,
            (Half::Floor, Seat::Interface, 1) => "orb8_empty",
            (Half::Subject, Seat::Interface, 1) => "orb8_ingress",
            (Half::Floor, Seat::Interface, _) => "orb8_mix_empty",
            (Half::Subject, Seat::Interface, _) => "orb8_mix",
        };
        let context = context(first, self.case.flows | self.case.in_a_row << 24);
        let program = program_mut(&mut self.ebpf, name)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.packet);
        if self.case.seat == Seat::Interface {
            options.ctx_in = Some(&context);
        }
        options.repeat = packets;
        let before = clock_gettime(ClockId::ThreadCPUTime);
        test_run(program, options).with_context(|| format!("a test run of {name}"))?;
        let after = clock_gettime(ClockId::ThreadCPUTime);
        if half == Half::Subject {
            self.sent += u64::from(packets);
        }
        Ok(Duration::try_from(after - before)?)
    }

    /// Sees to it that the probe counted what it was timed on: every packet, in a flow, in a slot or
    /// in the overflow.
    pub(super) fn check(&self) -> Result<()> {
        let counted = match self.case.family {
            Family::Ipv4 => {
                self.table::<{ size_of::<FlowKey4>() }>("FLOWS_V4")?
                    + self.waiting::<{ size_of::<LastFlow4>() }>("LAST_V4", |slot| {
                        LastFlow4::decode(slot).map(|last| last.pending.packets)
                    })?
            }
            Family::Ipv6 => {
                self.table::<{ size_of::<FlowKey6>() }>("FLOWS_V6")?
                    + self.waiting::<{ size_of::<LastFlow6>() }>("LAST_V6", |slot| {
                        LastFlow6::decode(slot).map(|last| last.pending.packets)
                    })?
            }
        };
        let overflow: maps::HashMap<&MapData, [u32; 2], [u64; 3]> =
            self.ebpf.map("OVERFLOW").context("no map OVERFLOW")?.try_into()?;
        let overflow = overflow.get(&OVERFLOW_KEY, 0)?[0];
        if let Seat::Socket(_, Whose::Others) = self.case.seat {
            ensure!(counted == 0, "{counted} packets of a socket that is not ours were counted");
            return Ok(());
        }
        ensure!(
            counted + overflow == self.sent,
            "{} packets were sent, {counted} counted and {overflow} in the overflow",
            self.sent
        );
        Ok(())
    }

    fn table<const KEY: usize>(&self, name: &str) -> Result<u64> {
        let map = self.ebpf.map(name).with_context(|| format!("no map {name}"))?;
        let map: maps::HashMap<&MapData, [u8; KEY], [u8; STATS]> = map.try_into()?;
        map.iter()
            .map(|entry| {
                let stats = FlowStats::decode(&entry?.1).context("a short entry")?;
                Ok(stats.counts.packets)
            })
            .sum()
    }

    fn waiting<const SIZE: usize>(
        &self,
        name: &str,
        packets: impl Fn(&[u8]) -> Option<u64>,
    ) -> Result<u64> {
        let map = self.ebpf.map(name).with_context(|| format!("no map {name}"))?;
        let map: PerCpuArray<&MapData, [u8; SIZE]> = map.try_into()?;
        let mut sum = 0;
        for slots in map.iter() {
            sum += slots?.iter().filter_map(|slot| packets(slot)).sum::<u64>();
        }
        Ok(sum)
    }
}

/// The interface of test runs, loopback, and ingress.
const OVERFLOW_KEY: [u32; 2] = [1, 0];

fn load(v4: u32, v6: u32) -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new()
        .map_max_entries("FLOWS_V4", v4)
        .map_max_entries("FLOWS_V6", v6)
        .load(orb8_probes::NETWORK_PROBE?)
        .context("cannot load the network probe (needs root, CAP_BPF at least)")?;
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::CgroupSkb(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => bail!("{name} is of no kind that packets go through"),
        };
        loaded.with_context(|| format!("the kernel refused {name}"))?;
    }
    let overflow = ebpf.map_mut("OVERFLOW").context("no map OVERFLOW")?;
    maps::HashMap::<_, [u32; 2], [u64; 3]>::try_from(overflow)?.insert(OVERFLOW_KEY, [0; 3], 0)?;
    Ok(ebpf)
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    ebpf.program_mut(name).with_context(|| format!("no program {name}"))
}

fn test_run(program: &Program, options: TestRunOptions<'_>) -> Result<()> {
    match program {
        Program::CgroupSkb(program) => program.test_run(options)?,
        Program::SchedClassifier(program) => program.test_run(options)?,
        _ => bail!("{program:?} is of no kind that packets go through"),
    };
    Ok(())
}

fn program_info(program: &Program) -> Result<ProgramInfo> {
    Ok(match program {
        Program::CgroupSkb(program) => program.info()?,
        Program::SchedClassifier(program) => program.info()?,
        _ => bail!("{program:?} is of no kind that packets go through"),
    })
}

/// Makes the socket of a test run one of the node's. It is in this process's cgroup and network
/// namespace.
fn claim_sockets(ebpf: &mut Ebpf) -> Result<()> {
    const ACCOUNT: u32 = 1;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).context("no cgroup2")?;
    let mount = Path::new(mount.split(' ').nth(4).context("no mount point")?);
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
    let id = fs::metadata(mount.join(own))?.ino();
    let list = ebpf.map_mut("HOST_CGROUPS").context("no map HOST_CGROUPS")?;
    maps::HashMap::<_, u64, u32>::try_from(list)?.insert(id, ACCOUNT, 0)?;
    let packet = [0; 14];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&packet);
    test_run(program_mut(ebpf, "orb8_host_netns")?, options)?;
    Ok(())
}

/// A `struct __sk_buff` as a test run takes it: what may be set is set, the rest is zero.
fn context(mark: u32, priority: u32) -> [u8; 192] {
    const MARK: usize = 8;
    const PRIORITY: usize = 32;
    let mut context = [0; 192];
    context[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
    context[PRIORITY..PRIORITY + 4].copy_from_slice(&priority.to_ne_bytes());
    context
}
