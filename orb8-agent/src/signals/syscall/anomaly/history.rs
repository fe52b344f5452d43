//! How often something happened, window by window: a bounded past, its median and its spread.

use std::{array, sync::LazyLock};

use serde::{Deserialize, Serialize};

use super::settings::{ABOVE_MEDIAN, AT_ONCE, DEVIATIONS, IN_A_ROW, TIMES_MEDIAN, TIMES_PEAK};

/// Windows that are remembered.
pub(super) const SAMPLES: usize = 128;
/// Rates below this are zero.
const SMALLEST: f64 = 1.0 / 64.0;
/// Steps in which a rate doubles: so a sample is right to 9 %.
const STEPS: f64 = 8.0;
/// Of a normal distribution, the standard deviation is so many median absolute deviations.
const SIGMA: f64 = 1.4826;
/// What a peak loses per window: half of it within a day of windows of ten seconds.
const FADING: f64 = 0.999_92;

/// The rates that the samples stand for.
static RATES: LazyLock<[f64; 256]> = LazyLock::new(|| {
    let step = 2_f64.powf(1.0 / STEPS);
    let mut next = SMALLEST;
    array::from_fn(|at| match at {
        0 => 0.0,
        _ => {
            let rate = next;
            next *= step;
            rate
        }
    })
});

fn sample(rate: f64) -> u8 {
    let above = RATES.partition_point(|known| *known <= rate);
    u8::try_from(above.saturating_sub(1)).unwrap_or(u8::MAX)
}

fn rate(sample: u8) -> f64 {
    RATES[usize::from(sample)]
}

/// The rates of the last [`SAMPLES`] windows, and how high they have been before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub(super) struct History {
    samples: [u8; SAMPLES],
    /// Highest rate of a window.
    busiest: f64,
    /// Highest rate that was kept up for [`IN_A_ROW`] windows.
    kept_up: f64,
}

impl Default for History {
    fn default() -> Self {
        Self { samples: [0; SAMPLES], busiest: 0.0, kept_up: 0.0 }
    }
}

/// What is normal, by a history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Normal {
    pub(super) median: f64,
    /// Robust standard deviation. Never zero, so that a deviation from it is a number.
    pub(super) sigma: f64,
    /// What is still normal when it is kept up.
    pub(super) limit: f64,
    /// Calls within one window that are too many at once.
    pub(super) at_once: f64,
}

impl Normal {
    /// How far a rate is from normal, in robust standard deviations.
    pub(super) fn deviation(&self, rate: f64) -> f64 {
        (rate - self.median) / self.sigma
    }
}

impl History {
    /// The rate of window number `window`. What is not written was zero.
    pub(super) fn write(&mut self, window: u32, rate: f64) {
        self.samples[window as usize % SAMPLES] = sample(rate);
    }

    /// Rates that were normal, so that they are so again: of a window, and of several in a row.
    pub(super) fn accept(&mut self, rate: f64, kept_up: f64) {
        self.busiest = (self.busiest * FADING).max(rate);
        self.kept_up = (self.kept_up * FADING).max(kept_up);
    }

    /// Whether so many calls within a window may be too many: quick to tell, and right when false.
    pub(super) fn may_exceed(&self, calls: f64, window_s: f64) -> bool {
        calls > ABOVE_MEDIAN * window_s && calls > self.kept_up * TIMES_PEAK * window_s
    }

    /// What is normal after `windows` windows of `window_s` seconds.
    pub(super) fn normal(&self, windows: u32, window_s: f64) -> Normal {
        let filled = SAMPLES.min(windows as usize).max(1);
        let mut samples = self.samples;
        let samples = &mut samples[..filled];
        samples.sort_unstable();
        let median = rate(samples[filled / 2]);
        let mut distances: Vec<f64> = samples.iter().map(|s| (rate(*s) - median).abs()).collect();
        distances.sort_unstable_by(f64::total_cmp);
        let spread = SIGMA * distances[filled / 2];
        let limit = (median + DEVIATIONS * spread)
            .max(median * TIMES_MEDIAN)
            .max(median + ABOVE_MEDIAN)
            .max(self.kept_up * TIMES_PEAK);
        let in_a_row = f64::from(u8::try_from(IN_A_ROW).unwrap_or(u8::MAX));
        Normal {
            median,
            // Samples are right to 9 %, and a tenth of a call a second is no distance.
            sigma: spread.max(median * 0.09).max(0.1),
            limit,
            at_once: AT_ONCE * window_s * (limit * in_a_row).max(self.busiest),
        }
    }
}

/// A history in a file: its samples as hexadecimal digits, without trailing zeros.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    samples: String,
    busiest: f64,
    kept_up: f64,
}

impl From<History> for Written {
    fn from(history: History) -> Self {
        let used = history.samples.iter().rposition(|s| *s != 0).map_or(0, |last| last + 1);
        let samples = history.samples[..used].iter().map(|s| format!("{s:02x}")).collect();
        Self { samples, busiest: history.busiest, kept_up: history.kept_up }
    }
}

impl TryFrom<Written> for History {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let wrong = || format!("samples {:?}: expected up to 256 digits", written.samples);
        let mut samples = [0; SAMPLES];
        let pairs = written.samples.as_bytes().chunks(2);
        if pairs.len() > SAMPLES {
            return Err(wrong());
        }
        for (sample, pair) in samples.iter_mut().zip(pairs) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *sample = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        let sound = |rate: f64| rate.is_finite() && rate >= 0.0;
        if !sound(written.busiest) || !sound(written.kept_up) {
            return Err("a rate is not a number of calls a second".into());
        }
        Ok(Self { samples, busiest: written.busiest, kept_up: written.kept_up })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_right_to_a_twelfth() {
        for wanted in [0.02, 1.0, 7.3, 250.0, 99_999.0, 3e6] {
            let kept = rate(sample(wanted));
            assert!(kept <= wanted && kept > wanted / 1.1, "{wanted} became {kept}");
        }
        assert_eq!((rate(sample(0.0)), rate(sample(0.001))), (0.0, 0.0));
        assert_eq!((sample(f64::INFINITY), sample(f64::NAN)), (255, 0));
    }

    #[test]
    fn single_windows_move_neither_the_median_nor_the_spread() {
        let mut history = History::default();
        for window in 0..120 {
            history.write(window, if window % 20 == 0 { 50_000.0 } else { 100.0 });
        }
        let normal = history.normal(120, 10.0);
        assert!((90.0..=100.0).contains(&normal.median), "{normal:?}");
        assert!((normal.limit - 3.0 * normal.median).abs() < 1.0, "{normal:?}");
    }

    #[test]
    fn what_was_kept_up_before_is_no_departure() {
        let mut history = History::default();
        for window in 0..120 {
            history.write(window, 1.0);
        }
        history.accept(1_000.0, 800.0);
        let normal = history.normal(120, 10.0);
        assert!(normal.limit >= 1_200.0 && normal.at_once >= 30_000.0, "{normal:?}");
        assert!(!history.may_exceed(11_000.0, 10.0) && history.may_exceed(13_000.0, 10.0));
    }

    #[test]
    fn a_history_survives_being_written_and_read() {
        let mut history = History::default();
        for window in 0..300 {
            history.write(window, f64::from(window % 7) * 3.0);
        }
        history.accept(18.0, 9.5);
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
        for wrong in [
            r#"{"samples":"0g","busiest":0,"kept_up":0}"#.to_owned(),
            format!(r#"{{"samples":"{}","busiest":0,"kept_up":0}}"#, "01".repeat(129)),
            r#"{"busiest":-1.0,"kept_up":0}"#.to_owned(),
        ] {
            assert!(serde_json::from_str::<History>(&wrong).is_err(), "{wrong}");
        }
    }
}
