//! Loads a probe's object and hands out its parts. Nothing is pinned: maps and programs live as
//! long as the process, and so do links of the kinds that allow it.
#![expect(unsafe_code, reason = "bpf(2) is called with raw pointers, in `map`")]

mod cgroup_skb;
mod classifier;
pub mod map;
mod run;

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Btf, BtfError, Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData, MapError, RingBuf},
    programs::{BtfTracePoint, Program, ProgramError, RawTracePoint, SchedClassifier, TracePoint},
};

pub use cgroup_skb::CgroupAttachment;
pub use classifier::{Attachment, Hook, How};
pub use map::RawMap;
pub use run::Runner;

/// Why a probe could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The binary has no probes.
    #[error(transparent)]
    Missing(#[from] orb8_probes::Missing),
    /// The kernel refused the object or one of its maps.
    #[error("{}", explain(.0))]
    Object(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("program {name}: {}", explain_program(.error))]
    Program {
        /// Its name in the object.
        name: String,
        /// The kernel's answer.
        error: ProgramError,
    },
    /// It cannot be known which kernel this is.
    #[error("the kernel's version: {0}")]
    Kernel(io::Error),
    /// The kernel's types cannot be read.
    #[error("kernel type information (BTF): {error}")]
    Types {
        /// What is wrong with them.
        error: BtfError,
    },
    /// A map is not what the agent expects.
    #[error("map {name}: {error}")]
    Map {
        /// Its name in the object.
        name: String,
        /// What is wrong with it.
        error: MapError,
    },
    /// A system call on a map failed.
    #[error("map {name}: {error}")]
    MapIo {
        /// Its name in the object.
        name: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A cgroup's directory cannot be opened.
    #[error("cgroup {}: {error}", .dir.display())]
    Cgroup {
        /// The directory.
        dir: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The object lacks something that the agent needs: they are of different builds.
    #[error("the probe object has no {0}: agent and probes are of different builds")]
    Absent(String),
}

/// The shortest packet that test runs take: an Ethernet header.
const EMPTY_PACKET: [u8; 14] = [0; 14];

/// A loaded object.
pub struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads `elf`; `sizes` sets the `max_entries` of maps (bytes, for a ring), `globals` the probe's
    /// read-only variables.
    pub fn load(
        elf: &[u8],
        sizes: &[(&'static str, u32)],
        globals: &[(&'static str, u32)],
    ) -> Result<Self, LoadError> {
        let mut loader = EbpfLoader::new();
        // The objects have no CO-RE relocations, and the kernel's types take tens of megabytes to parse.
        loader.btf(None);
        // The verifier's whole log costs a megabyte and is asked for again only on failure.
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for (name, entries) in sizes {
            loader.map_max_entries(name, *entries);
        }
        for (name, value) in globals {
            loader.override_global(name, value, true);
        }
        Ok(Self { ebpf: loader.load(elf)? })
    }

    /// The map `name`, for reading and writing by system call.
    pub fn map(&mut self, name: &str) -> Result<RawMap, LoadError> {
        let map = self.ebpf.map(name).ok_or_else(|| LoadError::Absent(format!("map {name}")))?;
        let data = map_data(map).ok_or_else(|| LoadError::Absent(format!("plain map {name}")))?;
        let io = |error| LoadError::MapIo { name: name.into(), error };
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(io)?;
        let info = data.info().map_err(|error| LoadError::Map { name: name.into(), error })?;
        RawMap::new(
            name,
            fd,
            map::Shape {
                key_size: info.key_size() as usize,
                value_size: info.value_size() as usize,
                max_entries: info.max_entries(),
            },
        )
        .map_err(io)
    }

    /// The ring `name`.
    pub fn ring(&mut self, name: &str) -> Result<RingBuf<MapData>, LoadError> {
        let map = self.ebpf.take_map(name);
        let map = map.ok_or_else(|| LoadError::Absent(format!("ring {name}")))?;
        RingBuf::try_from(map).map_err(|error| LoadError::Map { name: name.into(), error })
    }

    /// The classifier `name`, loaded into the kernel at the first call.
    pub fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, LoadError> {
        let program = self.ebpf.program_mut(name);
        let program = program.ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
        let failed = |error| LoadError::Program { name: name.into(), error };
        let classifier: &mut SchedClassifier = program.try_into().map_err(failed)?;
        if classifier.fd().is_err() {
            classifier.load().map_err(failed)?;
        }
        Ok(classifier)
    }

    /// Loads the program `name` and attaches it to a raw tracepoint, for as long as this object lives.
    pub fn attach_raw_tracepoint(&mut self, name: &str, at: &str) -> Result<(), LoadError> {
        let program: &mut RawTracePoint = self.program(name)?;
        let failed = |error| LoadError::Program { name: name.into(), error };
        program.load().map_err(failed)?;
        program.attach(at).map(drop).map_err(failed)
    }
}

impl Object {
    /// Loads the program `name` and attaches it to a tracepoint whose arguments the verifier knows by
    /// the kernel's types, for as long as this object lives.
    pub fn attach_btf_tracepoint(&mut self, name: &str, at: &str) -> Result<(), LoadError> {
        let types = Btf::from_sys_fs().map_err(|error| LoadError::Types { error })?;
        let program: &mut BtfTracePoint = self.program(name)?;
        let failed = |error| LoadError::Program { name: name.into(), error };
        program.load(at, &types).map_err(failed)?;
        program.attach().map(drop).map_err(failed)
    }

    /// Loads the program `name` and attaches it to a tracepoint by tracefs, for as long as this object
    /// lives.
    pub fn attach_tracepoint(
        &mut self,
        name: &str,
        category: &str,
        at: &str,
    ) -> Result<(), LoadError> {
        let program: &mut TracePoint = self.program(name)?;
        let failed = |error| LoadError::Program { name: name.into(), error };
        program.load().map_err(failed)?;
        program.attach(category, at).map(drop).map_err(failed)
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, LoadError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name);
        let program = program.ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
        program.try_into().map_err(|error| LoadError::Program { name: name.into(), error })
    }

    /// What the kernel did not run a loaded program for, from now on and for as long as the answer is
    /// kept: the program is, too, but it is not attached by that.
    pub fn skips(&self, name: &str) -> Result<Skips, LoadError> {
        let program = self.ebpf.program(name);
        let program = program.ok_or_else(|| LoadError::Absent(format!("program {name}")))?;
        let failed = |error| LoadError::Program { name: name.into(), error };
        let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
        Ok(Skips(fd.map_err(|error| failed(error.into()))?))
    }
}

/// A program, as the kernel skips it: what comes while it runs on the same CPU already.
pub struct Skips(OwnedFd);

impl Skips {
    /// How often that was; None where the kernel does not say (before Linux 5.12).
    pub fn count(&self) -> Option<u64> {
        let fd = self.0.as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
        let line = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
        line.trim().parse().ok()
    }
}

/// Gives back to the system what parsing objects and the kernel's types took for a moment: tens of
/// megabytes that the allocator would keep for later.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::LruHashMap(data) => Some(data),
        _ => None,
    }
}

fn explain(error: &EbpfError) -> String {
    format!("the probe object could not be loaded: {}{}", chain(error), hint(error))
}

fn explain_program(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        return format!("{io_error}{}; the verifier said: {}", hint(error), tail.join(" | "));
    }
    format!("{}{}", chain(error), hint(error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What a user can do about it, where that is known.
fn hint(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return match io.raw_os_error() {
                Some(libc::EPERM) => {
                    " (needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or root; in a container also \
                     a seccomp profile that allows bpf(2))"
                }
                Some(libc::ENOSYS) => " (this kernel has no bpf(2); orb8 needs Linux 5.8 or later)",
                _ => "",
            };
        }
        cause = error.source();
    }
    ""
}
