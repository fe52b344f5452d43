//! Every loss point, by signal, stage and reason. What is not in here was delivered.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Where in the pipeline something was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// In the probe: a full ring or table.
    Kernel,
    /// Between the ring and the agent's tables: short or unknown records.
    Collect,
    /// In the agent's bounded tables.
    Aggregate,
    /// On the way to a subscriber that was too slow.
    Live,
    /// Rows of the last minutes that had to make room for newer ones. Streams had them, and totals
    /// have them.
    History,
}

impl Stage {
    /// As on the wire and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Collect => "collect",
            Self::Aggregate => "aggregate",
            Self::Live => "live",
            Self::History => "history",
        }
    }
}

/// One loss point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LossPoint {
    /// Name of the signal.
    pub signal: &'static str,
    /// Where.
    pub stage: Stage,
    /// Why.
    pub reason: &'static str,
}

/// How much was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Event or trace records that were not delivered.
    pub records: u64,
    /// Packets that are in the totals, but without detail.
    pub packets: u64,
    /// System calls that are in the totals, but nobody's.
    pub calls: u64,
}

impl Amount {
    /// So many records and nothing else.
    #[must_use]
    pub const fn records(records: u64) -> Self {
        Self { records, packets: 0, calls: 0 }
    }
}

/// The agent's book of losses. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<LossPoint, Amount>>>);

impl Ledger {
    /// Adds to a loss point.
    pub fn lost(&self, point: LossPoint, amount: Amount) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = book.entry(point).or_default();
        entry.records += amount.records;
        entry.packets += amount.packets;
        entry.calls += amount.calls;
    }

    /// Sets a loss point to a total that somebody else counts, such as the kernel side.
    pub fn stands_at(&self, point: LossPoint, amount: Amount) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(point, amount);
    }

    /// Everything lost so far, without what is zero.
    #[must_use]
    pub fn losses(&self) -> Vec<orb8_proto::Loss> {
        self.since(&BTreeMap::new())
    }

    /// A mark to compare with later.
    #[must_use]
    pub fn mark(&self) -> BTreeMap<LossPoint, Amount> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was lost since `mark`.
    #[must_use]
    pub fn since(&self, mark: &BTreeMap<LossPoint, Amount>) -> Vec<orb8_proto::Loss> {
        let book = self.mark();
        let lost = book.iter().map(|(point, now)| {
            let then = mark.get(point).copied().unwrap_or_default();
            orb8_proto::Loss {
                signal: point.signal.into(),
                stage: point.stage.as_str().into(),
                reason: point.reason.into(),
                records: now.records.saturating_sub(then.records),
                packets: now.packets.saturating_sub(then.packets),
                calls: now.calls.saturating_sub(then.calls),
            }
        });
        lost.filter(|loss| loss.records > 0 || loss.packets > 0 || loss.calls > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: LossPoint =
        LossPoint { signal: "network", stage: Stage::Kernel, reason: "ring_full" };

    #[test]
    fn a_mark_sees_only_what_came_after_it() {
        let ledger = Ledger::default();
        ledger.lost(RING, Amount::records(2));
        let mark = ledger.mark();
        assert!(ledger.since(&mark).is_empty());
        let other_hand = ledger.clone();
        other_hand.lost(RING, Amount::records(3));
        assert_eq!(ledger.since(&mark)[0].records, 3);
        assert_eq!(ledger.losses()[0].records, 5);
    }

    #[test]
    fn a_total_counted_elsewhere_is_taken_as_it_stands() {
        let ledger = Ledger::default();
        for total in [4, 9] {
            ledger.stands_at(RING, Amount::records(total));
        }
        assert_eq!(ledger.losses()[0].records, 9);
    }
}
