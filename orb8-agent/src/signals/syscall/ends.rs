//! How a container's calls ended, per slice of the last minutes.

use std::collections::{BTreeMap, VecDeque};

use orb8_common::syscall::BUCKETS;
use orb8_proto::{ErrorCount, SyscallOutcome};

use super::errno;
use crate::aggregator::{SliceNumber, oldest_kept, slice_of};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    /// Calls in a bucket of latencies.
    Latency(u8),
    /// Nanoseconds.
    Duration,
    /// Calls with an error.
    Errors,
    /// Calls with an error that nobody saw begin.
    Unbegun,
    /// Calls with this error.
    Error(u16),
}

/// Figures by number of the call, sorted. Most calls have few of them.
pub(super) type Figures = Vec<((u16, Figure), u64)>;

/// What ended, oldest first. 16 bytes a figure, some six figures for each call of a slice: as many
/// containers and calls as the probe's table holds take some 16 MB over the whole window.
#[derive(Default)]
pub(super) struct Ends {
    slices: VecDeque<(SliceNumber, Figures)>,
}

impl Ends {
    /// Adds to the slice of now.
    pub(super) fn book(&mut self, figures: &[((u16, Figure), u64)], now_ns: u64) {
        let slice = slice_of(now_ns);
        if self.slices.back().is_none_or(|(newest, _)| *newest < slice) {
            self.slices.push_back((slice, Vec::with_capacity(figures.len())));
        }
        let oldest = oldest_kept(slice);
        while self.slices.pop_front_if(|(slice, _)| *slice < oldest).is_some() {}
        if let Some((_, newest)) = self.slices.back_mut() {
            for &(key, n) in figures {
                match newest.binary_search_by_key(&key, |(key, _)| *key) {
                    Ok(at) => newest[at].1 += n,
                    Err(at) => newest.insert(at, (key, n)),
                }
            }
        }
    }

    /// How calls ended within some slices, by number.
    pub(super) fn outcomes(
        &self,
        from: SliceNumber,
        to: SliceNumber,
    ) -> BTreeMap<u16, SyscallOutcome> {
        let mut outcomes: BTreeMap<u16, SyscallOutcome> = BTreeMap::new();
        for (_, figures) in self.slices.iter().filter(|(slice, _)| (from..=to).contains(slice)) {
            for &((number, figure), n) in figures {
                add(outcomes.entry(number).or_default(), figure, n);
            }
        }
        for outcome in outcomes.values_mut() {
            (outcome.p50_ns, outcome.p99_ns) =
                (quantile(&outcome.latency, 50), quantile(&outcome.latency, 99));
            outcome.errors_by_number.sort_by_key(|error| (u64::MAX - error.count, error.errno));
        }
        outcomes
    }
}

fn add(outcome: &mut SyscallOutcome, figure: Figure, n: u64) {
    match figure {
        Figure::Latency(bucket) => {
            let bucket = usize::from(bucket).min(BUCKETS - 1);
            if outcome.latency.len() <= bucket {
                outcome.latency.resize(bucket + 1, 0);
            }
            outcome.latency[bucket] += n;
            outcome.returned += n;
        }
        Figure::Duration => outcome.duration_ns += n,
        Figure::Errors => outcome.errors += n,
        Figure::Unbegun => outcome.returned += n,
        Figure::Error(number) => {
            let number = number.into();
            match outcome.errors_by_number.iter_mut().find(|error| error.errno == number) {
                Some(error) => error.count += n,
                None => outcome.errors_by_number.push(ErrorCount {
                    errno: number,
                    name: errno::name(number),
                    count: n,
                }),
            }
        }
    }
}

/// Upper bound of the bucket that so many of a hundred calls do not exceed; 0: there are none.
fn quantile(latency: &[u64], percent: u64) -> u64 {
    let all: u64 = latency.iter().sum();
    let wanted = all.saturating_mul(percent).div_ceil(100);
    let mut below = 0;
    let bucket = latency.iter().position(|calls| {
        below += calls;
        below >= wanted
    });
    match bucket {
        Some(bucket) if all > 0 => 1 << (bucket + 8),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quantile_is_the_upper_bound_of_the_bucket_that_it_falls_into() {
        assert_eq!((quantile(&[], 50), quantile(&[0, 0], 99)), (0, 0));
        assert_eq!((quantile(&[1], 50), quantile(&[1], 99)), (256, 256));
        assert_eq!((quantile(&[50, 50], 50), quantile(&[50, 50], 99)), (256, 512));
        assert_eq!((quantile(&[99, 0, 1], 99), quantile(&[98, 0, 2], 99)), (256, 1_024));
    }

    #[test]
    fn ends_are_in_the_slices_in_which_they_were_booked() {
        let (mut ends, error) = (Ends::default(), u16::try_from(libc::ENOENT).unwrap());
        let slice = u64::try_from(crate::aggregator::SLICE.as_nanos()).unwrap();
        for n in 1..=3_u64 {
            let figures = [
                ((5, Figure::Latency(2)), n),
                ((5, Figure::Duration), 1_000 * n),
                ((5, Figure::Errors), n),
                ((5, Figure::Unbegun), 1),
                ((5, Figure::Error(error)), n),
            ];
            ends.book(&figures, n * slice);
        }
        let outcome = &ends.outcomes(2, 3)[&5];
        assert_eq!((outcome.returned, outcome.errors, outcome.duration_ns), (7, 5, 5_000));
        assert_eq!((outcome.latency.clone(), outcome.p50_ns), (vec![0, 0, 5], 1_024));
        let errors: Vec<_> = outcome.errors_by_number.iter().map(|e| (&*e.name, e.count)).collect();
        assert_eq!(errors, [("ENOENT", 5)]);
        assert!(ends.outcomes(4, 9).is_empty());
    }

    proptest! {
        #[test]
        fn every_call_of_a_bucket_is_below_its_quantile_of_a_hundred(
            latency in prop::collection::vec(0_u64..100, 0..BUCKETS),
        ) {
            let highest = latency.iter().rposition(|calls| *calls > 0);
            let expected = highest.map_or(0, |bucket| 1 << (bucket + 8));
            prop_assert_eq!(quantile(&latency, 100), expected);
            prop_assert!(quantile(&latency, 50) <= quantile(&latency, 99));
        }
    }
}
