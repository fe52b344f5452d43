//! Putting records into the order of their times, by holding each for a moment.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use orb8_proto::Event;

/// A record waits so long for earlier ones of other nodes: an agent writes ten times a second.
const HOLD_NS: i64 = 250_000_000;
/// Records that wait. When there are more the earliest go at once: order is what is lost then.
const MOST: usize = 65_536;

/// Records that wait for earlier ones.
#[derive(Default)]
pub(super) struct Order {
    waiting: BinaryHeap<Reverse<Waiting>>,
    arrivals: u64,
}

struct Waiting {
    /// Its time; of a node whose clock is ahead, when it came.
    at: i64,
    arrival: u64,
    event: Event,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.arrival).cmp(&(other.at, other.arrival))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

impl Order {
    /// Takes a record in at Unix time `now`. True when there are too many.
    pub(super) fn add(&mut self, event: Event, now: i64) -> bool {
        self.arrivals += 1;
        let at = event.timestamp_ns.min(now);
        self.waiting.push(Reverse(Waiting { at, arrival: self.arrivals, event }));
        self.waiting.len() > MOST
    }

    /// What has waited for long enough at `now`, in order.
    pub(super) fn due(&mut self, now: i64) -> Vec<Event> {
        let before = now.saturating_sub(HOLD_NS);
        self.take_while(|first, _| first.at <= before)
    }

    /// What there is no room for.
    pub(super) fn overdue(&mut self) -> Vec<Event> {
        self.take_while(|_, left| left > MOST)
    }

    fn take_while(&mut self, is_due: impl Fn(&Waiting, usize) -> bool) -> Vec<Event> {
        let mut due = Vec::new();
        while let Some(Reverse(first)) = self.waiting.peek() {
            if !is_due(first, self.waiting.len()) {
                break;
            }
            due.extend(self.waiting.pop().map(|Reverse(waiting)| waiting.event));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(timestamp_ns: i64) -> Event {
        Event { timestamp_ns, ..Event::default() }
    }

    proptest! {
        /// Records that come no later than the hold after their time leave in order, and all leave.
        #[test]
        fn what_comes_soon_enough_leaves_in_order(
            times in proptest::collection::vec((0i64..10 * HOLD_NS, 0..HOLD_NS), 0..200),
        ) {
            let mut arrivals: Vec<(i64, i64)> =
                times.iter().map(|(at, late)| (at + late, *at)).collect();
            arrivals.sort_unstable();
            let (mut order, mut left) = (Order::default(), Vec::new());
            for (now, at) in arrivals {
                prop_assert!(!order.add(event(at), now));
                left.extend(order.due(now).into_iter().map(|event| event.timestamp_ns));
            }
            left.extend(order.due(i64::MAX).into_iter().map(|event| event.timestamp_ns));
            let mut sorted: Vec<i64> = times.iter().map(|(at, _)| *at).collect();
            sorted.sort_unstable();
            prop_assert_eq!(left, sorted);
        }
    }

    #[test]
    fn a_clock_that_is_ahead_does_not_hold_its_records_back() {
        let mut order = Order::default();
        order.add(event(i64::MAX), 1_000);
        assert_eq!(order.due(1_000 + HOLD_NS).len(), 1);
    }

    #[test]
    fn there_is_room_for_so_many_and_then_the_earliest_go() {
        let mut order = Order::default();
        let n = i64::try_from(MOST).unwrap();
        for at in 0..n {
            assert!(!order.add(event(n - at), n));
        }
        assert!(order.add(event(0), n));
        assert_eq!(order.overdue(), [event(0)]);
        assert!(order.overdue().is_empty());
    }
}
