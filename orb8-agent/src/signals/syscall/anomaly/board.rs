//! The findings: what lasts, what is over, and how many were withheld.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    container::EVIDENCE,
    detector::Moment,
    finding::{Finding, Kind},
    settings::{BURST, CLEARED, LASTING},
    workload::{Who, Workload},
};

/// Workloads by which findings are counted. Those of others are counted as nobody's.
const COUNTED: usize = 1_000;
/// Findings that are remembered to have been withheld, so that each is counted once. When there are
/// more, some are counted again.
const WITHHELD: usize = 4_096;

/// Calls that are named in a finding beside its own.
const ALSO: usize = 64;

/// What a finding is about. There is one at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) workload: Arc<Workload>,
    pub(super) kind: Kind,
    /// The call's or the error's.
    pub(super) number: u16,
}

/// What was seen of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sighting {
    pub(super) what: String,
    pub(super) calls: u64,
    pub(super) value: f64,
    pub(super) normal: f64,
    pub(super) deviation: f64,
    pub(super) evidence: Vec<String>,
}

/// What became of a sighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Raised,
    /// Of a finding that lasts.
    Again,
    /// The workload has enough of that kind.
    Enough,
    /// There are enough at all.
    Withheld,
}

/// Findings that were not reported, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Withheld {
    /// The workload had enough of that kind.
    pub(crate) of_workload: u64,
    /// There were enough at all.
    pub(crate) over_all: u64,
}

#[derive(Debug)]
pub(super) struct Board {
    lasting: HashMap<Subject, Lasting>,
    cleared: VecDeque<Finding>,
    /// Raised since the last tick.
    raised: Vec<Subject>,
    tokens: f64,
    ticked_ns: Option<u64>,
    /// How many so far.
    count: u64,
    withheld_before: HashSet<Subject>,
    pub(super) withheld: Withheld,
    /// By namespace, owner or unit, and kind.
    pub(super) totals: BTreeMap<(String, String, Kind), u64>,
}

#[derive(Debug)]
struct Lasting {
    finding: Finding,
    seen_ns: u64,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            lasting: HashMap::new(),
            cleared: VecDeque::new(),
            raised: Vec::new(),
            tokens: f64::from(BURST),
            ticked_ns: None,
            count: 0,
            withheld_before: HashSet::new(),
            withheld: Withheld::default(),
            totals: BTreeMap::new(),
        }
    }
}

impl Board {
    /// Something was seen. Raises a finding if there is none yet, and room.
    pub(super) fn see(
        &mut self,
        subject: &Subject,
        who: &Who,
        sighting: Sighting,
        now: Moment,
    ) -> Outcome {
        if self.again(subject, who, &sighting, now) {
            return Outcome::Again;
        }
        if let Some(refused) = self.refuse(subject) {
            return refused;
        }
        self.tokens -= 1.0;
        self.count += 1;
        self.withheld_before.remove(subject);
        self.count_of(subject);
        let Sighting { what, calls, value, normal, deviation, mut evidence } = sighting;
        evidence.truncate(EVIDENCE);
        let finding = Finding {
            id: format!("{:x}-{}", now.unix_ns, self.count),
            kind: subject.kind,
            workload: Arc::clone(&subject.workload),
            pod_name: Arc::clone(&who.identity.pod_name),
            container_id: Arc::clone(&who.identity.container_id),
            what,
            since_ns: now.unix_ns,
            last_seen_ns: now.unix_ns,
            cleared_ns: None,
            value,
            normal,
            deviation,
            occurrences: calls,
            also: Vec::new(),
            evidence,
        };
        self.raised.push(subject.clone());
        self.lasting.insert(subject.clone(), Lasting { finding, seen_ns: now.boot_ns });
        Outcome::Raised
    }

    /// Adds to a finding that lasts; false where there is none.
    pub(super) fn again(
        &mut self,
        subject: &Subject,
        who: &Who,
        sighting: &Sighting,
        now: Moment,
    ) -> bool {
        let Some(Lasting { finding, seen_ns }) = self.lasting.get_mut(subject) else {
            return false;
        };
        *seen_ns = now.boot_ns;
        finding.last_seen_ns = now.unix_ns;
        finding.pod_name = Arc::clone(&who.identity.pod_name);
        finding.container_id = Arc::clone(&who.identity.container_id);
        finding.occurrences = finding.occurrences.saturating_add(sighting.calls);
        if sighting.value > 0.0 {
            finding.value = sighting.value;
            finding.normal = sighting.normal;
            finding.deviation = sighting.deviation;
        }
        for text in &sighting.evidence {
            if finding.evidence.len() < EVIDENCE && !finding.evidence.contains(text) {
                finding.evidence.push(text.clone());
            }
        }
        true
    }

    pub(super) fn lasts(&self, subject: &Subject) -> bool {
        self.lasting.contains_key(subject)
    }

    /// Names a call for which there was no finding in the first one of its workload and kind.
    pub(super) fn also(&mut self, subject: &Subject, what: &str) {
        let same =
            |other: &Subject| other.kind == subject.kind && other.workload == subject.workload;
        let lasting = self.lasting.iter_mut().filter(|(other, _)| same(other));
        // Ids grow with the time.
        let latest = lasting.max_by_key(|(_, l)| {
            (l.finding.since_ns, Reverse(l.finding.id.len()), Reverse(l.finding.id.clone()))
        });
        if let Some((_, Lasting { finding, .. })) = latest
            && finding.also.len() < ALSO
            && !finding.also.iter().any(|known| known == what)
        {
            finding.also.push(what.to_owned());
        }
    }

    /// Why there is no room for a finding, if there is none.
    fn refuse(&mut self, subject: &Subject) -> Option<Outcome> {
        let same =
            |other: &&Subject| other.kind == subject.kind && other.workload == subject.workload;
        let of_workload = self.lasting.keys().filter(same).count() >= subject.kind.most();
        let over_all = self.tokens < 1.0 || self.lasting.len() >= LASTING;
        if !of_workload && !over_all {
            return None;
        }
        if self.withheld_before.len() >= WITHHELD {
            self.withheld_before.clear();
        }
        if self.withheld_before.insert(subject.clone()) {
            if of_workload {
                self.withheld.of_workload += 1;
            } else {
                self.withheld.over_all += 1;
            }
        }
        Some(if of_workload { Outcome::Enough } else { Outcome::Withheld })
    }

    fn count_of(&mut self, subject: &Subject) {
        let Workload { namespace, owner, container, unit, .. } = &*subject.workload;
        let name = [owner, unit, container].into_iter().find(|name| !name.is_empty());
        let mut key = (namespace.clone(), name.cloned().unwrap_or_default(), subject.kind);
        if self.totals.len() >= COUNTED * Kind::ALL.len() && !self.totals.contains_key(&key) {
            key = (String::new(), String::new(), subject.kind);
        }
        *self.totals.entry(key).or_default() += 1;
    }

    /// Ends what was quiet for long enough. Gives what was raised or has ended since the last time.
    pub(super) fn tick(&mut self, now: Moment, quiet: Duration) -> Vec<Finding> {
        let passed = now.boot_ns.saturating_sub(self.ticked_ns.unwrap_or(now.boot_ns));
        self.ticked_ns = Some(now.boot_ns);
        self.tokens =
            (self.tokens + Duration::from_nanos(passed).as_secs_f64()).min(f64::from(BURST));
        let raised = std::mem::take(&mut self.raised);
        let lasting = raised.iter().filter_map(|subject| self.lasting.get(subject));
        let mut news: Vec<Finding> = lasting.map(|lasting| lasting.finding.clone()).collect();
        let is_over = |lasting: &Lasting| {
            u128::from(now.boot_ns.saturating_sub(lasting.seen_ns)) >= quiet.as_nanos()
        };
        let over: Vec<Subject> =
            self.lasting.iter().filter(|(_, l)| is_over(l)).map(|(s, _)| s.clone()).collect();
        for subject in over {
            if let Some(Lasting { mut finding, .. }) = self.lasting.remove(&subject) {
                finding.cleared_ns = Some(now.unix_ns);
                news.push(finding.clone());
                self.cleared.truncate(CLEARED - 1);
                self.cleared.push_front(finding);
            }
        }
        news
    }

    pub(super) fn lasting(&self) -> impl Iterator<Item = &Finding> {
        self.lasting.values().map(|lasting| &lasting.finding)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Finding> {
        self.lasting().chain(&self.cleared)
    }
}
