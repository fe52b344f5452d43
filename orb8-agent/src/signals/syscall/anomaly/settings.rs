//! What a detector can be told, and the numbers that nobody needs to change.

use std::time::Duration;

use super::super::telling::SENSITIVE;

/// Windows in a row in which a rate has to be too high.
pub(super) const IN_A_ROW: usize = 3;
/// Robust standard deviations from the median that are still normal.
pub(super) const DEVIATIONS: f64 = 8.0;
/// Times the median that is still normal.
pub(super) const TIMES_MEDIAN: f64 = 3.0;
/// Calls a second above the median that are still normal.
pub(super) const ABOVE_MEDIAN: f64 = 10.0;
/// Times the highest rate that was kept up before that is still normal.
pub(super) const TIMES_PEAK: f64 = 1.5;
/// Times what it takes within the windows in a row, and times the busiest window so far, that is too
/// much at once: then nobody waits for those windows.
pub(super) const AT_ONCE: f64 = 3.0;
/// Starts of a workload's containers before a start is judged.
pub(super) const STARTS: u32 = 3;
/// How long a new call waits to be reported: what a container calls in its last moments, when it is
/// told to end, is not what it does in its life.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// A runtime starts a container's program within this time. What happens later it is not excused for,
/// even if that start was not seen.
pub(super) const PREPARING: Duration = Duration::from_secs(60);
/// How long nothing is judged for want of a name. After that the owner's id is its name.
pub(super) const NAMING: Duration = Duration::from_secs(30);

/// Workloads that are kept. The one that was quiet for longest goes for a new one; if all are alive,
/// the new one is not judged. Both are counted.
pub(super) const WORKLOADS: usize = 1_000;
/// Containers that are followed at once. What is beyond is not judged, and counted.
pub(super) const CONTAINERS: usize = 4_096;
/// Calls of a workload whose rates are kept: 140 bytes each. What is beyond has no history and no
/// finding about its rate, and is counted.
pub(super) const HISTORIES: usize = 128;
/// Findings that last, over all. What is beyond is withheld, and counted.
pub(super) const LASTING: usize = 1_000;
/// Findings that are over and kept to be asked for. The oldest goes first.
pub(super) const CLEARED: usize = 1_000;
/// New findings that may come at once, over all; then there is one a second.
pub(super) const BURST: u32 = 60;

/// What a detector can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// How long a workload is learnt.
    pub(crate) learn: Duration,
    /// Rates are those of windows of this length.
    pub(crate) window: Duration,
    /// A finding is over when nothing was seen of it for this long.
    pub(crate) quiet: Duration,
    /// Names of calls that are reported at any time.
    pub(crate) sensitive: Vec<&'static str>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            learn: Duration::from_secs(30 * 60),
            window: Duration::from_secs(10),
            quiet: Duration::from_secs(5 * 60),
            sensitive: SENSITIVE.into(),
        }
    }
}

impl Settings {
    /// How long a container's start takes.
    pub(super) fn start(&self) -> Duration {
        self.learn / 6
    }

    /// Windows with calls that it takes to know a workload.
    pub(super) fn windows(&self) -> u32 {
        let all = self.learn.as_nanos() / self.window.as_nanos().max(1);
        u32::try_from(all / 6).unwrap_or(u32::MAX).max(3)
    }
}
