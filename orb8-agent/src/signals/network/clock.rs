//! Kernel time: from jiffies to nanoseconds since boot.

use orb8_common::network::Pulse;

use crate::clock::WallClock;

/// Two readings of the kernel's clocks; times between them are interpolated, so nobody has to know
/// how long a jiffy is.
pub(super) struct Clock {
    before: Pulse,
    now: Pulse,
    wall: WallClock,
}

impl Clock {
    pub(super) fn new(pulse: Pulse) -> Self {
        Self { before: pulse, now: pulse, wall: WallClock::default() }
    }

    pub(super) fn advance(&mut self, pulse: Pulse) {
        self.before = self.now;
        self.now = pulse;
        self.wall.follow();
    }

    /// Nanoseconds since boot, as of the last reading.
    pub(super) const fn now_ns(&self) -> u64 {
        self.now.boot_ns
    }

    /// When `jiffies` was, in nanoseconds since boot; exact to the jiffy between the last two
    /// readings, and never after the last.
    pub(super) fn boot_ns(&self, jiffies: u64) -> u64 {
        let ago = self.now.jiffies.saturating_sub(jiffies);
        let jiffies = self.now.jiffies.saturating_sub(self.before.jiffies);
        if ago == 0 || jiffies == 0 {
            return self.now.boot_ns;
        }
        let ns = u128::from(self.now.boot_ns.saturating_sub(self.before.boot_ns));
        let ago_ns = ns * u128::from(ago) / u128::from(jiffies);
        self.now.boot_ns.saturating_sub(u64::try_from(ago_ns).unwrap_or(u64::MAX))
    }

    /// Nanoseconds since the Unix epoch.
    pub(super) fn unix_ns(&self, boot_ns: u64) -> i64 {
        self.wall.unix_ns(boot_ns)
    }

    /// To the wall clock and back.
    pub(super) const fn wall(&self) -> WallClock {
        self.wall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jiffy_between_two_readings_has_its_share_of_the_time_between() {
        let pulse = |jiffies, boot_ns| Pulse { jiffies, boot_ns, ring_pending: 0 };
        let mut clock = Clock::new(pulse(1000, 4_000_000_000));
        assert_eq!(clock.boot_ns(900), 4_000_000_000);
        clock.advance(pulse(1250, 5_000_000_000));
        assert_eq!(clock.boot_ns(1125), 4_500_000_000);
        assert_eq!(clock.boot_ns(1300), 5_000_000_000);
        assert_eq!(clock.boot_ns(0), 0);
    }
}
