//! Who had an address at what time. Addresses are used again, at once and under load.
//!
//! The API tells when things happened late and to the second, so each pod, Service or node has an
//! address *surely* within one span and *maybe* within a larger one. An address has one owner at a
//! time: whoever had it surely excludes everybody else, and where several may have had it nobody is
//! named.

use std::{collections::HashMap, hash::Hash, ops::Range};

use super::PodUid;

/// When somebody had an address. Unix time in nanoseconds; what has not ended yet ends at `i64::MAX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tenure {
    pub(super) maybe: Range<i64>,
    /// Within `maybe`; may be empty.
    pub(super) surely: Range<i64>,
}

/// A pod's address is not taken away the instant that its last container ends.
const TEARDOWN_NS: i64 = 10_000_000_000;

/// When a pod had surely lost its addresses that had `ended`, or else was `told` to be gone.
pub(super) fn given_up_by(ended: Option<i64>, told: i64) -> i64 {
    ended.unwrap_or(told).saturating_add(TEARDOWN_NS)
}

/// Every address, with everybody who had it. What an address is, besides an IP address, and what an
/// owner is known by, is the user's to say.
#[derive(Debug)]
pub(super) struct Addresses<A, O = PodUid>(HashMap<A, Vec<(O, Tenure)>>);

impl<A, O> Default for Addresses<A, O> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<A: Eq + Hash, O: Copy + Eq> Addresses<A, O> {
    /// Notes when `owner` had `address`, in place of what was known about that. True when it is
    /// news.
    pub(super) fn set(&mut self, address: A, owner: O, mut tenure: Tenure) -> bool {
        // Nearly all have one owner, and there are as many as pods.
        let tenants = self.0.entry(address).or_insert_with(|| Vec::with_capacity(1));
        match tenants.iter_mut().find(|(tenant, _)| *tenant == owner) {
            Some((_, known)) => {
                // That it had the address stays true, whatever is told about it later.
                tenure.surely.start = tenure.surely.start.min(known.surely.start);
                let news = *known != tenure;
                *known = tenure;
                news
            }
            None => {
                tenants.push((owner, tenure));
                true
            }
        }
    }

    /// Notes that `owner` had `address` surely until `surely`, if that is known, and no longer than
    /// `maybe`.
    pub(super) fn end(&mut self, address: &A, owner: O, surely: Option<i64>, maybe: i64) {
        let tenants = self.0.get_mut(address).into_iter().flatten();
        for (_, tenure) in tenants.filter(|(tenant, _)| *tenant == owner) {
            let sure = surely.unwrap_or(tenure.surely.start).min(maybe);
            tenure.surely.end = tenure.surely.end.min(sure).max(tenure.surely.start);
            tenure.maybe.end = tenure.maybe.end.min(maybe).max(tenure.surely.end);
        }
    }

    /// The one that had `address` at `at`.
    pub(super) fn owner(&self, address: &A, at: i64) -> Option<O> {
        let tenants = self.0.get(address)?;
        let who = |within: fn(&Tenure) -> &Range<i64>| {
            let mut found = tenants.iter().filter(move |(_, t)| within(t).contains(&at));
            (found.next().map(|(owner, _)| *owner), found.next().is_some())
        };
        match who(|tenure| &tenure.surely) {
            (None, _) => match who(|tenure| &tenure.maybe) {
                (one, false) => one,
                (_, true) => None,
            },
            (one, false) => one,
            (_, true) => None,
        }
    }

    /// Forgets that `owner` had `address`.
    pub(super) fn forget(&mut self, address: &A, owner: O) {
        if let Some(tenants) = self.0.get_mut(address) {
            tenants.retain(|(tenant, _)| *tenant != owner);
            if tenants.is_empty() {
                self.0.remove(address);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    const IP: &str = "10.0.0.7";

    fn uid(n: usize) -> PodUid {
        format!("{n:08x}-3f56-4f60-a7a8-0c2f8b5e6f3a").parse().unwrap()
    }

    fn tenure(maybe: Range<i64>, surely: Range<i64>) -> Tenure {
        Tenure { maybe, surely }
    }

    #[test]
    fn who_had_it_surely_excludes_who_may_have_had_it() {
        let ip = IP.parse::<IpAddr>().unwrap();
        let mut addresses = Addresses::default();
        addresses.set(ip, uid(1), tenure(0..30, 5..20));
        addresses.set(ip, uid(2), tenure(10..i64::MAX, 40..i64::MAX));
        let owners: Vec<_> = [2, 7, 15, 25, 35, 50].map(|at| addresses.owner(&ip, at)).into();
        let (one, two) = (Some(uid(1)), Some(uid(2)));
        assert_eq!(owners, [one, one, one, None, two, two]);
    }

    #[test]
    fn an_end_without_a_time_leaves_nothing_sure() {
        let ip = IP.parse::<IpAddr>().unwrap();
        let mut addresses = Addresses::default();
        addresses.set(ip, uid(1), tenure(0..i64::MAX, 5..i64::MAX));
        addresses.end(&ip, uid(1), None, 30);
        assert_eq!(addresses.owner(&ip, 29), Some(uid(1)));
        assert_eq!(addresses.owner(&ip, 30), None);
        addresses.set(ip, uid(2), tenure(20..i64::MAX, 40..i64::MAX));
        assert_eq!(addresses.owner(&ip, 25), None);
        addresses.forget(&ip, uid(1));
        addresses.forget(&ip, uid(2));
        assert_eq!((addresses.len(), addresses.owner(&ip, 50)), (0, None));
    }

    const SECOND: i64 = 1_000_000_000;

    /// One after the other, what happened to an address: when a pod was taken on and got it, when
    /// its last container ended and it was taken away; and how much later all that was told.
    #[derive(Debug, Clone)]
    struct Truth {
        accepted: i64,
        had: Range<i64>,
        finished: i64,
        told_after: i64,
    }

    prop_compose! {
        fn truths()(steps in prop::collection::vec(
            // Milliseconds: idle before it, waiting for the address (longer than that, so before
            // the other lost it), life, teardown, delay of the API.
            (0..3_000i64, 0..6_000i64, 1..20_000i64, 0..9_000i64, 0..5_000i64), 1..12,
        )) -> Vec<Truth> {
            let mut now = 1_000 * SECOND;
            let ms = SECOND / 1_000;
            let life = |(idle, waits, lives, teardown, delay): (i64, i64, i64, i64, i64)| {
                let from = now + idle * ms;
                let finished = from + lives * ms;
                now = finished + teardown * ms;
                let accepted = from - waits * ms;
                Truth { accepted, had: from..now, finished, told_after: delay * ms }
            };
            steps.into_iter().map(life).collect()
        }
    }

    /// As the store does it, from stamps that are cut to the second.
    fn learn(truths: &[Truth]) -> Addresses<IpAddr> {
        let second = |at: i64| at / SECOND * SECOND;
        let ip = IP.parse::<IpAddr>().unwrap();
        let mut addresses = Addresses::default();
        for (n, truth) in truths.iter().enumerate() {
            let networked = second(truth.had.start) + SECOND;
            let from = second(truth.accepted);
            addresses.set(ip, uid(n), tenure(from..i64::MAX, networked..i64::MAX));
            let last_alive = second(truth.finished);
            let told = truth.had.end + truth.told_after;
            let ended = given_up_by(Some(last_alive + SECOND), told);
            addresses.end(&ip, uid(n), Some(last_alive), ended);
        }
        addresses
    }

    proptest! {
        #[test]
        fn an_address_never_names_the_wrong_pod(truths in truths(), at in 0..1_000i64) {
            let (ip, addresses) = (IP.parse::<IpAddr>().unwrap(), learn(&truths));
            for (n, truth) in truths.iter().enumerate() {
                let at = truth.had.start + (truth.had.end - truth.had.start) * at / 1_000;
                let named = addresses.owner(&ip, at);
                prop_assert!(named.is_none() || named == Some(uid(n)), "{named:?} at {at}");
            }
        }

        #[test]
        fn an_address_names_its_pod_while_that_is_beyond_doubt(truths in truths()) {
            let (ip, addresses) = (IP.parse::<IpAddr>().unwrap(), learn(&truths));
            for (n, truth) in truths.iter().enumerate() {
                let sure = truth.had.start + SECOND..truth.finished - SECOND;
                for at in [sure.start, (sure.start + sure.end) / 2, sure.end] {
                    if sure.start <= sure.end {
                        prop_assert_eq!(addresses.owner(&ip, at), Some(uid(n)));
                    }
                }
            }
        }
    }
}
