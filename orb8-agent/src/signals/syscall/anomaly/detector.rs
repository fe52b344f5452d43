//! All containers and workloads: fed with calls, asked for what departs from normal.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use super::{
    super::table::Owner,
    baseline::{Baseline, Measure},
    board::{Board, Withheld},
    callset::CallSet,
    container::{Container, Rate},
    finding::{Finding, Kind},
    judge::Judge,
    names::{ERRORS, Names},
    runtime::{ENTERING, Told},
    saved::Saved,
    settings::{CONTAINERS, Settings, WORKLOADS},
    workload::{Who, Workload},
};

/// A container of which nothing was heard for so long is dropped; when it calls again, it is
/// followed again.
const IDLE: Duration = Duration::from_secs(3600);
/// Of windows that depart from normal, one in so many is taken for history: what stays becomes
/// normal, but not soon.
const TAKEN: u32 = 4;

/// A time, by both clocks: intervals are of the one that does not jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Nanoseconds since boot.
    pub(crate) boot_ns: u64,
    /// Nanoseconds since the Unix epoch.
    pub(crate) unix_ns: i64,
}

/// What was not judged or not reported, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Containers beyond those that can be followed at once.
    pub(crate) containers: u64,
    /// Containers whose workload found no room.
    pub(crate) workloads: u64,
    /// Workloads that were forgotten for new ones.
    pub(crate) forgotten: u64,
    /// Windows of calls whose rates are not kept, because the workload has too many different ones.
    pub(crate) rates: u64,
    /// Findings that were withheld.
    pub(crate) withheld: Withheld,
}

impl Tally {
    /// Each with its reason.
    pub(crate) fn losses(&self) -> [(&'static str, u64); 6] {
        [
            ("containers_full", self.containers),
            ("workloads_full", self.workloads),
            ("workload_forgotten", self.forgotten),
            ("rates_full", self.rates),
            ("withheld_of_workload", self.withheld.of_workload),
            ("withheld_over_all", self.withheld.over_all),
        ]
    }
}

/// Learns workloads, and tells what departs from them.
#[derive(Debug)]
pub(crate) struct Detector {
    settings: Settings,
    names: Names,
    sensitive: CallSet,
    entering: CallSet,
    containers: HashMap<Owner, Container>,
    pub(super) baselines: HashMap<Arc<Workload>, Baseline>,
    pub(super) board: Board,
    now: Moment,
    window_began: Option<Moment>,
    tally: Tally,
}

impl Detector {
    /// A detector that knows nobody yet.
    #[must_use]
    pub(crate) fn new(settings: Settings, names: Names) -> Self {
        Self {
            sensitive: names.numbers(settings.sensitive.iter().copied()),
            entering: names.numbers(ENTERING),
            settings,
            names,
            containers: HashMap::new(),
            baselines: HashMap::new(),
            board: Board::default(),
            now: Moment::default(),
            window_began: None,
            tally: Tally::default(),
        }
    }

    /// What it was told.
    #[must_use]
    pub(crate) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What somebody called since the last time, by number; and how its calls failed, by error
    /// number, if that is watched.
    pub(crate) fn calls(
        &mut self,
        owner: &Owner,
        who: &Who,
        calls: impl IntoIterator<Item = (u32, u64)>,
        errors: Option<&[(u32, u64)]>,
    ) {
        let now = self.now.boot_ns;
        let Some(container) = self.container(owner, who) else { return };
        let calls = calls.into_iter().filter(|(_, calls)| *calls > 0);
        for (number, calls) in calls {
            let Ok(number) = u16::try_from(number) else { continue };
            *container.fresh.entry(Measure::Call(number)).or_default() += calls;
            container.active_ns = now;
        }
        container.errors_watched |= errors.is_some();
        for (error, calls) in errors.unwrap_or_default() {
            let known = ERRORS.iter().find(|(number, _)| u32::from(*number) == *error);
            if let Some((number, _)) = known.filter(|_| *calls > 0) {
                *container.fresh.entry(Measure::Error(*number)).or_default() += calls;
            }
        }
    }

    /// A call was told of. True for one that a runtime made, to prepare a container or to enter it.
    pub(crate) fn told(&mut self, owner: &Owner, who: &Who, told: Told) -> bool {
        let number = u16::try_from(told.number).ok();
        let number = number.filter(|n| self.sensitive.contains(*n) && told.program.is_none());
        let of_runtimes = number.is_some_and(|number| self.entering.contains(number));
        let now = self.now.boot_ns;
        let Some(container) = self.container(owner, who) else { return false };
        let excused =
            of_runtimes && (container.is_prepared(now) || container.programs.is_of_runtime(&told));
        if let Some(number) = number {
            container.sensitive.told(number, &told, excused);
        }
        container.told(told);
        excused
    }

    /// Somebody is gone. Its last calls are to be given before.
    #[cfg(test)]
    pub(super) fn ended(&mut self, owner: &Owner) {
        if let Some(container) = self.containers.get_mut(owner) {
            container.ended = true;
        }
    }

    /// Everybody else is gone.
    pub(crate) fn ended_unless(&mut self, is_there: impl Fn(&Owner) -> bool) {
        for (owner, container) in &mut self.containers {
            container.ended |= !is_there(owner);
        }
    }

    fn container(&mut self, owner: &Owner, who: &Who) -> Option<&mut Container> {
        let is_full = self.containers.len() >= CONTAINERS;
        let container = match self.containers.entry(owner.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if is_full => {
                self.tally.containers += 1;
                return None;
            }
            Entry::Vacant(place) => place.insert(Container::new(who.clone(), self.now.boot_ns)),
        };
        let same =
            Arc::ptr_eq(&container.who.identity, &who.identity) && container.who.image == who.image;
        if !same {
            container.workload = None;
        }
        container.who.clone_from(who);
        Some(container)
    }

    /// Judges what was heard since the last time. Gives findings that were raised or are over.
    ///
    /// To be called every second or so, and less often at the price of finding things later.
    pub(crate) fn tick(&mut self, now: Moment) -> Vec<Finding> {
        self.now = now;
        let began = *self.window_began.get_or_insert(now);
        let window = Duration::from_nanos(now.boot_ns.saturating_sub(began.boot_ns));
        self.place();
        let judge = Judge {
            settings: &self.settings,
            names: &self.names,
            sensitive: &self.sensitive,
            entering: &self.entering,
            now,
            window_s: window.as_secs_f64(),
        };
        for container in self.containers.values_mut() {
            let Some(workload) = container.workload.clone() else { continue };
            if let Some(baseline) = self.baselines.get_mut(&workload) {
                judge.look(container, &workload, baseline, &mut self.board);
            }
        }
        if window >= self.settings.window {
            let rates = end_windows(judge, &mut self.containers, &self.baselines, &mut self.board);
            self.remember(rates, window);
            self.window_began = Some(now);
        }
        let is_idle = |container: &Container| {
            u128::from(now.boot_ns.saturating_sub(container.active_ns)) > IDLE.as_nanos()
        };
        self.containers.retain(|_, container| !container.ended && !is_idle(container));
        self.board.tick(now, self.settings.quiet)
    }

    /// Gives every container whose names are known its workload.
    fn place(&mut self) {
        let homeless: Vec<Owner> = self
            .containers
            .iter()
            .filter(|(_, c)| c.workload.is_none() && !c.awaits_name(self.now.boot_ns))
            .map(|(owner, _)| owner.clone())
            .collect();
        // Looked for at most once, however many have no room.
        let mut idle = None;
        for owner in homeless {
            let workload = self.containers.get(&owner).and_then(|c| c.who.workload());
            let placed = match &workload {
                Some(workload) => self.baseline_of(workload, &mut idle),
                None => None,
            };
            let Some(container) = self.containers.get_mut(&owner) else { continue };
            if placed.is_none() {
                container.fresh.clear();
                if workload.is_some() && !container.refused {
                    container.refused = true;
                    self.tally.workloads += 1;
                }
            }
            container.workload = placed;
        }
    }

    /// The key under which a workload is kept, from now on if it was not. `idle`: workloads that may
    /// go for it, the one that was quiet for longest last.
    fn baseline_of(
        &mut self,
        workload: &Workload,
        idle: &mut Option<Vec<Arc<Workload>>>,
    ) -> Option<Arc<Workload>> {
        if let Some((known, _)) = self.baselines.get_key_value(workload) {
            return Some(Arc::clone(known));
        }
        if self.baselines.len() >= WORKLOADS {
            let oldest = idle.get_or_insert_with(|| self.idle()).pop()?;
            self.baselines.remove(&oldest);
            self.tally.forgotten += 1;
        }
        let workload = Arc::new(workload.clone());
        self.baselines.insert(Arc::clone(&workload), Baseline::new(self.now.unix_ns));
        Some(workload)
    }

    fn idle(&self) -> Vec<Arc<Workload>> {
        let alive: HashSet<_> =
            self.containers.values().filter_map(|c| c.workload.as_ref()).collect();
        let idle = self.baselines.iter().filter(|(workload, _)| !alive.contains(workload));
        let mut idle: Vec<_> =
            idle.map(|(w, baseline)| (baseline.active_ns, Arc::clone(w))).collect();
        idle.sort_by_key(|(active_ns, _)| std::cmp::Reverse(*active_ns));
        idle.into_iter().map(|(_, workload)| workload).collect()
    }

    /// Takes the rates of a window for history.
    fn remember(&mut self, rates: HashMap<Arc<Workload>, Window>, length: Duration) {
        for baseline in self.baselines.values_mut() {
            baseline.watched += length;
        }
        for (workload, window) in rates {
            let Some(baseline) = self.baselines.get_mut(&workload) else { continue };
            let (number, error_number) = (baseline.windows, baseline.error_windows);
            baseline.windows = number.saturating_add(1);
            if window.errors_watched {
                baseline.error_windows = error_number.saturating_add(1);
            }
            for measure in window.rates.keys() {
                if baseline.history(*measure).is_none() {
                    self.tally.rates += 1;
                }
            }
            for (measure, history) in &mut baseline.histories {
                let number = match measure {
                    Measure::Call(_) => number,
                    Measure::Error(_) if window.errors_watched => error_number,
                    Measure::Error(_) => continue,
                };
                let (rate, departs) = window.rates.get(measure).copied().unwrap_or_default();
                if !departs {
                    history.accept(rate.now, rate.kept_up);
                }
                if !departs || number.is_multiple_of(TAKEN) {
                    history.write(number, rate.now);
                }
            }
        }
    }

    /// Findings that last, and those that are over and remembered.
    pub(crate) fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.board.all()
    }

    /// Findings that last, by kind.
    #[must_use]
    pub(crate) fn lasting(&self) -> [(Kind, u64); 4] {
        Kind::ALL.map(|kind| {
            let of_kind = self.board.lasting().filter(|finding| finding.kind == kind);
            (kind, u64::try_from(of_kind.count()).unwrap_or(u64::MAX))
        })
    }

    /// Findings so far by namespace, by owner or unit, and by kind.
    #[must_use]
    pub(crate) fn totals(&self) -> &BTreeMap<(String, String, Kind), u64> {
        &self.board.totals
    }

    /// What was not judged or not reported.
    #[must_use]
    pub(crate) const fn tally(&self) -> Tally {
        Tally { withheld: self.board.withheld, ..self.tally }
    }

    /// What has been learnt, to be kept.
    #[must_use]
    pub(crate) fn save(&self) -> Saved {
        let mut workloads: Vec<_> = self.baselines.iter().collect();
        workloads.sort_by_key(|(_, baseline)| std::cmp::Reverse(baseline.active_ns));
        Saved::new(workloads.into_iter().map(|(w, b)| (Workload::clone(w), b.clone())).collect())
    }

    /// Goes on from what was learnt before.
    pub(crate) fn restore(&mut self, saved: Saved) {
        for (workload, baseline) in saved.workloads.into_iter().take(WORKLOADS) {
            self.baselines.insert(Arc::new(workload), baseline);
        }
    }
}

/// The busiest of a workload's containers in a window.
#[derive(Debug, Default)]
struct Window {
    errors_watched: bool,
    /// Whether some container's rate was a departure.
    rates: BTreeMap<Measure, (Rate, bool)>,
}

fn end_windows(
    judge: Judge<'_>,
    containers: &mut HashMap<Owner, Container>,
    baselines: &HashMap<Arc<Workload>, Baseline>,
    board: &mut Board,
) -> HashMap<Arc<Workload>, Window> {
    let mut windows: HashMap<Arc<Workload>, Window> = HashMap::new();
    for container in containers.values_mut() {
        let Some(workload) = container.workload.clone() else { continue };
        let Some(baseline) = baselines.get(&workload) else { continue };
        let rates = judge.end_window(container, &workload, baseline, board);
        if rates.is_empty() {
            continue;
        }
        let window = windows.entry(workload).or_default();
        window.errors_watched |= container.errors_watched;
        for (measure, (rate, departs)) in rates {
            let (most, some) = window.rates.entry(measure).or_default();
            most.now = most.now.max(rate.now);
            most.kept_up = most.kept_up.max(rate.kept_up);
            *some |= departs;
        }
    }
    windows
}
