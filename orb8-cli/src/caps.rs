//! The capabilities that standalone mode needs, checked before anything is loaded.

use thiserror::Error;

/// A Linux capability that orb8 uses, with its bit in the masks of `/proc/self/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capability {
    name: &'static str,
    bit: u32,
    /// What orb8 needs it for.
    purpose: &'static str,
}

const NET_ADMIN: Capability =
    Capability { name: "CAP_NET_ADMIN", bit: 12, purpose: "to attach to network interfaces" };
const BPF: Capability = Capability { name: "CAP_BPF", bit: 39, purpose: "to load programs" };
const PERFMON: Capability =
    Capability { name: "CAP_PERFMON", bit: 38, purpose: "for programs that read kernel memory" };
const SYS_PTRACE: Capability = Capability {
    name: "CAP_SYS_PTRACE",
    bit: 19,
    purpose: "to see which network namespace a process is in",
};
/// Stands in for BPF and PERFMON; kernels before 5.8 know nothing else.
const SYS_ADMIN_BIT: u32 = 21;

/// What is missing.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum CapsError {
    #[error("{}", missing_message(.0))]
    Missing(Vec<&'static str>),
    #[error("/proc/self/status has no readable CapEff line: expected 'CapEff:' and a hex number")]
    Unreadable,
}

/// Checks a `/proc/<pid>/status`. Returns warnings: things that work only in part.
///
/// # Errors
/// When something is missing without which nothing works, or the text is not understood.
pub(crate) fn check(status: &str) -> Result<Vec<String>, CapsError> {
    let effective = effective(status).ok_or(CapsError::Unreadable)?;
    let has = |bit: u32| effective & (1 << bit) != 0;
    let missing: Vec<_> = [BPF, PERFMON, NET_ADMIN]
        .into_iter()
        .filter(|needed| {
            let stands_in = *needed != NET_ADMIN && has(SYS_ADMIN_BIT);
            !has(needed.bit) && !stands_in
        })
        .map(|capability| capability.name)
        .collect();
    if !missing.is_empty() {
        return Err(CapsError::Missing(missing));
    }
    if has(SYS_PTRACE.bit) {
        return Ok(Vec::new());
    }
    let Capability { name, purpose, .. } = SYS_PTRACE;
    Ok(vec![format!(
        "{name} is missing ({purpose}): traffic of other users' pods may stay unnamed"
    )])
}

/// The effective set of `CapEff:`, one bit per capability.
fn effective(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

fn missing_message(missing: &[&str]) -> String {
    let mut message = String::from("standalone mode loads eBPF programs, and this process lacks:");
    for capability in [BPF, PERFMON, NET_ADMIN] {
        if missing.contains(&capability.name) {
            message.push_str(&format!("\n{} ({})", capability.name, capability.purpose));
        }
    }
    message.push_str(
        "\nRun it as root: sudo orb8 …\nor grant the capabilities once: sudo setcap \
         cap_bpf,cap_perfmon,cap_net_admin,cap_sys_ptrace,cap_dac_read_search+ep \
         $(command -v orb8)\nor ask a running agent: orb8 --server HOST:PORT …",
    );
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status(mask: u64) -> String {
        format!("Name:\torb8\nCapPrm:\t000001ffffffffff\nCapEff:\t{mask:016x}\nSeccomp:\t0\n")
    }

    fn mask(bits: &[u32]) -> u64 {
        bits.iter().map(|bit| 1u64 << bit).sum()
    }

    #[test]
    fn root_has_all_and_nobody_has_none() {
        assert_eq!(check(&status(0x1ff_ffff_ffff)), Ok(vec![]));
        let Err(CapsError::Missing(missing)) = check(&status(0)) else { panic!("nobody may load") };
        assert_eq!(missing, ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
    }

    #[test]
    fn exactly_what_is_missing_is_listed() {
        let error = check(&status(mask(&[BPF.bit, NET_ADMIN.bit]))).unwrap_err();
        assert_eq!(error, CapsError::Missing(vec!["CAP_PERFMON"]));
        let text = error.to_string();
        assert!(text.contains("CAP_PERFMON") && !text.contains("CAP_NET_ADMIN ("), "{text}");
        assert!(text.contains("sudo orb8") && text.contains("setcap"), "{text}");
    }

    #[test]
    fn sys_admin_stands_in_for_bpf_and_perfmon_but_not_for_net_admin() {
        let old_root = mask(&[SYS_ADMIN_BIT, NET_ADMIN.bit, SYS_PTRACE.bit]);
        assert_eq!(check(&status(old_root)), Ok(vec![]));
        assert_eq!(
            check(&status(mask(&[SYS_ADMIN_BIT]))),
            Err(CapsError::Missing(vec!["CAP_NET_ADMIN"]))
        );
    }

    #[test]
    fn without_ptrace_there_is_a_warning_only() {
        let warnings = check(&status(mask(&[BPF.bit, PERFMON.bit, NET_ADMIN.bit]))).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("CAP_SYS_PTRACE"), "{warnings:?}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_an_error_or_an_answer_but_never_a_panic(text in ".*") {
            let _ = check(&text);
            let _ = check(&format!("CapEff:{text}"));
        }
    }
}
