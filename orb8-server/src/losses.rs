//! What several agents lost, summed by signal, stage and reason.

use std::collections::{BTreeMap, btree_map};

use orb8_proto::Loss;

/// Signal, stage and reason.
pub(crate) type Key = (String, String, String);
/// Records, packets and calls.
pub(crate) type Counts = [u64; 3];

/// Sums of losses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses(BTreeMap<Key, Counts>);

/// Takes a loss apart.
pub(crate) fn parts(loss: Loss) -> (Key, Counts) {
    let Loss { signal, stage, reason, records, packets, calls } = loss;
    ((signal, stage, reason), [records, packets, calls])
}

impl Losses {
    pub(crate) fn add(&mut self, key: Key, more: Counts) {
        for (sum, more) in self.0.entry(key).or_default().iter_mut().zip(more) {
            *sum = sum.saturating_add(more);
        }
    }

    pub(crate) fn iter(&self) -> btree_map::Iter<'_, Key, Counts> {
        self.0.iter()
    }
}

impl Extend<Loss> for Losses {
    fn extend<I: IntoIterator<Item = Loss>>(&mut self, losses: I) {
        for loss in losses {
            let (key, counts) = parts(loss);
            self.add(key, counts);
        }
    }
}

impl From<Losses> for Vec<Loss> {
    fn from(losses: Losses) -> Self {
        let told = losses.0.into_iter().map(|((signal, stage, reason), counts)| {
            let [records, packets, calls] = counts;
            Loss { signal, stage, reason, records, packets, calls }
        });
        told.collect()
    }
}
