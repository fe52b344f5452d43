//! The slice's task: owns the probe and the tables, and is asked by [`Command`].

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use orb8_common::syscall::UnslottedKey;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    Command, Context, NAME, SyscallError,
    anomalies::Anomalies,
    ends::Figures,
    events::Last,
    execs::{Call, Execs},
    follow::EventFilter,
    harvest::Taken,
    probe::{KernelCounts, Probe},
    query,
    slots::Slots,
    table::{Accounts, Owner},
    telling::{Listener, Telling},
    watcher::Watcher,
};
use crate::{
    aggregator::{oldest_kept, slice_of},
    clock::{WallClock, boot_ns},
    collector::Collector,
    enricher::Enricher,
    ledger::{Amount, LossPoint, Stage},
    live::SubscriberId,
    status::State,
};

/// Ticks between clean-ups of what left the window.
const TICKS_PER_CLEANUP: u64 = 5;
/// While somebody listens the ring is drained this often: programs that start open files by the dozen.
const WHILE_HEARD: Duration = Duration::from_millis(20);

/// Runs the task until it is stopped or nobody can ask it any more.
pub(super) async fn run(
    context: Context,
    inbox: mpsc::Receiver<Command>,
    ready: oneshot::Sender<Result<(), SyscallError>>,
) {
    match Task::start(context) {
        Ok(task) => {
            if ready.send(Ok(())).is_ok() {
                task.run(inbox).await;
            }
        }
        Err(error) => drop(ready.send(Err(error))),
    }
}

pub(super) struct Task {
    pub(super) context: Context,
    pub(super) probe: Probe,
    pub(super) events: Collector,
    pub(super) wall: WallClock,
    pub(super) started_ns: u64,
    pub(super) slots: Slots,
    pub(super) accounts: Accounts,
    /// Whose a cgroup is, as long as anything of it is to be counted.
    pub(super) owners: HashMap<u64, Owner>,
    /// Cgroups that exist.
    pub(super) alive: HashSet<u64>,
    /// Those of them that were there before the probe was attached.
    pub(super) older: HashSet<u64>,
    /// Cgroups that called and that nobody knows, and since when.
    pub(super) unknown: HashMap<u64, Instant>,
    /// What was taken of the counters of cgroups without a slot.
    pub(super) unslotted: HashMap<UnslottedKey, Taken>,
    pub(super) kernel: KernelCounts,
    /// Where the ends of calls are watched.
    pub(super) ends: Option<Watcher>,
    /// Ends of calls by cgroups of which it is not known whose they are.
    pub(super) ended: HashMap<u64, Figures>,
    /// Calls of all units together, closed accounts included.
    pub(super) units: BTreeMap<u16, u64>,
    /// Calls that were nobody's so far.
    pub(super) nobodys: u64,
    pub(super) execs: Execs,
    /// Events of containers that are not known yet, in order.
    pub(super) waiting: VecDeque<Call>,
    pub(super) anomalies: Anomalies,
    pub(super) telling: Telling,
    pub(super) listeners: HashMap<SubscriberId, Listener>,
    pub(super) filter: EventFilter,
    pub(super) cgroup_changes: watch::Receiver<u64>,
    pub(super) enricher: Enricher,
    /// Bytes that the ring held when it was last drained.
    pub(super) ring_used: u64,
    pub(super) pods_generation: u64,
    ticks: u64,
}

impl Task {
    fn start(context: Context) -> Result<Self, SyscallError> {
        let mut probe = Probe::load(&context.config)?;
        let ring = probe.object()?.ring("SYSCALL_EVENTS")?;
        let telling = Telling::of(probe.object()?, &context.config)?;
        let filter = EventFilter::of(probe.object()?)?;
        let mut task = Self {
            events: Collector::new(ring, context.ledger.clone(), NAME),
            wall: WallClock::default(),
            started_ns: 0,
            slots: Slots::new(probe.slots()),
            accounts: Accounts::default(),
            owners: HashMap::new(),
            alive: HashSet::new(),
            older: HashSet::new(),
            unknown: HashMap::new(),
            unslotted: HashMap::new(),
            kernel: KernelCounts::default(),
            ends: None,
            ended: HashMap::new(),
            units: BTreeMap::new(),
            nobodys: 0,
            execs: Execs::default(),
            waiting: VecDeque::new(),
            anomalies: Anomalies::of(&context.config),
            telling,
            listeners: HashMap::new(),
            filter,
            cgroup_changes: context.cgroups.changes(),
            enricher: Enricher::new(Arc::clone(&context.pods)),
            ring_used: 0,
            pods_generation: context.pods.generation(),
            ticks: 0,
            probe,
            context,
        };
        // Before the first call can be counted: who has a slot from the start costs less.
        task.follow_cgroups();
        if task.context.config.syscall_latency {
            task.watch_ends();
        }
        task.probe.attach()?;
        // After it: what is not among these was made under the probe's eyes.
        task.follow_cgroups();
        task.older.clone_from(&task.alive);
        task.started_ns = boot_ns();
        task.update_telling();
        task.report_state();
        Ok(task)
    }

    /// Counts go on without.
    fn watch_ends(&mut self) {
        let attached = self.probe.attach_ends().and_then(|()| Watcher::of(self.probe.object()?));
        match attached {
            Ok(watcher) => self.ends = Some(watcher),
            Err(why) => {
                self.probe.missing.push(format!("the ends of calls are not watched: {why}"));
            }
        }
    }

    fn report_state(&self) {
        let mut missing = self.probe.missing.clone();
        missing.extend(self.context.cgroups.missing());
        let state = match missing.is_empty() {
            true => State::Active,
            false => State::Degraded(missing.join("; ")),
        };
        self.context.status.set(NAME, state);
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let usual = self.context.config.event_interval;
        let mut drain = interval(usual);
        let mut tick = interval(self.context.config.tick);
        drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                command = inbox.recv() => match command {
                    Some(Command::Stop(done)) => {
                        self.stop();
                        let _nobody = done.send(());
                        return;
                    }
                    Some(command) => self.answer(command),
                    None => return self.stop(),
                },
                _ = tick.tick() => self.tick(),
                _ = drain.tick() => {
                    self.drain(Last::Nobody);
                    self.follow_changes();
                    if self.ring_used * 4 > u64::from(self.context.config.syscall_ring_buffer_size) {
                        drain.reset_immediately(); // a quarter of the ring: more is coming
                    } else {
                        drain.reset_after(if self.listeners.is_empty() { usual } else { WHILE_HEARD });
                    }
                }
            }
        }
    }

    fn answer(&mut self, command: Command) {
        // Whoever hung up in the meantime needs no answer.
        match command {
            Command::Calls(query, reply) => {
                self.harvest();
                drop(reply.send(query::calls(self, &query)));
            }
            Command::Profiles(query, reply) => {
                self.harvest();
                drop(reply.send(query::profiles(self, &query)));
            }
            Command::Anomalies(query, reply) => {
                self.drain(Last::Nobody);
                self.harvest();
                self.judge();
                drop(reply.send(query::anomalies(self, &query)));
            }
            Command::Subscribe(id, request, reply) => {
                self.drain(Last::Nobody);
                let checked = query::check_stream(self, &request);
                if checked.is_ok() {
                    self.context.live.activate(id, NAME);
                    self.update_telling();
                }
                drop(reply.send(checked));
            }
            Command::Unsubscribe(id, reply) => {
                self.drain(Last::One(id));
                let _nobody = reply.send(());
            }
            Command::Snapshot(reply) => {
                self.harvest();
                drop(reply.send(query::snapshot(self)));
            }
            Command::Totals(reply) => {
                self.harvest();
                let workloads = self.accounts.workloads();
                self.count_folded();
                drop(reply.send(workloads));
            }
            // Taken by `run`.
            Command::Stop(_) => {}
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.wall.follow();
        self.follow_cgroups();
        self.harvest();
        let generation = self.context.pods.generation();
        if generation != self.pods_generation {
            self.pods_generation = generation;
            self.rename();
        }
        self.judge();
        self.keep_learnt();
        if self.ticks.is_multiple_of(TICKS_PER_CLEANUP) {
            self.clean_up();
        }
    }

    fn clean_up(&mut self) {
        let nobodys = self.without_owner();
        let Self { alive, owners, slots, unslotted, accounts, .. } = self;
        let mut counted: HashSet<u64> = slots.used().map(|(_, cgroup)| cgroup).collect();
        counted.extend(unslotted.keys().map(|key| key.cgroup_id));
        owners.retain(|cgroup, _| alive.contains(cgroup) || counted.contains(cgroup));
        self.older.retain(|cgroup| alive.contains(cgroup));
        self.unknown.retain(|cgroup, _| counted.contains(cgroup));
        let there = owners.iter().filter(|(cgroup, _)| alive.contains(cgroup));
        let there: HashSet<&Owner> = there.map(|(_, owner)| owner).collect();
        for (owner, account) in accounts.iter_mut() {
            account.lives = there.contains(owner);
            if account.lives {
                account.nobodys.1 = nobodys;
            }
        }
        accounts.forget(oldest_kept(slice_of(boot_ns())));
        self.enricher.forget_unused();
        let (forgotten, gone) = (accounts.take_forgotten(), accounts.take_forgotten_gone());
        if forgotten > 0 {
            self.lose(Stage::Aggregate, "syscall_accounts_full", forgotten);
        }
        if gone > 0 {
            self.lose(Stage::History, "gone_containers_full", gone);
        }
        self.count_folded();
    }

    fn count_folded(&mut self) {
        let folded = self.accounts.take_folded();
        if folded > 0 {
            self.lose(Stage::Aggregate, "workload_totals_full", folded);
        }
    }

    /// Gives names that came late to what was booked under bare ids.
    fn rename(&mut self) {
        for (_, account) in self.accounts.iter_mut() {
            if let Some(identity) = &mut account.attribution.identity
                && let Some(named) = self.enricher.named_by_now(identity)
            {
                *identity = named;
            }
        }
    }

    pub(super) fn lose(&self, stage: Stage, reason: &'static str, records: u64) {
        let point = LossPoint { signal: NAME, stage, reason };
        self.context.ledger.lost(point, Amount::records(records));
    }

    /// Books calls of an owner that was met.
    pub(super) fn book(&mut self, owner: &Owner, calls: &[(u16, u64)], now_ns: u64) {
        if let Owner::Unit(_) = owner {
            for (number, calls) in calls {
                *self.units.entry(*number).or_insert(0) += calls;
            }
        }
        self.accounts.book(owner, calls, now_ns);
        self.judge_calls(owner, calls);
    }

    fn stop(&mut self) {
        self.probe.detach();
        self.drain(Last::Everybody);
        self.harvest();
        self.judge();
        self.anomalies.save();
    }
}
