//! What has been learnt of a workload.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    callset::CallSet,
    history::{History, Normal},
    settings::{HISTORIES, STARTS, Settings},
};

/// What has a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum Measure {
    /// Calls of this number.
    Call(u16),
    /// Calls that ended with this error.
    Error(u16),
}

/// In which part of its life a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It was prepared, and loads.
    Start,
    /// It does what it is for.
    Life,
}

/// What one workload usually does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// When learning began, in nanoseconds since the Unix epoch.
    pub(super) since_ns: i64,
    /// How long it was watched.
    pub(super) watched: Duration,
    /// Windows with calls of containers that had started.
    pub(super) windows: u32,
    /// Of those, the ones in which errors were watched too.
    pub(super) error_windows: u32,
    /// Starts that were watched to their end.
    pub(super) starts: u32,
    pub(super) at_start: CallSet,
    pub(super) in_life: CallSet,
    /// Reported as new: they are not new any more.
    pub(super) reported: CallSet,
    /// Reported as sensitive.
    pub(super) sensitive: CallSet,
    #[serde(with = "pairs")]
    pub(super) histories: BTreeMap<Measure, History>,
    /// Of a workload that is alive, or was last: when it called, in nanoseconds since boot.
    #[serde(skip)]
    pub(super) active_ns: u64,
}

impl Baseline {
    pub(super) fn new(since_ns: i64) -> Self {
        Self {
            since_ns,
            watched: Duration::ZERO,
            windows: 0,
            error_windows: 0,
            starts: 0,
            at_start: CallSet::default(),
            in_life: CallSet::default(),
            reported: CallSet::default(),
            sensitive: CallSet::default(),
            histories: BTreeMap::new(),
            active_ns: 0,
        }
    }

    /// Whether it is known what its containers do in a part of their lives.
    pub(super) fn is_learnt(&self, phase: Phase, settings: &Settings) -> bool {
        self.watched >= settings.learn
            && match phase {
                Phase::Start => self.starts >= STARTS,
                Phase::Life => self.windows >= settings.windows(),
            }
    }

    /// Whether it is known how often something happens.
    pub(super) fn knows_rates(&self, measure: Measure, settings: &Settings) -> bool {
        let errors = || self.error_windows >= settings.windows();
        self.is_learnt(Phase::Life, settings) && (matches!(measure, Measure::Call(_)) || errors())
    }

    /// Takes a call as usual.
    pub(super) fn learn(&mut self, phase: Phase, number: u16) {
        match phase {
            Phase::Start => self.at_start.insert(number),
            Phase::Life => self.in_life.insert(number),
        };
    }

    /// Whether a call is usual. What containers do later, they may do while they start.
    pub(super) fn expects(&self, phase: Phase, number: u16) -> bool {
        self.in_life.contains(number) || phase == Phase::Start && self.at_start.contains(number)
    }

    pub(super) fn normal(&self, measure: Measure, window_s: f64) -> Normal {
        let windows = match measure {
            Measure::Call(_) => self.windows,
            Measure::Error(_) => self.error_windows,
        };
        match self.histories.get(&measure) {
            Some(history) => history.normal(windows, window_s),
            None => History::default().normal(windows, window_s),
        }
    }

    /// Whether so many calls within a window may be too many; see [`History::may_exceed`].
    pub(super) fn may_exceed(&self, measure: Measure, calls: f64, window_s: f64) -> bool {
        match self.histories.get(&measure) {
            Some(history) => history.may_exceed(calls, window_s),
            None => History::default().may_exceed(calls, window_s),
        }
    }

    /// The history of `measure`, unless there are too many.
    pub(super) fn history(&mut self, measure: Measure) -> Option<&mut History> {
        if self.histories.len() >= HISTORIES && !self.histories.contains_key(&measure) {
            return None;
        }
        Some(self.histories.entry(measure).or_default())
    }
}

/// A map whose keys are no text, as a list.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::{HISTORIES, History, Measure};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<Measure, History>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Measure, History>, D::Error> {
        let list = Vec::<(Measure, History)>::deserialize(from)?;
        Ok(list.into_iter().take(HISTORIES).collect())
    }
}
