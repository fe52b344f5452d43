//! What single settings may be.

use std::{path::PathBuf, time::Duration};

use orb8_probes::tracepoint::Kind;

use super::{MAX_FLOW_TABLE_SIZE, MAX_RING_BUFFER_SIZE, SyscallMetrics, TcAttach};
use crate::signals::{self, syscall};

pub(super) fn or_report<T>(
    parsed: Option<Result<T, String>>,
    problems: &mut Vec<String>,
) -> Option<T> {
    parsed?.map_err(|problem| problems.push(problem)).ok()
}

/// A ring is a power of two and a multiple of the page, which is 64 KiB on some arm64 kernels.
pub(super) fn ring_buffer_size(written: &str) -> Result<u32, String> {
    ring_size("ORB8_RING_BUFFER_SIZE", written)
}

pub(super) fn ring_size(name: &str, written: &str) -> Result<u32, String> {
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    let expected = format!(
        "{name}: {written:?} is not a ring size; expected a number of bytes that is \
         a power of two from {page} (this machine's page) to {MAX_RING_BUFFER_SIZE} (32 MiB)"
    );
    match written.trim().parse::<u32>() {
        Ok(n) if n.is_power_of_two() && (page..=MAX_RING_BUFFER_SIZE).contains(&n) => Ok(n),
        _ => Err(expected),
    }
}

pub(super) fn flow_table_size(written: &str) -> Result<u32, String> {
    match written.trim().parse::<u32>() {
        Ok(n) if (1..=MAX_FLOW_TABLE_SIZE).contains(&n) => Ok(n),
        _ => Err(format!(
            "ORB8_FLOW_TABLE_SIZE: {written:?} is not a table size; expected a number of entries \
             from 1 to {MAX_FLOW_TABLE_SIZE}"
        )),
    }
}

pub(super) fn signals(written: &[String], problems: &mut Vec<String>) -> Vec<&'static str> {
    let known = |name: &String| signals::NAMES.into_iter().find(|known| known == name);
    for name in written.iter().filter(|name| known(name).is_none()) {
        let all = signals::NAMES.join(", ");
        problems.push(format!("signals: {name:?} is unknown; expected some of {all}"));
    }
    if written.is_empty() {
        signals::NAMES.into()
    } else {
        written.iter().filter_map(known).collect()
    }
}

pub(super) fn syscall_sample(written: &str) -> Result<u32, String> {
    written.trim().parse().map_err(|_| {
        format!("syscall-sample: {written:?} is not a number; expected N, as in one of N")
    })
}

pub(super) fn sensitive(written: &[String], problems: &mut Vec<String>) -> Vec<&'static str> {
    if written.is_empty() {
        return syscall::SENSITIVE.into();
    }
    let known = |name: &String| match syscall::names::find(name) {
        Ok(name) => Some(name),
        Err(unknown) => {
            problems.push(format!("sensitive: {unknown}"));
            None
        }
    };
    written.iter().filter_map(known).collect()
}

/// A time that is not too short to mean anything and not so long that it never comes.
pub(super) fn time(
    name: &str,
    written: Option<&str>,
    default: Duration,
    problems: &mut Vec<String>,
) -> Duration {
    const RANGE: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);
    let Some(written) = written else { return default };
    match humantime::parse_duration(written.trim()) {
        Ok(time) if RANGE.contains(&time) => time,
        _ => {
            problems.push(format!(
                "{name}: {written:?} is not a time from 1s to 7d; expected one such as 10s, 30m or 2h"
            ));
            default
        }
    }
}

pub(super) fn state_dir(written: Option<PathBuf>, problems: &mut Vec<String>) -> Option<PathBuf> {
    if let Some(dir) = written.as_ref().filter(|dir| !dir.is_dir()) {
        problems.push(format!("state-dir: no directory {}", dir.display()));
    }
    written
}

pub(super) fn syscall_metrics(written: &str) -> Result<SyscallMetrics, String> {
    match written {
        "classes" => Ok(SyscallMetrics::Classes),
        "names" => Ok(SyscallMetrics::Names),
        _ => Err(format!("syscall-metrics: {written:?} is unknown; expected classes or names")),
    }
}

pub(super) fn tc_attach(written: &str) -> Result<TcAttach, String> {
    match written {
        "auto" => Ok(TcAttach::Auto),
        "tcx" => Ok(TcAttach::Tcx),
        "clsact" => Ok(TcAttach::Clsact),
        _ => Err(format!("tc-attach: {written:?} is unknown; expected auto, tcx or clsact")),
    }
}

/// None: the best one.
pub(super) fn tracepoints(written: &str) -> Result<Option<Kind>, String> {
    match written {
        "auto" => Ok(None),
        "typed" => Ok(Some(Kind::Typed)),
        "raw" => Ok(Some(Kind::Raw)),
        "classic" => Ok(Some(Kind::Classic)),
        _ => Err(format!(
            "tracepoints: {written:?} is unknown; expected auto, typed, raw or classic"
        )),
    }
}

/// Names as the kernel allows them (`IFNAMSIZ`, net/core/dev.c), or a beginning and a `*`.
pub(super) fn patterns(written: &[String], problems: &mut Vec<String>) -> Vec<String> {
    for pattern in written {
        let name = pattern.strip_suffix('*').unwrap_or(pattern);
        let fits = name.len() < 16 && !name.contains(|c: char| c == '/' || c.is_whitespace());
        if pattern.is_empty() || !fits || name.contains('*') {
            problems.push(format!(
                "interface: {pattern:?} is not an interface name; expected up to 15 characters \
                 such as eth0, or a beginning such as veth*"
            ));
        }
    }
    written.to_vec()
}

pub(super) fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".into() } else { name }
}
