//! The slice's task: owns the probe, the interfaces and the tables, and is asked by [`Command`].

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use orb8_common::network::NetworkFlowEvent;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    Command, Context, NAME, NetworkError, Snapshot,
    attach::named_interfaces_exist,
    attacher::Attacher,
    clock::Clock,
    early::EarlyTraffic,
    filter::EventFilter,
    give::Last,
    host_sockets::HostSockets,
    interfaces::{Interface, Interfaces, Serial, Wanted},
    maps::{KernelCounts, Probe},
    peers::Peers,
    pods::{Accounts, Owner},
    query,
    survey::Surveyor,
    table::FlowTable,
};
use crate::{
    aggregator::{GONE_MOST, oldest_kept, slice_of},
    collector::Collector,
    enricher::Enricher,
    ledger::{Amount, LossPoint, Stage},
    netlink::{
        links::{Link, Links},
        tc::Leftovers,
        watch::LinkWatch,
    },
};

/// How long the end waits for filters to be removed: enough for some hundred.
const WAIT_FOR_FILTERS: Duration = Duration::from_secs(3);
/// How long the end waits for links to be detached: enough for some fifty.
const WAIT_FOR_LINKS: Duration = Duration::from_secs(1);
/// Ticks between clean-ups of what left the window.
const TICKS_PER_CLEANUP: u64 = 5;

/// Runs the task until it is stopped or nobody can ask it any more.
pub(super) async fn run(
    context: Context,
    inbox: mpsc::Receiver<Command>,
    ready: oneshot::Sender<Result<(), NetworkError>>,
) {
    match Task::start(context).await {
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
    pub(super) clock: Clock,
    pub(super) started_ns: u64,
    pub(super) ring_pending: u64,
    pub(super) interfaces: Interfaces,
    pub(super) table: FlowTable,
    pub(super) accounts: Accounts,
    pub(super) kernel: KernelCounts,
    pub(super) links: Links,
    pub(super) link_watch: LinkWatch,
    pub(super) known_links: HashMap<u32, Link>,
    pub(super) default_route: Vec<u32>,
    /// What was reconciled with last.
    pub(super) wanted: Option<Wanted>,
    /// When an interface was last attached to.
    pub(super) attached_at: Option<Instant>,
    /// Gone from the node; their last packets are still to be taken.
    pub(super) retiring: Vec<Serial>,
    pub(super) attacher: Attacher,
    /// Attached while packets passed: where the kernel's counters start is still to be found.
    pub(super) unbalanced: VecDeque<Serial>,
    pub(super) balanced: Option<Instant>,
    pub(super) early: EarlyTraffic,
    pub(super) surveyor: Surveyor,
    /// What was there at the start is attached to: what comes now is new.
    pub(super) follows: bool,
    pub(super) surveyed: Option<Instant>,
    pub(super) leftovers: Leftovers,
    pub(super) cgroup_changes: watch::Receiver<u64>,
    pub(super) filter: EventFilter,
    pub(super) host_sockets: HostSockets,
    pub(super) enricher: Enricher,
    pub(super) peers: Peers,
    /// Counts changes of facts that attributions rest on.
    pub(super) epoch: u32,
    pub(super) flows_in_kernel: usize,
    pods_generation: u64,
    ticks: u64,
}

impl Task {
    async fn start(context: Context) -> Result<Self, NetworkError> {
        let link_watch = LinkWatch::open()?;
        let mut links = Links::open()?;
        let there = links.snapshot().await?;
        named_interfaces_exist(&context.config.interfaces, &there)?;
        let mut probe = Probe::load(&context.config)?;
        let events =
            Collector::new(probe.object()?.ring("FLOW_EVENTS")?, context.ledger.clone(), NAME);
        let clock = Clock::new(probe.pulse()?);
        let filter = EventFilter::of(probe.object()?)?;
        let host_sockets = HostSockets::start(&mut probe, &context.cgroups);
        let attacher = Attacher::start(probe.take_object()?, context.config.tc_attach)?;
        let mut task = Self {
            probe,
            events,
            started_ns: clock.now_ns(),
            clock,
            ring_pending: 0,
            interfaces: Interfaces::default(),
            table: FlowTable::new(),
            accounts: Accounts::new(context.ledger.clone()),
            kernel: KernelCounts::default(),
            links,
            link_watch,
            known_links: there.into_iter().map(|link| (link.index, link)).collect(),
            default_route: Vec::new(),
            wanted: None,
            attached_at: None,
            retiring: Vec::new(),
            attacher,
            unbalanced: VecDeque::new(),
            balanced: None,
            early: EarlyTraffic::default(),
            surveyor: Surveyor::start()?,
            follows: false,
            surveyed: None,
            leftovers: Leftovers::open()?,
            cgroup_changes: context.cgroups.changes(),
            filter,
            host_sockets,
            enricher: Enricher::new(Arc::clone(&context.pods)),
            peers: Peers::new(
                &context.config.node_name,
                Arc::clone(&context.pods),
                context.peers.clone(),
            ),
            epoch: 1,
            pods_generation: context.pods.generation(),
            flows_in_kernel: 0,
            ticks: 0,
            context,
        };
        task.begin_host_sockets();
        task.remove_leftovers().await;
        task.read_routes().await;
        task.reconcile();
        task.await_attached().await;
        task.follows = true;
        task.report_state();
        task.await_owners().await;
        Ok(task)
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut drain = interval(self.context.config.event_interval);
        let mut tick = interval(self.context.config.tick);
        drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                command = inbox.recv() => match command {
                    Some(Command::Stop(done)) => {
                        self.stop().await;
                        let _nobody = done.send(());
                        return;
                    }
                    Some(command) => self.answer(command).await,
                    None => return self.stop().await,
                },
                change = self.link_watch.next() => self.links_changed(change).await,
                (serial, outcome) = self.attacher.outcome() => self.attached(serial, outcome),
                found = self.surveyor.found() => self.owners_found(found).await,
                // A pod's cgroup is made before its interface.
                Ok(()) = self.cgroup_changes.changed() => self.expect_pods(),
                _ = tick.tick() => self.tick().await,
                _ = drain.tick() => {
                    let read = self.drain();
                    self.follow_new_cgroups();
                    self.seek_owners();
                    self.find_baselines().await;
                    self.flush(Last::Nobody);
                    self.update_filter();
                    if read * size_of::<NetworkFlowEvent>() * 4
                        > self.context.config.ring_buffer_size as usize
                    {
                        drain.reset_immediately(); // a quarter of the ring: more is coming
                    }
                }
            }
        }
    }

    async fn answer(&mut self, command: Command) {
        self.await_owners().await;
        // Whoever hung up in the meantime needs no answer.
        match command {
            Command::Flows(query, reply) => {
                self.settle(Last::Nobody);
                drop(reply.send(query::flows(self, &query)));
            }
            Command::Pods(query, reply) => {
                self.settle(Last::Nobody);
                drop(reply.send(query::pods(self, &query)));
            }
            Command::Subscribe(id, filter, reply) => {
                self.settle(Last::Nobody);
                let known = query::check(self, &filter);
                if known.is_ok() {
                    self.context.live.activate(id, NAME);
                    self.update_filter();
                }
                drop(reply.send(known));
            }
            Command::Unsubscribe(id, reply) => {
                self.settle(Last::One(id));
                let _nobody = reply.send(());
            }
            Command::Snapshot(reply) => {
                let snapshot = self.snapshot().await;
                drop(reply.send(snapshot));
            }
            Command::Totals(reply) => {
                self.settle(Last::Nobody);
                drop(reply.send(self.accounts.workloads()));
            }
            // Taken by `run`.
            Command::Stop(_) => {}
        }
    }

    /// Takes everything that happened so far, and gives it to its owners.
    pub(super) fn settle(&mut self, last: Last) {
        self.drain();
        self.harvest();
        self.flush(last);
    }

    async fn tick(&mut self) {
        self.ticks += 1;
        self.follow_announced().await;
        let generation = self.context.pods.generation();
        if generation != self.pods_generation {
            self.pods_generation = generation;
            self.epoch += 1;
            self.rename();
            self.rename_early();
        }
        self.peers.tick();
        self.follow_host_sockets();
        self.settle_early(false);
        if self.ticks.is_multiple_of(TICKS_PER_CLEANUP) {
            self.clean_up();
            // A default route comes and goes without a word from its interface.
            self.read_routes().await;
            self.reconcile();
        }
    }

    fn clean_up(&mut self) {
        let oldest = oldest_kept(slice_of(self.clock.now_ns()));
        let most = (self.context.config.flow_table_size as usize).saturating_mul(2);
        let early = self.table.forget(oldest, most);
        if early > 0 {
            self.lose(Stage::History, "flow_history_full", early as u64, 0);
        }
        self.accounts.forget(oldest);
        self.forget_early(oldest);
        self.forget_gone();
        self.enricher.forget_unused();
    }

    /// Forgets who is gone and left the window, and who had to make room for others that are gone.
    fn forget_gone(&mut self) {
        let early = self.interfaces.forget(Instant::now(), GONE_MOST);
        if early.is_empty() {
            return;
        }
        let mut owners = HashMap::new();
        for interface in early.iter().map(|(_, interface)| interface) {
            let by = self.owner_behind(interface);
            let owner = Owner::of(by.identity.as_deref(), by.by);
            if let (Owner::Named(_) | Owner::Unit(_), Some(at)) = (&owner, interface.gone) {
                owners.insert(owner, self.boot_ns_at(at));
            }
        }
        let early: HashSet<Serial> = early.into_iter().map(|(serial, _)| serial).collect();
        let flows = self.table.forget_of(|serial| early.contains(&serial));
        let records = flows + self.accounts.forget_gone(&owners);
        self.lose(Stage::History, "gone_pods_full", records as u64, 0);
    }

    pub(super) fn lose(&self, stage: Stage, reason: &'static str, records: u64, packets: u64) {
        let point = LossPoint { signal: NAME, stage, reason };
        self.context.ledger.lost(point, Amount { records, packets, calls: 0 });
    }

    async fn snapshot(&mut self) -> Snapshot {
        self.settle(Last::Nobody);
        let links = async { Links::open()?.snapshot().await };
        let links = self.while_following(links).await.unwrap_or_default();
        query::snapshot(self, &links)
    }

    async fn stop(&mut self) {
        self.host_sockets.detach();
        self.attacher.end();
        // Filters first: unlike links they do not end with the process. Twice, for the one that was just
        // being attached.
        let filters = (true, WAIT_FOR_FILTERS);
        for (filters, wait) in [filters, filters, (false, WAIT_FOR_LINKS)] {
            while let Some((serial, outcome)) = self.attacher.outcome_by_now() {
                self.attached(serial, outcome);
            }
            let attached = self.interfaces.attached();
            let attached = attached.filter(|(_, i)| (i.attached == "clsact") == filters);
            let attached: Vec<_> = attached.map(|(serial, i)| (serial, i.index)).collect();
            for (serial, index) in attached {
                let interface = self.interfaces.get_mut(serial);
                if let Some(attachments) = interface.and_then(Interface::release) {
                    self.attacher.leave(serial, index, attachments);
                }
            }
            let _late = tokio::time::timeout(wait, self.attacher.settled()).await;
        }
        // What is left after that ends with the process; what it counts until then is nobody's any more.
        self.settle_early(true);
        self.settle(Last::Everybody);
    }
}
