//! Where the probe's programs are attached: each by the best kind that the kernel has.

use orb8_probes::tracepoint::{self, Kind, Version};

use crate::probe_loader::{LoadError, Object, Skips};

/// A tracepoint, and the probe's program of each kind for it.
pub(super) struct Hook {
    category: &'static str,
    at: &'static str,
    typed: Option<&'static str>,
    raw: &'static str,
    classic: &'static str,
}

/// A call begins.
pub(super) const ENTER: Hook = Hook {
    category: "raw_syscalls",
    at: "sys_enter",
    typed: Some("orb8_sys_enter"),
    raw: "orb8_sys_enter_raw",
    classic: "orb8_sys_enter_tp",
};

/// A call ends.
pub(super) const EXIT: Hook = Hook {
    category: "raw_syscalls",
    at: "sys_exit",
    typed: Some("orb8_sys_exit"),
    raw: "orb8_sys_exit_raw",
    classic: "orb8_sys_exit_tp",
};

/// A program has been started.
pub(super) const STARTED: Hook = Hook {
    category: "sched",
    at: "sched_process_exec",
    typed: None,
    raw: "orb8_process_exec",
    classic: "orb8_process_exec_tp",
};

/// A thread ends.
pub(super) const ENDED: Hook = Hook {
    category: "sched",
    at: "sched_process_exit",
    typed: None,
    raw: "orb8_process_exit",
    classic: "orb8_process_exit_tp",
};

/// How a program was attached.
pub(super) struct Attached {
    /// What the kernel did not run it for.
    pub(super) skips: Skips,
    /// Why that may be much.
    pub(super) lossy: Option<String>,
}

/// By which kinds of program, the best one first.
pub(super) struct Kinds {
    kernel: Version,
    /// This one alone.
    wanted: Option<Kind>,
}

impl Kinds {
    pub(super) const fn new(kernel: Version, wanted: Option<Kind>) -> Self {
        Self { kernel, wanted }
    }

    fn of(&self, hook: &Hook) -> impl Iterator<Item = Kind> {
        let wanted = match self.wanted {
            // What has no types gets the next thing to it.
            Some(Kind::Typed) if hook.typed.is_none() => Some(Kind::Raw),
            wanted => wanted,
        };
        let best = if wanted.is_none() { tracepoint::kinds(self.kernel) } else { &[] };
        wanted.into_iter().chain(best.iter().copied())
    }
}

/// Attaches, for as long as the object lives. What is told of a failure is why the best kind could not
/// be.
pub(super) fn attach(
    object: &mut Object,
    hook: &Hook,
    kinds: &Kinds,
) -> Result<Attached, LoadError> {
    let mut refused = None;
    for kind in kinds.of(hook) {
        let name = match kind {
            Kind::Typed => hook.typed,
            Kind::Raw => Some(hook.raw),
            Kind::Classic => Some(hook.classic),
        };
        let Some(name) = name else { continue };
        let attached = match kind {
            Kind::Typed => object.attach_btf_tracepoint(name, hook.at),
            Kind::Raw => object.attach_raw_tracepoint(name, hook.at),
            Kind::Classic => object.attach_tracepoint(name, hook.category, hook.at),
        };
        match attached {
            Ok(()) => {
                let skips = object.skips(name)?;
                let lossy = tracepoint::is_preemptible(kind, kinds.kernel);
                return Ok(Attached { skips, lossy: refused.filter(|_| lossy).map(is_lossy) });
            }
            Err(why) => {
                tracing::debug!("{} by {kind:?}: {why}", hook.at);
                refused.get_or_insert(why);
            }
        }
    }
    Err(refused.unwrap_or_else(|| LoadError::Absent(format!("program for {}", hook.at))))
}

fn is_lossy(why: LoadError) -> String {
    format!("calls go by uncounted, and are counted as lost, where threads are preempted: {why}")
}
