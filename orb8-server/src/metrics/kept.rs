//! Sums over what agents say, from one sweep to the next.
//!
//! An agent's totals do not fall as long as it runs. When it is restarted they begin anew; the sums go
//! on, so that a rate over them stays right.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use orb8_proto::{TotalsResponse, WorkloadTotals};

use crate::losses::{self, Losses};

/// Most series of workloads, and of namespaces. Beyond them those that are quiet for longest end; where
/// none is quiet, what is new is in its namespace's and its node's series only, and counted.
const MOST: usize = 10_000;
/// A series has to be quiet for so long before it makes room for another.
const QUIET: Duration = Duration::from_secs(300);
/// A series ends when nothing was added for so long and none of its pods runs; a node's, and what is
/// known of it, when its agent was not heard for so long.
const KEPT: Duration = Duration::from_secs(3600);
/// Where no series was quiet, it is not looked again for so long.
const FULL: Duration = Duration::from_secs(10);

/// Traffic and calls of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) ingress_bytes: u64,
    pub(super) egress_bytes: u64,
    pub(super) ingress_packets: u64,
    pub(super) egress_packets: u64,
    pub(super) syscalls: u64,
}

impl Sums {
    const fn of(totals: &WorkloadTotals) -> Self {
        Self {
            ingress_bytes: totals.ingress_bytes,
            egress_bytes: totals.egress_bytes,
            ingress_packets: totals.ingress_packets,
            egress_packets: totals.egress_packets,
            syscalls: totals.syscalls,
        }
    }

    fn each(&mut self, other: Self, with: impl Fn(u64, u64) -> u64) {
        self.ingress_bytes = with(self.ingress_bytes, other.ingress_bytes);
        self.egress_bytes = with(self.egress_bytes, other.egress_bytes);
        self.ingress_packets = with(self.ingress_packets, other.ingress_packets);
        self.egress_packets = with(self.egress_packets, other.egress_packets);
        self.syscalls = with(self.syscalls, other.syscalls);
    }

    fn add(&mut self, other: Self) {
        self.each(other, u64::saturating_add);
    }
}

/// Namespace and workload.
pub(super) type Workload = (String, String);

/// Sums with the time at which they last grew.
#[derive(Debug)]
pub(super) struct Rows<K> {
    rows: BTreeMap<K, (Sums, Instant)>,
    /// When there was nothing that could make room.
    full: Option<Instant>,
}

impl<K> Default for Rows<K> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), full: None }
    }
}

impl<K: Clone + Ord> Rows<K> {
    /// False if there is no room for one more.
    fn add(&mut self, key: &K, more: Sums, now: Instant) -> bool {
        if let Some((sums, seen)) = self.rows.get_mut(key) {
            sums.add(more);
            *seen = now;
            return true;
        }
        if self.rows.len() >= MOST && !self.make_room(now) {
            return false;
        }
        self.rows.insert(key.clone(), (more, now));
        true
    }

    /// Ends a tenth of the rows at once, so that not every newcomer has to look at all of them.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.full.is_some_and(|at| now.saturating_duration_since(at) < FULL) {
            return false;
        }
        let quiet = self.rows.iter().filter(|(_, (_, seen))| is_older(*seen, QUIET, now));
        let mut quiet: Vec<(Instant, K)> =
            quiet.map(|(key, (_, seen))| (*seen, key.clone())).collect();
        quiet.sort_unstable();
        self.full = quiet.is_empty().then_some(now);
        for (_, key) in quiet.into_iter().take(MOST / 10) {
            self.rows.remove(&key);
        }
        self.full.is_none()
    }

    fn forget(&mut self, now: Instant) {
        self.rows.retain(|_, (_, seen)| !is_older(*seen, KEPT, now));
    }

    /// As they stand.
    pub(super) fn sums(&self) -> BTreeMap<K, Sums> {
        self.rows.iter().map(|(key, (sums, _))| (key.clone(), *sums)).collect()
    }
}

fn is_older(at: Instant, than: Duration, now: Instant) -> bool {
    now.saturating_duration_since(at) >= than
}

/// What is kept from one sweep to the next.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// What each node said last, by its name.
    said: HashMap<String, Said>,
    /// The latest start among the agents of which it was forgotten what they said.
    forgotten_ns: i64,
    pub(super) workloads: Rows<Workload>,
    pub(super) namespaces: Rows<String>,
    pub(super) nodes: Rows<String>,
    pub(super) losses: Losses,
    /// Each time something of a workload without a series was added.
    pub(super) workloads_refused: u64,
}

#[derive(Debug)]
struct Said {
    started_ns: i64,
    heard: Instant,
    workloads: HashMap<Workload, Sums>,
    losses: HashMap<losses::Key, losses::Counts>,
}

impl Said {
    fn nothing(started_ns: i64, heard: Instant) -> Self {
        Self { started_ns, heard, workloads: HashMap::new(), losses: HashMap::new() }
    }
}

impl Kept {
    /// Takes what a node says its totals are.
    pub(super) fn take(&mut self, answer: TotalsResponse, now: Instant) {
        let started_ns = answer.started_ns;
        let said = self.said.get(&answer.node);
        // What an agent had that may have been counted already is not counted again.
        let is_back = said.is_none() && started_ns <= self.forgotten_ns;
        let goes_on = said.is_some_and(|said| said.started_ns == started_ns);
        let nothing = || Said::nothing(started_ns, now);
        let said = self.said.entry(answer.node.clone()).or_insert_with(nothing);
        if !goes_on {
            *said = nothing();
        }
        said.heard = now;
        self.nodes.add(&answer.node, Sums::default(), now);
        for totals in answer.workloads {
            let (sums, runs) = (Sums::of(&totals), totals.pods > 0);
            let key = (totals.namespace, totals.workload);
            let before = said.workloads.entry(key.clone()).or_default();
            let mut more = sums;
            // Of two sweeps at a time the earlier one's answer may come last.
            more.each(*before, u64::saturating_sub);
            before.each(sums, u64::max);
            if is_back {
                more = Sums::default();
            }
            if more == Sums::default() && !runs {
                continue;
            }
            self.nodes.add(&answer.node, more, now);
            // There are no fewer workloads than namespaces, so it is counted below what finds no room.
            self.namespaces.add(&key.0, more, now);
            if !self.workloads.add(&key, more, now) {
                self.workloads_refused += 1;
            }
        }
        for loss in answer.losses {
            let (key, now) = losses::parts(loss);
            let before = said.losses.entry(key.clone()).or_default();
            let mut more = now;
            for ((more, before), now) in more.iter_mut().zip(before).zip(now) {
                *more = if is_back { 0 } else { now.saturating_sub(*before) };
                *before = now.max(*before);
            }
            self.losses.add(key, more);
        }
    }

    /// Ends what is quiet for long.
    pub(super) fn forget(&mut self, now: Instant) {
        let Self { said, forgotten_ns, workloads, namespaces, nodes, .. } = self;
        said.retain(|_, said| {
            let over = is_older(said.heard, KEPT, now);
            if over {
                *forgotten_ns = said.started_ns.max(*forgotten_ns);
            }
            !over
        });
        workloads.forget(now);
        namespaces.forget(now);
        nodes.forget(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: (&str, &str) = ("shop", "Deployment/web");

    fn said(started_ns: i64, workload: (&str, &str), bytes: u64) -> TotalsResponse {
        TotalsResponse {
            node: "a".into(),
            started_ns,
            workloads: vec![WorkloadTotals {
                namespace: workload.0.into(),
                workload: workload.1.into(),
                ingress_bytes: bytes,
                ..WorkloadTotals::default()
            }],
            ..TotalsResponse::default()
        }
    }

    fn bytes(rows: &Rows<String>, name: &str) -> Option<u64> {
        rows.rows.get(name).map(|(sums, _)| sums.ingress_bytes)
    }

    #[test]
    fn sums_go_on_when_an_agent_begins_anew() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        for (started, told, sum) in
            [(1, 100, 100), (1, 150, 150), (2, 30, 180), (2, 30, 180), (2, 50, 200)]
        {
            kept.take(said(started, WEB, told), now);
            assert_eq!(bytes(&kept.namespaces, "shop"), Some(sum));
            assert_eq!(bytes(&kept.nodes, "a"), Some(sum));
        }
    }

    #[test]
    fn an_answer_that_is_overtaken_is_not_counted_twice() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        for told in [100, 150, 120, 160] {
            kept.take(said(1, WEB, told), now);
        }
        assert_eq!(bytes(&kept.namespaces, "shop"), Some(160));
    }

    #[test]
    fn a_node_that_is_back_after_it_was_forgotten_is_not_counted_again() {
        let (mut kept, began) = (Kept::default(), Instant::now());
        kept.take(said(7, WEB, 100), began);
        let later = began + KEPT;
        kept.forget(later);
        assert_eq!((bytes(&kept.nodes, "a"), bytes(&kept.namespaces, "shop")), (None, None));
        kept.take(said(7, WEB, 130), later);
        assert_eq!(bytes(&kept.nodes, "a"), Some(0));
        kept.take(said(7, WEB, 150), later);
        assert_eq!(
            (bytes(&kept.nodes, "a"), bytes(&kept.namespaces, "shop")),
            (Some(20), Some(20))
        );
        // One that began since was never counted.
        kept.take(TotalsResponse { node: "b".into(), ..said(8, WEB, 1_000) }, later);
        assert_eq!(bytes(&kept.namespaces, "shop"), Some(1_020));
    }

    #[test]
    fn workloads_beyond_the_cap_are_counted_in_their_namespace_and_told() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        for n in 0..=MOST {
            kept.take(said(1, ("shop", &format!("Job/{n}")), 1), now);
        }
        assert_eq!(kept.workloads.rows.len(), MOST);
        assert_eq!(bytes(&kept.namespaces, "shop"), Some(MOST as u64 + 1));
        assert_eq!(kept.workloads_refused, 1);
        // Later the quiet ones make room.
        kept.take(said(1, ("shop", "Job/new"), 1), now + QUIET);
        assert!(kept.workloads.rows.contains_key(&("shop".into(), "Job/new".into())));
        assert_eq!((kept.workloads.rows.len(), kept.workloads_refused), (MOST - MOST / 10 + 1, 1));
    }

    #[test]
    fn series_of_thirty_thousand_jobs_are_bounded_and_end_when_the_jobs_have() {
        let (mut kept, mut now) = (Kept::default(), Instant::now());
        let mut agent = said(1, WEB, 1);
        agent.workloads[0].pods = 1;
        let mut most = 0;
        // Ten jobs a sweep in three hundred namespaces, over a day; the agent tells of those that ended too.
        for sweep in 0..3_000_u64 {
            now += Duration::from_secs(30);
            for job in 0..10 {
                let name = format!("Job/{sweep}-{job}");
                let namespace = format!("preview-{}", sweep / 10);
                agent.workloads.extend(said(1, (&namespace, &name), 1_000).workloads);
            }
            agent.workloads.drain(1..agent.workloads.len().saturating_sub(1_000).max(1));
            kept.take(agent.clone(), now);
            kept.forget(now);
            most = most.max(kept.workloads.rows.len());
        }
        // Those of the last hour, and the one that runs.
        assert_eq!((most, kept.namespaces.rows.len()), (1_201, 13));
        assert_eq!(bytes(&kept.nodes, "a"), Some(30_000_001));
        now += KEPT;
        kept.take(agent, now);
        kept.forget(now);
        let left: Vec<_> = kept.workloads.rows.keys().collect();
        assert_eq!(left, [&("shop".to_owned(), "Deployment/web".to_owned())]);
        assert_eq!(bytes(&kept.nodes, "a"), Some(30_000_001));
    }
}
