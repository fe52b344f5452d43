//! Sensitive calls of one container: each is told of, so who made it is known; and each is counted,
//! so one whose telling was lost is not.

use std::{collections::BTreeMap, time::Duration};

use super::runtime::Told;

/// Calls that are held until they are judged. More of them are counted.
const HELD: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Sensitive {
    calls: BTreeMap<u16, Calls>,
    held: usize,
}

/// Calls of one number.
#[derive(Debug, Default)]
struct Calls {
    counted: u64,
    told: u64,
    /// Since when fewer were told than counted.
    behind_ns: Option<u64>,
    suspect: Suspicion,
}

/// Calls that nobody excuses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Suspicion {
    pub(super) calls: u64,
    /// Of those, the ones of which nothing is known but their number.
    pub(super) untold: u64,
    pub(super) evidence: Vec<String>,
}

impl Sensitive {
    pub(super) fn counted(&mut self, number: u16, calls: u64) {
        self.calls.entry(number).or_default().counted += calls;
    }

    /// A call was told of, and either the runtime made it, or not.
    pub(super) fn told(&mut self, number: u16, told: &Told, excused: bool) {
        let calls = self.calls.entry(number).or_default();
        calls.told += 1;
        if excused {
            return;
        }
        calls.suspect.calls += 1;
        if self.held < HELD {
            self.held += 1;
            calls.suspect.evidence.push(told.evidence());
        }
    }

    /// Takes what is to be judged. What was counted and is still not told of after `patience` will
    /// not be.
    pub(super) fn take(
        &mut self,
        now_ns: u64,
        patience: Duration,
        excuses_untold: impl Fn(u16) -> bool,
    ) -> Vec<(u16, Suspicion)> {
        let mut found = Vec::new();
        self.held = 0;
        for (number, calls) in &mut self.calls {
            if calls.counted <= calls.told {
                calls.behind_ns = None;
            } else {
                let since = *calls.behind_ns.get_or_insert(now_ns);
                if u128::from(now_ns.saturating_sub(since)) >= patience.as_nanos() {
                    let untold = calls.counted - calls.told;
                    calls.told = calls.counted;
                    calls.behind_ns = None;
                    if !excuses_untold(*number) {
                        calls.suspect.calls += untold;
                        calls.suspect.untold += untold;
                    }
                }
            }
            if calls.suspect.calls > 0 {
                found.push((*number, std::mem::take(&mut calls.suspect)));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_nanos(10);

    fn told() -> Told {
        Told { number: 1, pid: 1, comm: "a".into(), text: "b".into(), program: None }
    }

    #[test]
    fn a_call_whose_telling_was_lost_is_found_by_its_count() {
        let mut sensitive = Sensitive::default();
        sensitive.counted(1, 3);
        sensitive.told(1, &told(), true);
        assert_eq!(sensitive.take(0, PATIENCE, |_| false), []);
        let found = sensitive.take(10, PATIENCE, |_| false);
        assert_eq!((found.len(), found[0].1.calls, found[0].1.untold), (1, 2, 2));
        assert_eq!(sensitive.take(1_000, PATIENCE, |_| false), []);
    }

    #[test]
    fn telling_that_comes_before_the_count_is_no_loss() {
        let mut sensitive = Sensitive::default();
        sensitive.told(1, &told(), false);
        let found = sensitive.take(0, PATIENCE, |_| false);
        assert_eq!(
            (found[0].1.calls, &*found[0].1.evidence),
            (1, &["a (pid 1): b".to_owned()][..])
        );
        sensitive.counted(1, 1);
        assert_eq!(sensitive.take(1_000, PATIENCE, |_| false), []);
        (0..1_000).for_each(|_| sensitive.told(1, &told(), false));
        let found = sensitive.take(0, PATIENCE, |_| false);
        assert_eq!((found[0].1.calls, found[0].1.evidence.len()), (1_000, HELD));
    }
}
