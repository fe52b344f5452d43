//! Time windows over counters: what a query about the last minutes is answered from.
//!
//! Time is cut into slices of fixed length; a window keeps the newest ones that saw anything. So a
//! question is answered to the slice, and the answer says which time it covers.

use std::{ops::AddAssign, time::Duration};

use crate::config::WINDOW;

/// Length of a slice. Shorter would be finer answers and more memory per flow.
pub const SLICE: Duration = Duration::from_secs(15);

/// Of so many that are gone (interfaces of pods, containers), what they did is kept for the length of
/// the window. Where more go, the first ones are forgotten earlier, and counted: memory is bounded on a
/// node where pods come and go all the time. Three a second do not reach it.
pub const GONE_MOST: usize = 1_024;

/// Number of a slice since boot.
pub type SliceNumber = u32;

/// The slice of a time in nanoseconds since boot.
#[must_use]
pub fn slice_of(boot_ns: u64) -> SliceNumber {
    SliceNumber::try_from(u128::from(boot_ns) / SLICE.as_nanos()).unwrap_or(SliceNumber::MAX)
}

/// When a slice begins, in nanoseconds since boot.
#[must_use]
pub fn slice_start_ns(slice: SliceNumber) -> u64 {
    u64::try_from(SLICE.as_nanos() * u128::from(slice)).unwrap_or(u64::MAX)
}

/// The oldest slice that is kept at `now`.
#[must_use]
pub fn oldest_kept(now: SliceNumber) -> SliceNumber {
    now.saturating_sub(u32::try_from(WINDOW.as_secs() / SLICE.as_secs()).unwrap_or(20))
}

/// Sums per slice, for the last [`WINDOW`].
#[derive(Clone, Debug)]
pub struct Window<T> {
    slices: Vec<(SliceNumber, T)>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { slices: Vec::new() }
    }
}

impl<T: AddAssign + Copy + Default> Window<T> {
    /// Adds `value` to `slice`. What is older than the window goes.
    pub fn add(&mut self, slice: SliceNumber, value: T) {
        let oldest = oldest_kept(slice);
        if let Some((last, sum)) = self.slices.last_mut()
            && *last >= slice
        {
            *sum += value;
            return;
        }
        if self.slices.first().is_some_and(|(first, _)| *first < oldest) {
            self.slices.retain(|(number, _)| *number >= oldest);
        }
        if self.slices.capacity() == 0 {
            // Most flows live within one slice; a vector's first growth would be to four.
            self.slices.reserve_exact(1);
        }
        self.slices.push((slice, value));
    }

    /// Adds what another window has.
    pub fn merge(&mut self, other: Self) {
        self.slices.extend(other.slices);
        self.slices.sort_by_key(|(number, _)| *number);
        self.slices.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 += later.1;
            }
            same
        });
    }

    /// The sum over `from..=to`, or `None` if nothing happened then.
    #[must_use]
    pub fn sum(&self, from: SliceNumber, to: SliceNumber) -> Option<T> {
        let within = self.slices.iter().filter(|(number, _)| (from..=to).contains(number));
        within.map(|(_, value)| *value).fold(None, |sum, value| {
            let mut total: T = sum.unwrap_or_default();
            total += value;
            Some(total)
        })
    }

    /// The newest slice in which something happened.
    #[must_use]
    pub fn newest(&self) -> Option<SliceNumber> {
        self.slices.last().map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_gone_and_the_rest_is_whole() {
        let mut window = Window::default();
        for slice in 100..130 {
            window.add(slice, 1_u64);
        }
        assert_eq!(window.sum(0, 1000), Some(21));
        assert_eq!(window.sum(0, 108), None);
        assert_eq!(window.sum(129, 129), Some(1));
    }

    #[test]
    fn merged_windows_have_what_both_had() {
        let (mut one, mut other) = (Window::default(), Window::default());
        for slice in [100, 101, 104] {
            one.add(slice, 1_u64);
            other.add(slice + 3, 10_u64);
        }
        one.merge(other);
        assert_eq!(
            (one.sum(0, 1000), one.sum(104, 104), one.newest()),
            (Some(33), Some(11), Some(107))
        );
    }

    proptest! {
        #[test]
        fn a_sum_is_the_sum_of_what_was_added_in_its_slices(
            steps in prop::collection::vec((0_u32..3, 0_u64..1000), 0..200),
            from in 0_u32..50,
            length in 0_u32..50,
        ) {
            let (mut window, mut model, mut now) = (Window::default(), Vec::new(), 20);
            for (step, value) in steps {
                now += step;
                window.add(now, value);
                model.push((now, value));
            }
            let from = from.max(oldest_kept(now));
            let wanted: Vec<u64> = model.iter()
                .filter(|(at, _)| (from..=from + length).contains(at))
                .map(|(_, value)| *value)
                .collect();
            let expected = (!wanted.is_empty()).then(|| wanted.iter().sum());
            prop_assert_eq!(window.sum(from, from + length), expected);
        }
    }
}
