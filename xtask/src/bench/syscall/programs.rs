//! The syscall probe, loaded as the agent loads it, and attached for a turn.

use anyhow::{Context, Result, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, PerCpuArray},
    programs::{
        Program, ProgramInfo, TracePoint, raw_trace_point::RawTracePointLinkId,
        tp_btf::BtfTracePointLinkId, trace_point::TracePointLinkId,
    },
};
use orb8_common::syscall::{NUMBERS, SyscallSettings, told};
use orb8_probes::tracepoint;
use zerocopy::IntoBytes as _;

use super::{super::probe::Size, Subject};

/// Of the calls that are measured, in the tables of this architecture.
const GETPPID: u32 = if cfg!(target_arch = "x86_64") { 110 } else { 173 };

/// Programs that the agent attaches.
const PROGRAMS: [&str; 10] = [
    "orb8_sys_enter",
    "orb8_sys_enter_raw",
    "orb8_sys_enter_tp",
    "orb8_process_exec",
    "orb8_process_exec_tp",
    "orb8_sys_exit",
    "orb8_sys_exit_raw",
    "orb8_sys_exit_tp",
    "orb8_process_exit",
    "orb8_process_exit_tp",
];

pub(super) struct Programs {
    plain: Ebpf,
    /// Loaded for ends of calls as well.
    ends: Ebpf,
}

/// What is attached for a turn.
pub(super) struct Attached {
    subject: Subject,
    links: Vec<(&'static str, Link)>,
}

enum Link {
    Typed(BtfTracePointLinkId),
    Raw(RawTracePointLinkId),
    Classic(TracePointLinkId),
}

impl Attached {
    /// Whether orb8 counts meanwhile.
    pub(super) fn counts(&self) -> bool {
        !matches!(self.subject, Subject::Bare | Subject::Empty | Subject::EmptyClassic)
    }
}

/// Has the call that is measured told so.
fn tell(ebpf: &mut Ebpf, how: u32) -> Result<()> {
    let mut told = [told::NEVER; NUMBERS];
    told[GETPPID as usize] = how;
    let settings =
        SyscallSettings { generation: 1, sample_every: 100, execve: 0, reserved: 0, told };
    let bytes: [u8; size_of::<SyscallSettings>()] =
        settings.as_bytes().try_into().context("settings of another size")?;
    let map = ebpf.map_mut("SYSCALL_SETTINGS").context("no map SYSCALL_SETTINGS")?;
    Ok(Array::<_, [u8; size_of::<SyscallSettings>()]>::try_from(map)?.set(0, bytes, 0)?)
}

impl Programs {
    /// Loads everything; these cgroups are given slots.
    pub(super) fn load(cgroups: &[u64]) -> Result<Self> {
        let mut programs = Self { plain: load(0)?, ends: load(1)? };
        for ebpf in [&mut programs.plain, &mut programs.ends] {
            let slots = ebpf.map_mut("SYSCALL_SLOTS").context("no map SYSCALL_SLOTS")?;
            let mut slots = HashMap::<_, u64, u32>::try_from(slots)?;
            for (slot, cgroup) in (1..).zip(cgroups) {
                slots.insert(cgroup, slot, 0)?;
            }
            tell(ebpf, told::NEVER)?;
            // Nobody listens.
            let listeners = ebpf.map_mut("SETTINGS").context("no map SETTINGS")?;
            Array::<_, u32>::try_from(listeners)?.set(0, orb8_common::pods::events::NONE, 0)?;
        }
        Ok(programs)
    }

    pub(super) fn attach(&mut self, subject: Subject) -> Result<Attached> {
        let names: &[_] = match subject {
            Subject::Bare | Subject::Peer => &[],
            Subject::Empty => &["orb8_sys_enter_empty"],
            Subject::EmptyClassic => &["orb8_sys_enter_empty_tp"],
            Subject::Count | Subject::Sampled => &["orb8_sys_enter"],
            Subject::Classic => &["orb8_sys_enter_tp"],
            Subject::Ends => &["orb8_process_exit", "orb8_sys_exit", "orb8_sys_enter"],
        };
        let how = if subject == Subject::Sampled { told::SAMPLED } else { told::NEVER };
        let ebpf = self.of(subject);
        tell(ebpf, how)?;
        let mut links = Vec::new();
        for name in names {
            let link = match program(ebpf, name)? {
                Program::BtfTracePoint(program) => Link::Typed(program.attach()?),
                Program::RawTracePoint(program) => Link::Raw(program.attach("sched_process_exit")?),
                Program::TracePoint(program) => {
                    Link::Classic(program.attach("raw_syscalls", "sys_enter")?)
                }
                _ => anyhow::bail!("{name} is of no kind that sees calls"),
            };
            links.push((*name, link));
        }
        Ok(Attached { subject, links })
    }

    pub(super) fn detach(&mut self, attached: Attached) -> Result<()> {
        let ebpf = self.of(attached.subject);
        for (name, link) in attached.links {
            match (program(ebpf, name)?, link) {
                (Program::BtfTracePoint(program), Link::Typed(link)) => program.detach(link)?,
                (Program::RawTracePoint(program), Link::Raw(link)) => program.detach(link)?,
                (Program::TracePoint(program), Link::Classic(link)) => program.detach(link)?,
                _ => anyhow::bail!("{name} was attached as another kind"),
            }
        }
        Ok(())
    }

    fn of(&mut self, subject: Subject) -> &mut Ebpf {
        if subject == Subject::Ends { &mut self.ends } else { &mut self.plain }
    }

    /// Sees to it that what was timed was counted, all of it.
    pub(super) fn check(&self, made: u64) -> Result<()> {
        let mut counted = 0;
        for ebpf in [&self.plain, &self.ends] {
            let map = ebpf.map("SYSCALL_COUNTS").context("no map SYSCALL_COUNTS")?;
            let slots: PerCpuArray<_, [u32; NUMBERS]> = map.try_into()?;
            for slot in [1, 2] {
                let cpus = slots.get(&slot, 0)?;
                counted += cpus.iter().map(|cpu| u64::from(cpu[GETPPID as usize])).sum::<u64>();
            }
        }
        ensure!(counted == made, "{made} calls were made, {counted} counted");
        Ok(())
    }

    /// The sizes of all programs.
    pub(super) fn sizes(&mut self) -> Result<Vec<Size>> {
        let mut sizes = Vec::new();
        for (ebpf, with) in [(&mut self.plain, ""), (&mut self.ends, "ends watched")] {
            for name in PROGRAMS {
                if !with.is_empty() && !name.starts_with("orb8_sys_enter") {
                    continue;
                }
                let info = info(program(ebpf, name)?)?;
                sizes.push(Size {
                    program: name,
                    with,
                    verified: info.verified_instruction_count().unwrap_or_default(),
                    translated: info.size_translated().unwrap_or_default(),
                    jited: info.size_jitted(),
                });
            }
        }
        Ok(sizes)
    }
}

fn load(watch_ends: u32) -> Result<Ebpf> {
    let offsets = orb8_probes::btf::offsets(orb8_probes::SYSCALL_MEMBERS)?;
    let mut loader = EbpfLoader::new();
    for (name, offset) in &offsets {
        loader.override_global(name, offset, true);
    }
    let by_version = tracepoint::globals(tracepoint::kernel()?);
    for (name, value) in &by_version {
        loader.override_global(name, value, true);
    }
    loader.override_global("WATCH_ENDS", &watch_ends, true);
    let mut ebpf = loader
        .load(orb8_probes::SYSCALL_PROBE?)
        .context("cannot load the syscall probe (needs root, CAP_BPF at least)")?;
    let btf = Btf::from_sys_fs()?;
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::BtfTracePoint(program) => {
                let hook = if name.contains("exit") { "sys_exit" } else { "sys_enter" };
                program.load(hook, &btf)
            }
            Program::RawTracePoint(program) => program.load(),
            Program::TracePoint(program) => program.load(),
            _ => anyhow::bail!("{name} is of no kind that sees calls"),
        };
        loaded.with_context(|| format!("the kernel refused {name}"))?;
    }
    Ok(ebpf)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    ebpf.program_mut(name).with_context(|| format!("no program {name}"))
}

fn info(program: &mut Program) -> Result<ProgramInfo> {
    Ok(match program {
        Program::BtfTracePoint(program) => program.info()?,
        Program::RawTracePoint(program) => program.info()?,
        Program::TracePoint(program) => TracePoint::info(program)?,
        _ => anyhow::bail!("a program of no kind that sees calls"),
    })
}
