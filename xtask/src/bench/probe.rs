//! The network probe, loaded for one case.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{self, MapData, PerCpuArray},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use orb8_common::{
    Record,
    network::{FlowKey4, FlowKey6, FlowStats, LastFlow4, LastFlow6},
};
use rustix::time::{ClockId, clock_gettime};

use super::cases::{Case, Family};

/// Programs that the agent attaches, and those that are measured in their place.
const PROGRAMS: [&str; 5] =
    ["orb8_ingress", "orb8_egress", "orb8_ingress_l3", "orb8_egress_l3", "orb8_mix"];

const STATS: usize = size_of::<FlowStats>();

/// How large a program is.
pub(super) struct Size {
    pub(super) program: &'static str,
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
            let info = program_mut(&mut ebpf, program)?.info()?;
            Ok(Size {
                program,
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
        Ok(Self { ebpf: load(v4, v6)?, case: *case, packet, sent: 0 })
    }

    /// The time on this thread's CPU clock that `packets` packets take, the call included. `first`
    /// is the number of the first packet: equal numbers are equal traffic.
    pub(super) fn time(&mut self, half: Half, first: u32, packets: u32) -> Result<Duration> {
        let name = match (half, self.case.flows) {
            (Half::Floor, 1) => "orb8_empty",
            (Half::Subject, 1) => "orb8_ingress",
            (Half::Floor, _) => "orb8_mix_empty",
            (Half::Subject, _) => "orb8_mix",
        };
        let context = context(first, self.case.flows | self.case.in_a_row << 24);
        let program = program_mut(&mut self.ebpf, name)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.packet);
        options.ctx_in = Some(&context);
        options.repeat = packets;
        let before = clock_gettime(ClockId::ThreadCPUTime);
        program.test_run(options).with_context(|| format!("a test run of {name}"))?;
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
        let program: &mut SchedClassifier = program.try_into()?;
        program.load().with_context(|| format!("the kernel refused {name}"))?;
    }
    let overflow = ebpf.map_mut("OVERFLOW").context("no map OVERFLOW")?;
    maps::HashMap::<_, [u32; 2], [u64; 3]>::try_from(overflow)?.insert(OVERFLOW_KEY, [0; 3], 0)?;
    Ok(ebpf)
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
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
