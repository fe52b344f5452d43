//! One container against its workload's baseline.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    baseline::{Baseline, Measure, Phase},
    board::{Board, Outcome, Sighting, Subject},
    callset::CallSet,
    container::{Container, Rate, as_f64},
    detector::Moment,
    finding::Kind,
    names::Names,
    settings::{PATIENCE, Settings},
    workload::Workload,
};

/// What judging takes, apart from who is judged.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) settings: &'a Settings,
    pub(super) names: &'a Names,
    /// Reported at any time.
    pub(super) sensitive: &'a CallSet,
    /// What runtimes call when they prepare or enter a container.
    pub(super) entering: &'a CallSet,
    pub(super) now: Moment,
    /// Seconds since the window began.
    pub(super) window_s: f64,
}

impl Judge<'_> {
    /// What the container did since it was last looked at.
    pub(super) fn look(
        self,
        container: &mut Container,
        workload: &Arc<Workload>,
        baseline: &mut Baseline,
        board: &mut Board,
    ) {
        let phase = container.phase(self.now.boot_ns, self.settings);
        let fresh = std::mem::take(&mut container.fresh);
        if !fresh.is_empty() {
            baseline.active_ns = self.now.boot_ns;
        }
        let is_learnt = baseline.is_learnt(phase, self.settings);
        for (measure, calls) in &fresh {
            *container.window.entry(*measure).or_default() += calls;
            let &Measure::Call(number) = measure else { continue };
            if self.sensitive.contains(number) {
                container.sensitive.counted(number, *calls);
            } else if container.who.ending || self.names.is_meaningless(number) {
                // See `Who::ending` and `Names::is_meaningless`.
            } else if !is_learnt {
                baseline.learn(phase, number);
            } else if !baseline.expects(phase, number) {
                let since = (self.now.boot_ns, 0);
                container.candidates.entry(number).or_insert(since).1 += calls;
            }
        }
        self.count_start(container, phase, baseline);
        let subject = |kind, number| Subject { workload: Arc::clone(workload), kind, number };
        self.judge_sensitive(container, phase, baseline, board, subject);
        self.judge_new(container, baseline, board, subject);
        if phase == Phase::Life {
            let mut found = Vec::new();
            for measure in fresh.keys() {
                let calls = container.window.get(measure).copied().unwrap_or(0);
                if let Some(mut seen) = self.too_many_at_once(*measure, calls, baseline) {
                    seen.calls = container.report(*measure, calls);
                    found.push((*measure, seen));
                }
            }
            self.report_rates(found, container, board, subject);
        }
    }

    fn count_start(self, container: &mut Container, phase: Phase, baseline: &mut Baseline) {
        let is_over = phase == Phase::Life || container.ended;
        if is_over && container.who.born_ns.is_some() && !container.start_counted {
            container.start_counted = true;
            baseline.starts = baseline.starts.saturating_add(1);
        }
    }

    /// A sensitive call that is usual for a workload is reported once, so that somebody knows; one
    /// that is not, whenever it is made. The node's own services make such calls by profession:
    /// theirs are reported when they are new.
    fn judge_sensitive(
        self,
        container: &mut Container,
        phase: Phase,
        baseline: &mut Baseline,
        board: &mut Board,
        subject: impl Fn(Kind, u16) -> Subject,
    ) {
        let prepared = container.is_prepared(self.now.boot_ns);
        let of_runtime = |number| prepared && self.entering.contains(number);
        let found = container.sensitive.take(self.now.boot_ns, PATIENCE, of_runtime);
        for (number, suspicion) in found {
            let is_learnt = baseline.is_learnt(phase, self.settings);
            let subject = subject(Kind::Sensitive, number);
            let is_unit = !subject.workload.unit.is_empty();
            let usual = !is_learnt || baseline.expects(phase, number);
            if !is_learnt {
                baseline.learn(phase, number);
            }
            let mut evidence = suspicion.evidence;
            if suspicion.untold > 0 {
                evidence.push(format!("{} calls by nobody knows whom", suspicion.untold));
            }
            let what = self.names.call(number).to_owned();
            let seen = Sighting { what, calls: suspicion.calls, evidence, ..Sighting::default() };
            if usual && (is_unit || baseline.sensitive.contains(number)) {
                board.again(&subject, &container.who, &seen, self.now);
            } else {
                let outcome = board.see(&subject, &container.who, seen, self.now);
                if matches!(outcome, Outcome::Raised | Outcome::Again) {
                    baseline.sensitive.insert(number);
                }
            }
        }
    }

    fn judge_new(
        self,
        container: &mut Container,
        baseline: &mut Baseline,
        board: &mut Board,
        subject: impl Fn(Kind, u16) -> Subject,
    ) {
        let ripe =
            |since: u64| u128::from(self.now.boot_ns.saturating_sub(since)) >= PATIENCE.as_nanos();
        if container.ended || container.who.ending {
            container.candidates.clear();
        }
        let mut found: Vec<u16> = container
            .candidates
            .iter()
            .filter(|(_, (since, _))| ripe(*since))
            .map(|(number, _)| *number)
            .collect();
        found.sort_by_key(|number| (self.names.rank(*number), *number));
        for number in found {
            let calls = container.candidates.get(&number).map_or(0, |(_, calls)| *calls);
            let subject = subject(Kind::New, number);
            let seen = Sighting {
                what: self.names.call(number).to_owned(),
                calls,
                evidence: container.evidence(Some(number)),
                ..Sighting::default()
            };
            let known = baseline.reported.contains(number);
            let outcome = if known {
                board.again(&subject, &container.who, &seen, self.now);
                Outcome::Again
            } else {
                board.see(&subject, &container.who, seen, self.now)
            };
            if outcome == Outcome::Enough {
                board.also(&subject, self.names.call(number));
            }
            if outcome != Outcome::Withheld {
                baseline.reported.insert(number);
                container.candidates.remove(&number);
            }
        }
    }

    fn too_many_at_once(
        self,
        measure: Measure,
        calls: u64,
        baseline: &Baseline,
    ) -> Option<Sighting> {
        let window_s = self.settings.window.as_secs_f64();
        let n = as_f64(calls);
        if !baseline.may_exceed(measure, n, window_s)
            || !baseline.knows_rates(measure, self.settings)
        {
            return None;
        }
        let normal = baseline.normal(measure, window_s);
        (n > normal.at_once).then(|| {
            let value = n / self.window_s.max(1.0);
            self.sighting(measure, calls, value, normal)
        })
    }

    fn sighting(
        self,
        measure: Measure,
        calls: u64,
        value: f64,
        normal: super::history::Normal,
    ) -> Sighting {
        let what = match measure {
            Measure::Call(number) => self.names.call(number).to_owned(),
            Measure::Error(number) => Names::error(number).to_owned(),
        };
        let (normal, deviation) = (normal.median, normal.deviation(value));
        Sighting { what, calls, value, normal, deviation, evidence: Vec::new() }
    }

    /// A window has ended. Gives the container's rates, and whether each is a departure.
    pub(super) fn end_window(
        self,
        container: &mut Container,
        workload: &Arc<Workload>,
        baseline: &Baseline,
        board: &mut Board,
    ) -> BTreeMap<Measure, (Rate, bool)> {
        let calls = container.window.clone();
        let reported = std::mem::take(&mut container.reported);
        let rates = container.end_window(self.window_s);
        if container.phase(self.now.boot_ns, self.settings) == Phase::Start {
            return BTreeMap::new();
        }
        let subject = |kind, number| Subject { workload: Arc::clone(workload), kind, number };
        let mut found = Vec::new();
        let judged = rates.into_iter().map(|(measure, rate)| {
            let calls = calls.get(&measure).copied().unwrap_or(0);
            let too_high = baseline.may_exceed(measure, as_f64(calls), self.window_s)
                && baseline.knows_rates(measure, self.settings);
            let normal = || baseline.normal(measure, self.settings.window.as_secs_f64());
            let Some(normal) = too_high.then(normal).filter(|n| rate.now > n.limit) else {
                return (measure, (rate, false));
            };
            let (kind, number) = kind_of(measure);
            // What has been found lasts until the rate is normal again.
            if rate.kept_up > normal.limit || board.lasts(&subject(kind, number)) {
                let more = calls - reported.get(&measure).copied().unwrap_or(0).min(calls);
                found.push((measure, self.sighting(measure, more, rate.now, normal)));
            }
            (measure, (rate, true))
        });
        let judged = judged.collect();
        self.report_rates(found, container, board, subject);
        judged
    }

    fn report_rates(
        self,
        mut found: Vec<(Measure, Sighting)>,
        container: &Container,
        board: &mut Board,
        subject: impl Fn(Kind, u16) -> Subject,
    ) {
        let rank = |measure: &Measure| match measure {
            Measure::Call(number) => self.names.rank(*number),
            Measure::Error(_) => 0,
        };
        found.sort_by(|(a, one), (b, other)| {
            rank(a).cmp(&rank(b)).then(other.deviation.total_cmp(&one.deviation))
        });
        for (measure, mut seen) in found {
            let (kind, number) = kind_of(measure);
            seen.evidence = container.evidence((kind == Kind::Rate).then_some(number));
            board.see(&subject(kind, number), &container.who, seen, self.now);
        }
    }
}

fn kind_of(measure: Measure) -> (Kind, u16) {
    match measure {
        Measure::Call(number) => (Kind::Rate, number),
        Measure::Error(number) => (Kind::Errors, number),
    }
}
