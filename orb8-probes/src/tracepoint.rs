//! Which kinds of program a tracepoint of the running kernel can have, and which is the best one.
//!
//! The kernel runs a program on one CPU once at a time, and skips and counts what comes meanwhile
//! (`recursion_misses`). Until Linux 6.19 nothing came: tracepoints ran with preemption off. Since 7.0
//! a typed or raw program can be preempted, and then every thread that has its turn on that CPU until
//! the first one goes on is skipped, for milliseconds. Only classic programs still run with preemption
//! off (`perf_trace_*` in include/trace/perf.h), at the price of the perf subsystem. What they miss is
//! what threads do that preempt somebody amid a `bpf(2)` call on a map (`bpf_prog_active`).

use std::{fs, io};

/// A kind of program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The verifier knows the arguments' types (`BPF_TRACE_RAW_TP`, "`tp_btf`"). It wants BTF and, for
    /// what the programs of orb8 ask, Linux 5.11.
    Typed,
    /// It does not (`BPF_PROG_TYPE_RAW_TRACEPOINT`).
    Raw,
    /// By the perf subsystem (`BPF_PROG_TYPE_TRACEPOINT`). It wants tracefs.
    Classic,
}

/// Major and minor version of a kernel.
pub type Version = (u32, u32);

/// The first kernel that preempts programs on tracepoints.
const PREEMPTS: Version = (7, 0);
/// The first one with `bpf_get_current_task_btf`.
const TYPED: Version = (5, 11);
/// The first one with `bpf_task_pt_regs`, too.
const TYPED_TASK: Version = (5, 15);

/// The version of the running kernel.
pub fn kernel() -> io::Result<Version> {
    const RELEASE: &str = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(RELEASE)?;
    version(&release).ok_or_else(|| {
        io::Error::other(format!("{RELEASE}: no version of Linux in {:?}", release.trim()))
    })
}

fn version(release: &str) -> Option<Version> {
    let mut numbers = release.trim().splitn(3, '.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?;
    let end = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..end].parse().ok()?))
}

/// What the programs of system calls can be of on this kernel, the best one first.
pub fn kinds(kernel: Version) -> &'static [Kind] {
    if preempts(kernel) {
        &[Kind::Classic, Kind::Typed, Kind::Raw]
    } else if kernel >= TYPED {
        &[Kind::Typed, Kind::Raw, Kind::Classic]
    } else {
        &[Kind::Raw, Kind::Classic]
    }
}

/// Whether this kernel preempts programs on tracepoints, of those kinds that do not prevent it.
pub fn preempts(kernel: Version) -> bool {
    kernel >= PREEMPTS
}

/// Whether a program of this kind can be preempted, so that calls go by uncounted.
pub fn is_preemptible(kind: Kind, kernel: Version) -> bool {
    kind != Kind::Classic && preempts(kernel)
}

/// What the globals of [`SYSCALL_PROBE`](crate::SYSCALL_PROBE) are by the kernel's version.
pub fn globals(kernel: Version) -> [(&'static str, u32); 1] {
    [("TYPED_TASK", u32::from(kernel >= TYPED_TASK))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_have_their_version() {
        let expected = [
            ("5.10.0-46-cloud-amd64\n", Some((5, 10))),
            ("6.8.0-1021-gke", Some((6, 8))),
            ("7.2.13+deb14-cloud-amd64", Some((7, 2))),
            ("6.12.0-55.el10.x86_64", Some((6, 12))),
            ("5.15.167.4-microsoft-standard-WSL2", Some((5, 15))),
            ("7.0-rc3", Some((7, 0))),
            ("7", None),
            ("", None),
            ("a.b", None),
        ];
        for (release, version_of) in expected {
            assert_eq!(version(release), version_of, "{release}");
        }
        assert!(kernel().unwrap() >= (5, 8));
    }

    #[test]
    fn the_best_kind_is_exact_before_it_is_cheap() {
        assert_eq!(kinds((5, 10))[0], Kind::Raw);
        assert_eq!(kinds((5, 11))[0], Kind::Typed);
        assert_eq!(kinds((6, 19))[0], Kind::Typed);
        assert_eq!(kinds((7, 0))[0], Kind::Classic);
        for kernel in [(5, 8), (5, 11), (6, 19), (7, 0), (8, 1)] {
            assert!(!is_preemptible(kinds(kernel)[0], kernel));
        }
        assert!(is_preemptible(Kind::Raw, (7, 0)) && !is_preemptible(Kind::Typed, (6, 19)));
    }

    #[test]
    fn programs_ask_for_what_the_kernel_has() {
        assert_eq!(globals((5, 14)), [("TYPED_TASK", 0)]);
        assert_eq!(globals((5, 15)), [("TYPED_TASK", 1)]);
    }
}
