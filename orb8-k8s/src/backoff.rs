//! How long to wait before the API is asked again.

use std::{hash::BuildHasher, time::Duration};

/// Waits that double from the first to the last, each a little different from everybody else's.
///
/// What went well for five times as long as the last wait makes the next wait the first one again.
/// So an API that breaks every connection at once is asked less and less, and one that breaks them
/// now and then is asked again without delay.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    waited: Option<Duration>,
}

/// See [`Backoff`].
const GOOD_FOR: u32 = 5;

impl Backoff {
    /// Waits from `first` to `last`.
    #[must_use]
    pub fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, waited: None }
    }

    /// How long to wait after something that went well for `lived`, and no less than what the API
    /// `asked` for.
    pub fn after(&mut self, lived: Duration, asked: Option<Duration>) -> Duration {
        let wait = match self.waited {
            Some(waited) if lived < waited * GOOD_FOR => (waited * 2).min(self.last),
            _ => self.first,
        };
        self.waited = Some(wait);
        wait.mul_f64(0.5 + random() / 2.0).max(asked.unwrap_or_default().min(self.last))
    }
}

/// From 0 to 1. Seeds of hash maps are random.
fn random() -> f64 {
    let bits = std::hash::RandomState::new().hash_one(0u8) >> 32;
    f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn waits_grow_to_the_last_and_begin_anew_after_something_good() {
        let mut backoff = Backoff::new(100 * MS, 1_000 * MS);
        for expected in [100, 200, 400, 800, 1_000, 1_000] {
            let wait = backoff.after(Duration::ZERO, None);
            assert!((expected / 2 * MS..=expected * MS).contains(&wait), "{wait:?}");
        }
        assert!(backoff.after(4_999 * MS, None) >= 500 * MS, "it was not good for long enough");
        assert!(backoff.after(5_000 * MS, None) <= 100 * MS);
    }

    #[test]
    fn what_the_api_asks_for_is_heeded_up_to_the_last_wait() {
        let mut backoff = Backoff::new(100 * MS, 1_000 * MS);
        assert_eq!(backoff.after(Duration::ZERO, Some(700 * MS)), 700 * MS);
        assert_eq!(backoff.after(Duration::ZERO, Some(700_000 * MS)), 1_000 * MS);
    }

    #[test]
    fn two_waits_are_not_the_same() {
        let waits = (0..20).map(|_| {
            Backoff::new(Duration::from_secs(10), Duration::from_secs(10))
                .after(Duration::ZERO, None)
        });
        assert!(waits.collect::<std::collections::BTreeSet<_>>().len() > 10);
    }
}
