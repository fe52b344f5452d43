//! What a process itself costs: CPU, memory, descriptors. Sources: getrusage(2), proc(5).

use std::fs;

use orb8_proto::Usage;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// CPU time, resident memory and open descriptors of this process. `kernel_map_bytes` is passed on: it is
/// memory that no file of the process tells.
#[must_use]
pub fn now(kernel_map_bytes: u64) -> Usage {
    Usage {
        cpu_seconds: cpu_seconds(&fs::read_to_string("/proc/self/stat").unwrap_or_default()),
        resident_bytes: resident_bytes(&fs::read_to_string("/proc/self/statm").unwrap_or_default()),
        open_fds: fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count() as u64),
        kernel_map_bytes,
    }
}

/// User and system time: fields 14 and 15, counted behind the command name, which may hold
/// anything.
fn cpu_seconds(stat: &str) -> f64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u32 =
        fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u32>().ok()).sum();
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100);
    f64::from(ticks) / f64::from(per_second.max(1))
}

fn resident_bytes(statm: &str) -> u64 {
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|f| f.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Every interface takes two descriptors, and the usual soft limit is 1,024. Failing is not fatal:
/// interfaces that then cannot be attached are reported one by one.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "descriptor limit stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 0 9 9 9 9 250 50 0 0 20 0 1 0 5 6 7";
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        assert!((cpu_seconds(stat) - 300.0 / per_second).abs() < 1e-9);
        assert!(cpu_seconds("").abs() < f64::EPSILON);
    }

    #[test]
    fn this_process_uses_memory_and_descriptors() {
        let usage = now(0);
        assert!(usage.resident_bytes > 100_000 && usage.open_fds >= 3);
    }
}
