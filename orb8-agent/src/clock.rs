//! From nanoseconds since boot, as probes tell time, to the wall clock, and back.

use rustix::time::{ClockId, clock_gettime};

/// More than a reading takes, and less than anybody cares about.
const CLOCK_STEP_NS: u64 = 1_000_000;

/// What the wall clock is ahead of the time since boot.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    unix_minus_boot: i64,
}

impl Default for WallClock {
    fn default() -> Self {
        Self { unix_minus_boot: unix_minus_boot() }
    }
}

impl WallClock {
    /// Notes a step of the wall clock. Two readings differ by the time between them: anything less
    /// than a step would make one moment's times differ from record to record.
    pub fn follow(&mut self) {
        let measured = unix_minus_boot();
        if measured.abs_diff(self.unix_minus_boot) > CLOCK_STEP_NS {
            self.unix_minus_boot = measured;
        }
    }

    /// Nanoseconds since the Unix epoch.
    #[must_use]
    pub fn unix_ns(&self, boot_ns: u64) -> i64 {
        self.unix_minus_boot.saturating_add(i64::try_from(boot_ns).unwrap_or(i64::MAX))
    }

    /// Nanoseconds since boot of a time of the wall clock; 0 for times before.
    #[must_use]
    pub fn boot_ns_of(&self, unix_ns: i64) -> u64 {
        u64::try_from(unix_ns.saturating_sub(self.unix_minus_boot)).unwrap_or(0)
    }
}

/// Nanoseconds since boot, as `bpf_ktime_get_boot_ns` tells them.
#[must_use]
pub fn boot_ns() -> u64 {
    u64::try_from(reading(ClockId::Boottime)).unwrap_or(0)
}

fn unix_minus_boot() -> i64 {
    reading(ClockId::Realtime) - reading(ClockId::Boottime)
}

fn reading(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_the_same_there_and_back() {
        let clock = WallClock::default();
        let unix = clock.unix_ns(5_000_000_000);
        assert_eq!(clock.boot_ns_of(unix), 5_000_000_000);
        assert_eq!(clock.boot_ns_of(0), 0);
    }
}
