//! A container that is followed: what it called since it was last looked at, and in this window.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    baseline::{Measure, Phase},
    runtime::{Programs, Told},
    sensitive::Sensitive,
    settings::{IN_A_ROW, NAMING, PREPARING, Settings},
    workload::{Who, Workload},
};

/// Told calls that are kept as evidence for what is found later.
const RECENT: usize = 16;
/// Pieces of evidence of a finding.
pub(super) const EVIDENCE: usize = 5;

/// Calls, or errors, by what they are.
pub(super) type Amounts = BTreeMap<Measure, u64>;

#[derive(Debug)]
pub(super) struct Container {
    pub(super) who: Who,
    /// None until its names are known, and for who is not judged.
    pub(super) workload: Option<Arc<Workload>>,
    /// When it was first heard of, in nanoseconds since boot.
    pub(super) first_ns: u64,
    /// When it last called.
    pub(super) active_ns: u64,
    /// Since it was last looked at.
    pub(super) fresh: Amounts,
    /// Since the window began.
    pub(super) window: Amounts,
    /// Of those, what is in a finding already.
    pub(super) reported: Amounts,
    /// The ends of its calls are watched.
    pub(super) errors_watched: bool,
    /// Rates in the windows before, latest first.
    pub(super) before: VecDeque<BTreeMap<Measure, f64>>,
    /// New calls that wait: since when, and how many.
    pub(super) candidates: BTreeMap<u16, (u64, u64)>,
    pub(super) sensitive: Sensitive,
    pub(super) programs: Programs,
    pub(super) recent: VecDeque<Told>,
    /// Its start is over, and was counted.
    pub(super) start_counted: bool,
    /// There was no room for its workload.
    pub(super) refused: bool,
    /// It is gone.
    pub(super) ended: bool,
}

impl Container {
    pub(super) fn new(who: Who, now_ns: u64) -> Self {
        Self {
            who,
            workload: None,
            first_ns: now_ns,
            active_ns: now_ns,
            fresh: Amounts::new(),
            window: Amounts::new(),
            reported: Amounts::new(),
            errors_watched: false,
            before: VecDeque::new(),
            candidates: BTreeMap::new(),
            sensitive: Sensitive::default(),
            programs: Programs::default(),
            recent: VecDeque::new(),
            start_counted: false,
            refused: false,
            ended: false,
        }
    }

    /// Who was there before orb8 was has started long ago.
    pub(super) fn phase(&self, now_ns: u64, settings: &Settings) -> Phase {
        let age = |born| u128::from(now_ns.saturating_sub(born));
        match self.who.born_ns {
            Some(born) if age(born) < settings.start().as_nanos() => Phase::Start,
            _ => Phase::Life,
        }
    }

    /// Its runtime is still at work, as far as is known.
    pub(super) fn is_prepared(&self, now_ns: u64) -> bool {
        let is_young = |born| u128::from(now_ns.saturating_sub(born)) < PREPARING.as_nanos();
        !self.programs.own && self.who.born_ns.is_some_and(is_young)
    }

    /// Its names may still come, and it is worth waiting.
    pub(super) fn awaits_name(&self, now_ns: u64) -> bool {
        let waited = u128::from(now_ns.saturating_sub(self.first_ns));
        !self.ended && self.who.is_nameless() && waited < NAMING.as_nanos()
    }

    pub(super) fn told(&mut self, told: Told) {
        if let Some(program) = &told.program {
            self.programs.started(told.pid, program);
        }
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(told);
    }

    /// What was told of a call, or else of the programs that were started last.
    pub(super) fn evidence(&self, number: Option<u16>) -> Vec<String> {
        let same = |told: &&Told| number.is_some_and(|number| told.number == u32::from(number));
        let mut found: Vec<&Told> = self.recent.iter().filter(same).collect();
        if found.is_empty() {
            found = self.recent.iter().filter(|told| told.program.is_some()).collect();
        }
        found.truncate(EVIDENCE);
        found.into_iter().rev().map(Told::evidence).collect()
    }

    /// The rate that was kept up for the windows in a row, of which the last had this one.
    pub(super) fn kept_up(&self, measure: Measure, rate: f64) -> f64 {
        if self.before.len() < IN_A_ROW - 1 {
            return 0.0;
        }
        let before = self.before.iter().map(|rates| rates.get(&measure).copied().unwrap_or(0.0));
        before.fold(rate, f64::min)
    }

    /// What of this window's calls is in no finding yet, but is from now on.
    pub(super) fn report(&mut self, measure: Measure, calls: u64) -> u64 {
        let before = self.reported.insert(measure, calls).unwrap_or(0);
        calls.saturating_sub(before)
    }

    /// Ends a window of so many seconds; gives its rates.
    pub(super) fn end_window(&mut self, window_s: f64) -> BTreeMap<Measure, Rate> {
        self.reported.clear();
        let window = std::mem::take(&mut self.window);
        let rates: BTreeMap<Measure, f64> =
            window.iter().map(|(measure, n)| (*measure, as_f64(*n) / window_s)).collect();
        let with_past = rates.iter().map(|(measure, rate)| {
            (*measure, Rate { now: *rate, kept_up: self.kept_up(*measure, *rate) })
        });
        let with_past = with_past.collect();
        self.before.truncate(IN_A_ROW - 2);
        self.before.push_front(rates);
        with_past
    }
}

/// Calls a second of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    /// In the window that ended.
    pub(super) now: f64,
    /// In that one and in those before.
    pub(super) kept_up: f64,
}

pub(super) fn as_f64(n: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people, from less than 2^53 calls")]
    let n = n as f64;
    n
}
