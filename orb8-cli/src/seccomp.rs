//! From what containers were seen to call to a seccomp profile, and whether it can be trusted.
//!
//! The form is that of `linux.seccomp` in the OCI runtime specification, which Kubernetes takes as a
//! `Localhost` profile and Docker as `--security-opt seccomp=FILE`.

use std::{collections::BTreeSet, time::Duration};

use orb8_proto::SyscallProfile;
use serde::Serialize;

/// Calls that are allowed whether they were seen or not, because when they are made says nothing
/// about the program: the kernel makes it call them (`rt_sigreturn` after a signal, `restart_syscall`
/// after a stop), or it does at its end, which may not have been seen.
const AT_ANY_TIME: [&str; 5] =
    ["exit", "exit_group", "restart_syscall", "rt_sigreturn", "sched_yield"];

/// What runc and crun call between loading the filter and starting the program, their language's
/// runtime included. They have been seen only if the container was watched from its start on.
const OF_RUNTIMES: [&str; 36] = [
    "brk",
    "capget",
    "capset",
    "chdir",
    "clone",
    "close",
    "close_range",
    "epoll_ctl",
    "epoll_pwait",
    "execve",
    "faccessat2",
    "fchown",
    "fcntl",
    "fstat",
    "fstatfs",
    "futex",
    "getdents64",
    "getpid",
    "getppid",
    "gettid",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "nanosleep",
    "newfstatat",
    "openat",
    "prctl",
    "read",
    "rt_sigaction",
    "rt_sigprocmask",
    "setgid",
    "setgroups",
    "setuid",
    "tgkill",
    "write",
];

/// A profile, and what speaks against it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Advice {
    /// Whose, as `prod/web (container app)`.
    pub of: String,
    architecture: String,
    calls: BTreeSet<String>,
    seen: usize,
    instances: usize,
    watched: Duration,
    /// Why something may be missing. None: it can be trusted.
    pub doubts: Vec<String>,
}

/// Puts together what the containers called, which must be of one kind.
///
/// # Errors
/// When there is none, or they are of several kinds: with what there is.
pub(crate) fn advise(all: &[SyscallProfile], min_time: Duration) -> Result<Advice, String> {
    let named: Vec<SyscallProfile> = all.iter().filter(|p| !is_sandbox(p)).cloned().collect();
    let profiles: &[SyscallProfile] = if named.is_empty() { all } else { &named };
    let Some(first) = profiles.first() else {
        return Err("no container with such a name has called anything on this node".into());
    };
    let kinds: BTreeSet<String> = profiles.iter().map(kind).collect();
    if kinds.len() > 1 {
        let kinds: Vec<String> = kinds.into_iter().collect();
        return Err(format!(
            "a profile is for one container of one workload; these match: {}. Say more of --pod, \
             --namespace or --container",
            kinds.join(", ")
        ));
    }
    let of = kind(first);
    let architecture = first.architecture.clone();
    let seen: BTreeSet<&String> = profiles.iter().flat_map(|p| &p.syscalls).collect();
    let named = seen.iter().filter(|name| !["compat", "other"].contains(&name.as_str()));
    let mut calls: BTreeSet<String> = named.map(ToString::to_string).collect();
    let seen = calls.len();
    calls.extend(AT_ANY_TIME.iter().chain(&OF_RUNTIMES).map(ToString::to_string));
    let whole = profiles.iter().filter(|p| p.since_start);
    let watched = whole.map(watched).max().unwrap_or_default();
    Ok(Advice {
        doubts: doubts(profiles, watched, min_time),
        of,
        architecture,
        calls,
        seen,
        instances: profiles.len(),
        watched,
    })
}

/// A pod's sandbox, which only waits: Kubernetes has no name for it, and runtimes call it so.
fn is_sandbox(profile: &SyscallProfile) -> bool {
    let SyscallProfile { container, container_id, .. } = profile;
    container == "POD" || !container_id.is_empty() && container_id.starts_with(container.as_str())
}

fn kind(profile: &SyscallProfile) -> String {
    let SyscallProfile { namespace, pod_name, container, workload, .. } = profile;
    let name = if workload.is_empty() { pod_name } else { workload };
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("{namespace}{slash}{name} (container {container})")
}

fn watched(profile: &SyscallProfile) -> Duration {
    let ns = profile.observed_until_ns.saturating_sub(profile.observed_from_ns);
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

fn doubts(profiles: &[SyscallProfile], watched: Duration, min_time: Duration) -> Vec<String> {
    let mut doubts = Vec::new();
    if !profiles.iter().any(|profile| profile.since_start) {
        doubts.push(
            "no instance was watched from its first call on: what programs call only while they \
             start may be missing; restart one while the agent runs"
                .into(),
        );
    } else if watched < min_time {
        doubts.push(format!(
            "watched for {} from a start on, expected at least {} (--min-time)",
            seconds(watched),
            seconds(min_time)
        ));
    }
    let lost: BTreeSet<&String> =
        profiles.iter().filter(|p| p.since_start).flat_map(|p| &p.gaps).collect();
    doubts.extend(lost.into_iter().cloned());
    doubts
}

/// For people, without fractions of seconds.
fn seconds(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile<'a> {
    /// Runtimes leave out what they do not know.
    #[serde(rename = "_comment")]
    comment: String,
    default_action: &'static str,
    architectures: &'a [&'static str],
    syscalls: [Rule<'a>; 1],
}

#[derive(Serialize)]
struct Rule<'a> {
    names: &'a BTreeSet<String>,
    action: &'static str,
}

impl Advice {
    /// The profile, as JSON.
    pub(crate) fn profile(&self) -> String {
        let mut comment = format!("orb8, for {}: {}", self.of, self.summary());
        if !self.doubts.is_empty() {
            comment += &format!(". FORCED, do not trust it: {}", self.doubts.join("; "));
        }
        let profile = Profile {
            comment,
            default_action: "SCMP_ACT_ERRNO",
            architectures: architectures(&self.architecture),
            syscalls: [Rule { names: &self.calls, action: "SCMP_ACT_ALLOW" }],
        };
        // It holds texts only.
        serde_json::to_string_pretty(&profile).unwrap_or_default()
    }

    /// What it is made of.
    pub(crate) fn summary(&self) -> String {
        let (seen, all) = (self.seen, self.calls.len());
        format!(
            "{seen} calls seen of {} containers in up to {}, {} more allowed for runtimes and for \
             what may happen at any time",
            self.instances,
            seconds(self.watched),
            all - seen
        )
    }
}

/// Those that the kernel runs beside it, so that a profile says the same about each; a call of an
/// architecture that is not listed ends the process.
fn architectures(machine: &str) -> &'static [&'static str] {
    match machine {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(pod: &str, calls: &[&str]) -> SyscallProfile {
        SyscallProfile {
            namespace: "shop".into(),
            pod_name: pod.into(),
            container: "app".into(),
            workload: "Deployment/web".into(),
            architecture: "x86_64".into(),
            syscalls: calls.iter().map(ToString::to_string).collect(),
            observed_until_ns: 900_000_000_000,
            since_start: true,
            ..SyscallProfile::default()
        }
    }

    const TEN_MINUTES: Duration = Duration::from_secs(600);

    #[test]
    fn what_instances_of_one_workload_call_is_put_together() {
        let both = [profile("web-1", &["openat", "epoll_wait"]), profile("web-2", &["sendfile"])];
        let advice = advise(&both, TEN_MINUTES).unwrap();
        assert_eq!((&advice.doubts, advice.seen), (&vec![], 3));
        let json: serde_json::Value = serde_json::from_str(&advice.profile()).unwrap();
        assert_eq!(json["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(json["architectures"][0], "SCMP_ARCH_X86_64");
        let names = json["syscalls"][0]["names"].as_array().unwrap();
        for call in ["sendfile", "epoll_wait", "exit_group", "rt_sigreturn", "execve"] {
            assert!(names.iter().any(|name| name == call), "{call}");
        }
        assert!(names.iter().all(|name| name != "ptrace" && name != "mount"));
        assert!(!json["_comment"].as_str().unwrap().contains("FORCED"));
    }

    #[test]
    fn each_reason_to_doubt_is_told_and_written_into_the_profile() {
        let good = profile("web-1", &["openat"]);
        let late = SyscallProfile { since_start: false, ..good.clone() };
        let short = SyscallProfile { observed_until_ns: 60_000_000_000, ..good.clone() };
        let gaps = SyscallProfile { gaps: vec!["3 calls were nobody's".into()], ..good.clone() };
        for (profiles, expected) in [
            (vec![good.clone(), late.clone()], ""),
            (vec![late], "from its first call on"),
            (vec![short], "watched for 1m from a start on, expected at least 10m"),
            (vec![good, gaps], "3 calls were nobody's"),
        ] {
            let advice = advise(&profiles, TEN_MINUTES).unwrap();
            assert_eq!(advice.doubts.is_empty(), expected.is_empty(), "{advice:?}");
            assert!(advice.doubts.join(" ").contains(expected), "{advice:?}");
            assert_eq!(advice.profile().contains("FORCED"), !expected.is_empty());
        }
    }

    #[test]
    fn containers_of_several_kinds_are_an_error_that_lists_them() {
        let other = SyscallProfile { container: "proxy".into(), ..profile("web-1", &[]) };
        let error = advise(&[profile("web-1", &[]), other], TEN_MINUTES).unwrap_err();
        assert!(
            error.contains("(container app)") && error.contains("(container proxy)"),
            "{error}"
        );
        assert!(advise(&[], TEN_MINUTES).is_err());
        let sandbox = SyscallProfile {
            container: "17f573eb9dc3".into(),
            container_id: "17f573eb9dc3aa".into(),
            ..profile("web-1", &["pause"])
        };
        let advice = advise(&[profile("web-1", &[]), sandbox], TEN_MINUTES).unwrap();
        assert!(!advice.calls.contains("pause"), "{advice:?}");
    }

    #[test]
    fn numbers_without_a_name_are_not_written_as_names() {
        let advice = advise(&[profile("a", &["compat", "other", "read"])], TEN_MINUTES).unwrap();
        assert!(!advice.calls.contains("compat") && !advice.calls.contains("other"));
    }
}
