//! The last line on stderr: who answered, and what was lost.

use std::fmt;

use orb8_proto::Loss;

/// Counts of one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Nodes that were asked.
    pub asked: u64,
    /// Nodes that answered to the end.
    pub answered: u64,
    /// Records that arrived here.
    pub received: u64,
    /// Records that did not.
    pub lost: u64,
}

impl Summary {
    /// Whether the output holds everything that was asked for.
    pub(crate) fn complete(&self) -> bool {
        self.asked > 0 && self.answered == self.asked && self.lost == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} nodes answered, {} of {} records lost",
            grouped(self.answered),
            grouped(self.asked),
            grouped(self.lost),
            grouped(self.received.saturating_add(self.lost)),
        )
    }
}

/// Decimal digits in groups of three: `48,201`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Where rows of the last minutes had to make room for newer ones.
const HISTORY: &str = "history";

/// Records that a node could not deliver to anybody. What the `live` stage lost is counted per
/// subscriber, so ours is in the loss report and the others' is not our loss.
pub(crate) fn node_records_lost(losses: &[Loss]) -> u64 {
    let everybodys = losses.iter().filter(|loss| !["live", HISTORY].contains(&&*loss.stage));
    everybodys.fold(0, |sum, loss| sum.saturating_add(loss.records))
}

/// Rows of the last minutes that a node forgot early. Who listened had them as records.
pub(crate) fn rows_forgotten(losses: &[Loss]) -> u64 {
    let rows = losses.iter().filter(|loss| loss.stage == HISTORY);
    rows.fold(0, |sum, loss| sum.saturating_add(loss.records))
}

/// One loss as a sentence: `network kernel ring_full: 12 records, 3 packets without detail`.
pub(crate) fn loss_text(loss: &Loss) -> String {
    let mut parts = Vec::new();
    if loss.records > 0 {
        let what = if loss.stage == HISTORY { "rows forgotten early" } else { "records lost" };
        parts.push(format!("{} {what}", grouped(loss.records)));
    }
    if loss.packets > 0 {
        parts.push(format!("{} packets counted without detail", grouped(loss.packets)));
    }
    if loss.calls > 0 {
        parts.push(format!("{} calls counted that are nobody's", grouped(loss.calls)));
    }
    format!("{} {}/{}: {}", loss.signal, loss.stage, loss.reason, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        let summary = Summary { asked: 1, answered: 1, received: 48_200, lost: 1 };
        assert_eq!(summary.to_string(), "1/1 nodes answered, 1 of 48,201 records lost");
        let summary = Summary { asked: 12, answered: 11, received: 48_201, lost: 0 };
        assert_eq!(summary.to_string(), "11/12 nodes answered, 0 of 48,201 records lost");
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn rows_that_were_forgotten_early_are_no_lost_records() {
        let of = |stage: &str, records| Loss {
            signal: "network".into(),
            stage: stage.into(),
            reason: "gone_pods_full".into(),
            records,
            ..Loss::default()
        };
        let losses = [of("kernel", 5), of("live", 7), of("history", 13_248)];
        assert_eq!((node_records_lost(&losses), rows_forgotten(&losses)), (5, 13_248));
        let text = "network history/gone_pods_full: 13,248 rows forgotten early";
        assert_eq!(loss_text(&losses[2]), text);
    }

    #[test]
    fn a_missing_node_or_a_lost_record_makes_it_incomplete() {
        let whole = Summary { asked: 1, answered: 1, received: 5, lost: 0 };
        assert!(whole.complete());
        assert!(!Summary { lost: 1, ..whole }.complete());
        assert!(!Summary { answered: 0, ..whole }.complete());
        assert!(!Summary { asked: 0, answered: 0, ..whole }.complete(), "nobody was there to ask");
    }
}
