//! The slice's task: owns the probe, the interfaces and the tables, and is asked by [`Command`].

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use futures_util::FutureExt as _;
use orb8_common::network::{Counts, FlowStats, NetworkFlowEvent};
use orb8_proto::{Event, FlowState, event};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};

use super::{
    Command, Context, NAME, NetworkError, Snapshot,
    clock::Clock,
    interfaces::{Interface, Interfaces, Serial, Side, wanted},
    maps::{FlowId, KernelCounts, Probe, Run, add, is_zero, minus},
    pods::{Accounts, Traffic},
    query, record,
    table::{End, FlowKey, FlowTable},
};
use crate::{
    aggregator::{oldest_kept, slice_of},
    collector::Collector,
    config::WINDOW,
    enricher::{Attribution, Enricher, Evidence},
    k8s::cgroup_tree::CgroupTree,
    ledger::{Amount, LossPoint, Stage},
    live::SubscriberId,
    netlink::{
        links::{Link, Links},
        netns::NetnsResolver,
        tc::{Leftovers, program_held_by_a_process},
        watch::{LinkChange, LinkWatch},
    },
    probe_loader::{Hook, LoadError},
    status::State,
};

/// A closed connection's last acknowledgements come within this time.
const LINGER_NS: u64 = 2_000_000_000;
/// With the table nearly full, flows are idle sooner. Far above the few jiffies for which a CPU may
/// still count on an entry.
const IDLE_UNDER_PRESSURE_NS: u64 = 5_000_000_000;
/// A container is looked for this often per flow; its cgroup may be younger than the flow.
const CONTAINER_TRIES: u8 = 5;
/// Events per drain, so that a storm of them cannot keep the task from its other duties.
const DRAIN: usize = 65_536;
/// Ticks between clean-ups of what left the window.
const TICKS_PER_CLEANUP: u64 = 5;

/// Runs the task on the calling thread until it is stopped or nobody can ask it any more.
pub(super) fn run(
    context: Context,
    inbox: mpsc::Receiver<Command>,
    ready: oneshot::Sender<Result<(), NetworkError>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _nobody = ready.send(Err(NetworkError::Io { what: "tokio runtime", error }));
            return;
        }
    };
    runtime.block_on(async {
        match Task::start(context).await {
            Ok(task) => {
                if ready.send(Ok(())).is_ok() {
                    task.run(inbox).await;
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
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
    links: Links,
    link_watch: LinkWatch,
    known_links: HashMap<u32, Link>,
    /// Gone from the node; their last packets are still to be taken.
    retiring: Vec<Serial>,
    netns: NetnsResolver,
    leftovers: Leftovers,
    cgroups: Option<CgroupTree>,
    enricher: Enricher,
    /// Counts changes of facts that attributions rest on.
    epoch: u32,
    pods_generation: u64,
    flows_in_kernel: usize,
    ticks: u64,
}

/// Who hears that the trace has stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Nobody,
    One(SubscriberId),
    Everybody,
}

impl Task {
    async fn start(context: Context) -> Result<Self, NetworkError> {
        let link_watch = LinkWatch::open()?;
        let mut links = Links::open()?;
        let there = links.snapshot().await?;
        named_interfaces_exist(&context.config.interfaces, &there)?;
        let mut probe = Probe::load(&context.config)?;
        let events =
            Collector::new(probe.object().ring("FLOW_EVENTS")?, context.ledger.clone(), NAME);
        let clock = Clock::new(probe.pulse()?);
        let cgroups =
            CgroupTree::open().inspect_err(|e| tracing::warn!("containers stay unnamed: {e}")).ok();
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
            retiring: Vec::new(),
            netns: NetnsResolver::open()?,
            leftovers: Leftovers::open()?,
            cgroups,
            enricher: Enricher::new(Arc::clone(&context.pods)),
            epoch: 1,
            pods_generation: context.pods.generation(),
            flows_in_kernel: 0,
            ticks: 0,
            context,
        };
        task.remove_leftovers().await;
        task.reconcile().await;
        task.resolve_owners().await;
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
                _ = tick.tick() => self.tick().await,
                _ = drain.tick() => {
                    let read = self.drain();
                    self.flush(false, Last::Nobody);
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
                    self.context.live.activate(id);
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
            // Taken by `run`.
            Command::Stop(_) => {}
        }
    }

    /// Takes everything that happened so far, and gives it to its owners.
    fn settle(&mut self, last: Last) {
        self.drain();
        self.harvest();
        self.flush(true, last);
    }

    async fn tick(&mut self) {
        self.ticks += 1;
        let generation = self.context.pods.generation();
        if generation != self.pods_generation {
            self.pods_generation = generation;
            self.epoch += 1;
        }
        self.resolve_owners().await;
        self.drain();
        self.harvest();
        self.flush(false, Last::Nobody);
        if self.ticks.is_multiple_of(TICKS_PER_CLEANUP) {
            self.clean_up();
        }
    }

    fn clean_up(&mut self) {
        let oldest = oldest_kept(slice_of(self.clock.now_ns()));
        let most = (self.context.config.flow_table_size as usize).saturating_mul(2);
        let early = self.table.forget(oldest, most);
        if early > 0 {
            self.lose(Stage::Aggregate, "flow_history_full", early as u64, 0);
        }
        self.accounts.forget(oldest);
        self.interfaces.forget(Instant::now(), WINDOW);
    }

    fn lose(&self, stage: Stage, reason: &'static str, records: u64, packets: u64) {
        let point = LossPoint { signal: NAME, stage, reason };
        self.context.ledger.lost(point, Amount { records, packets });
    }

    /// Life-cycle events: the flows in them have news.
    fn drain(&mut self) -> usize {
        let Self { events, interfaces, table, .. } = self;
        events.drain(DRAIN, |event: NetworkFlowEvent| {
            let id = FlowId { key: event.key, family: event.family };
            take(interfaces, table, id, &event.stats, event.timestamp_ns);
        })
    }

    /// Totals: the flows' entries, the runs that wait, the overflow. Then removes what is over.
    fn harvest(&mut self) {
        if let Err(error) = self.try_harvest() {
            let reason = format!("the flow table cannot be read: {error}");
            self.context.status.set(NAME, State::Failed(reason));
        }
    }

    fn try_harvest(&mut self) -> Result<(), LoadError> {
        let pulse = self.probe.pulse()?;
        self.ring_pending = pulse.ring_pending;
        self.clock.advance(pulse);
        let io = |error| LoadError::MapIo { name: "FLOWS".into(), error };
        let mut over = Vec::new();
        let mut in_kernel = 0;
        let mut torn = false;
        {
            let retiring: HashSet<u32> = self.retiring.iter().map(|serial| serial.0).collect();
            let limits = self.idle_limits();
            let Self { probe, interfaces, table, clock, .. } = self;
            let now = clock.now_ns();
            probe
                .each_flow(|id, stats| {
                    in_kernel += 1;
                    let last_ns = clock.boot_ns(stats.last_jiffies);
                    let serial = take(interfaces, table, id, &stats, last_ns);
                    if let Some(end) = over_since(&stats, now.saturating_sub(last_ns), limits)
                        .or_else(|| serial.is_none().then_some(End::InterfaceGone))
                        .or_else(|| {
                            let gone = serial.is_some_and(|s| retiring.contains(&s.0));
                            gone.then_some(End::InterfaceGone)
                        })
                    {
                        over.push((id, end));
                    }
                })
                .map_err(io)?;
        }
        self.flows_in_kernel = in_kernel;
        let mut running = HashMap::new();
        for (id, stats, run) in self.probe.running_flows().map_err(io)? {
            let last_ns = self.clock.boot_ns(stats.last_jiffies);
            take(&mut self.interfaces, &mut self.table, id, &stats, last_ns);
            running.insert(id, run);
        }
        for (id, end) in over {
            match running.get(&id).copied().unwrap_or(Run::Settled) {
                Run::Settled => self.remove(id, end).map_err(io)?,
                // No more packets come by an interface that is gone, so what waits was just taken.
                // The probe will find no entry to add it to, and let it be.
                Run::Waiting if end == End::InterfaceGone => self.remove(id, end).map_err(io)?,
                Run::Waiting => {}
                Run::Torn => torn = true,
            }
        }
        self.take_overflow().map_err(io)?;
        if !torn {
            self.retire().map_err(io)?;
        }
        self.count_kernel_losses().map_err(io)
    }

    fn idle_limits(&self) -> (u64, u64) {
        let idle = u64::try_from(self.context.config.flow_idle.as_nanos()).unwrap_or(u64::MAX);
        let full = self.flows_in_kernel * 5 > self.context.config.flow_table_size as usize * 4;
        (LINGER_NS, if full { idle.min(IDLE_UNDER_PRESSURE_NS) } else { idle })
    }

    fn remove(&mut self, id: FlowId, end: End) -> std::io::Result<()> {
        let Some(stats) = self.probe.take_flow(&id)? else { return Ok(()) };
        let last_ns = self.clock.boot_ns(stats.last_jiffies);
        match take(&mut self.interfaces, &mut self.table, id, &stats, last_ns) {
            Some(serial) => self.table.end(FlowKey::new(id, serial), end),
            // Nobody's any more: it should have been taken before its interface was forgotten.
            None => self.lose(Stage::Collect, "unknown_interface", 0, stats.counts.packets),
        }
        Ok(())
    }

    fn take_overflow(&mut self) -> std::io::Result<()> {
        let serials: Vec<(Serial, u32)> = self
            .interfaces
            .all()
            .filter(|(_, i)| i.gone.is_none())
            .map(|(s, i)| (s, i.index))
            .collect();
        for (serial, index) in serials {
            let totals = self.probe.overflow(index)?;
            for (at, hook) in [Hook::Ingress, Hook::Egress].into_iter().enumerate() {
                let Some(interface) = self.interfaces.get_mut(serial) else { continue };
                let new = minus(&totals[at], &interface.overflow_taken[at]);
                if is_zero(&new) {
                    continue;
                }
                interface.overflow_taken[at] = totals[at];
                add(&mut interface.totals[at], &new);
                self.book_overflow(serial, hook, new);
            }
        }
        Ok(())
    }

    /// Overflow has no flow, so it goes to the interface's owner at once.
    fn book_overflow(&mut self, serial: Serial, hook: Hook, new: Counts) {
        let attribution = self.interface_attribution(serial);
        let Some(interface) = self.interfaces.get(serial) else { return };
        let direction = record::direction(hook, interface.side);
        let mut traffic = Traffic::of(direction, new);
        traffic.overflow_packets = new.packets;
        let now = self.clock.now_ns();
        self.accounts.book(&attribution, traffic, now, &interface.name);
        if self.context.live.is_heard() {
            let node = &self.context.config.node_name;
            let mut flow = record::overflow(node, interface, direction, &attribution);
            record::set_counts(&mut flow, &new);
            flow.timestamp_ns = self.clock.unix_ns(now);
            let event = self.event(event::Event::NetworkFlow(flow));
            self.context.live.publish(NAME, &event, |_, _| {});
        }
    }

    fn interface_attribution(&mut self, serial: Serial) -> Attribution {
        let interface = self.interfaces.get(serial);
        let local_ip = std::net::Ipv4Addr::UNSPECIFIED.into();
        self.enricher.attribute(Evidence {
            sender_cgroup: None,
            veth_owner: interface.and_then(|i| i.owner.as_ref()),
            local_ip,
            interface_is_host: interface.is_some_and(|i| i.side == Side::Host),
        })
    }

    fn count_kernel_losses(&mut self) -> std::io::Result<()> {
        self.kernel = self.probe.counts()?;
        let stands_at = |reason, records, packets| {
            let point = LossPoint { signal: NAME, stage: Stage::Kernel, reason };
            self.context.ledger.stands_at(point, Amount { records, packets });
        };
        stands_at("ring_full", self.kernel.ring_full, 0);
        stands_at("flow_table_full", 0, self.kernel.table_full);
        stands_at("uncounted", 0, self.kernel.uncounted);
        Ok(())
    }

    /// Interfaces that are gone and whose flows were just removed make room for others.
    fn retire(&mut self) -> std::io::Result<()> {
        for serial in std::mem::take(&mut self.retiring) {
            if let Some(index) = self.interfaces.get(serial).map(|i| i.index) {
                self.probe.forget_overflow(index)?;
            }
            self.interfaces.gone(serial, Instant::now());
        }
        Ok(())
    }

    /// Gives what was taken to its owners and tells whoever listens. Flows whose owner is not known
    /// yet wait, unless `force`d.
    fn flush(&mut self, force: bool, last: Last) {
        let now = Instant::now();
        let heard = self.context.live.is_heard();
        for key in self.table.take_touched() {
            let settled = self.interfaces.get(key.serial()).is_none_or(|i| i.is_settled(now));
            if !settled && !force {
                self.table.postpone(key);
                continue;
            }
            self.attribute(&key, now);
            self.give(&key, heard, last);
        }
    }

    fn give(&mut self, key: &FlowKey, heard: bool, last: Last) {
        let Some(interface) = self.interfaces.get(key.serial()) else { return };
        let Some(flow) = self.table.get_mut(key) else { return };
        let counts = std::mem::take(&mut flow.unsettled);
        let first = !std::mem::replace(&mut flow.started, true);
        if !is_zero(&counts) {
            let direction = record::direction(key.id().hook(), interface.side);
            let traffic = Traffic::of(direction, counts);
            self.accounts.book(&flow.attribution, traffic, flow.last_ns, &interface.name);
        } else if flow.end.is_none() {
            return;
        }
        if !heard {
            return;
        }
        let mut told = record::frame(&self.context.config.node_name, key.id(), flow, interface);
        record::set_counts(&mut told, &counts);
        told.timestamp_ns = self.clock.unix_ns(flow.last_ns);
        told.first_seen_ns = self.clock.unix_ns(flow.first_ns);
        let state = match (flow.end, first) {
            (Some(end), _) => {
                told.end_reason = end.as_str().into();
                FlowState::Ended
            }
            (None, true) => FlowState::Started,
            (None, false) => FlowState::Active,
        };
        told.state = state.into();
        let told = self.event(event::Event::NetworkFlow(told));
        self.context.live.publish(NAME, &told, |subscriber, told| {
            let stops = last == Last::Everybody || last == Last::One(subscriber);
            if let (true, Some(event::Event::NetworkFlow(flow))) = (stops, &mut told.event)
                && flow.end_reason.is_empty()
            {
                flow.state = FlowState::Ended.into();
                flow.end_reason = "trace_stopped".into();
            }
        });
    }

    fn event(&self, event: event::Event) -> Event {
        Event {
            node: self.context.config.node_name.clone(),
            timestamp_ns: self.clock.unix_ns(self.clock.now_ns()),
            event: Some(event),
        }
    }

    /// Names the owner of a flow, when the facts changed since it was last named.
    fn attribute(&mut self, key: &FlowKey, now: Instant) {
        let Some(interface) = self.interfaces.get(key.serial()) else { return };
        let Some(flow) = self.table.get(key) else { return };
        let named = flow.attribution.identity.as_ref().is_some_and(|i| !i.container.is_empty());
        if flow.epoch == self.epoch && (named || flow.tries >= CONTAINER_TRIES) {
            return;
        }
        // The sender's socket names the container; what a container receives is answered by it.
        let sends =
            record::direction(key.id().hook(), interface.side) == orb8_proto::Direction::Egress;
        let cgroup_id = if sends {
            flow.cgroup_id
        } else {
            self.table.get(&key.reverse()).map_or(0, |answer| answer.cgroup_id)
        };
        let sender = match &mut self.cgroups {
            Some(tree) if cgroup_id != 0 => tree.identify(cgroup_id, now).and_then(|c| c.identity),
            _ => None,
        };
        let attribution = self.enricher.attribute(Evidence {
            sender_cgroup: sender.as_ref(),
            veth_owner: interface.owner.as_ref(),
            local_ip: record::local_address(key.id(), interface.side),
            interface_is_host: interface.side == Side::Host,
        });
        if let Some(flow) = self.table.get_mut(key) {
            flow.tries = if flow.epoch == self.epoch { flow.tries + 1 } else { 1 };
            flow.epoch = self.epoch;
            flow.attribution = attribution;
        }
    }

    async fn links_changed(&mut self, change: LinkChange) {
        let mut next = Some(change);
        // A pod that starts announces itself several times.
        while let Some(change) = next {
            match change {
                LinkChange::Up(link) => drop(self.known_links.insert(link.index, link)),
                LinkChange::Gone { index, .. } => {
                    self.known_links.remove(&index);
                    self.begin_retiring(index);
                }
                LinkChange::Resync => match self.links.snapshot().await {
                    Ok(there) => {
                        self.known_links = there.into_iter().map(|l| (l.index, l)).collect();
                    }
                    Err(error) => tracing::warn!("{error}"),
                },
            }
            next = self.link_watch.next().now_or_never();
        }
        self.reconcile().await;
        self.resolve_owners().await;
    }

    fn begin_retiring(&mut self, index: u32) {
        if let Some(serial) = self.interfaces.serial(index)
            && !self.retiring.contains(&serial)
        {
            if let Some(interface) = self.interfaces.get_mut(serial) {
                interface.detach();
            }
            self.retiring.push(serial);
        }
        self.interfaces.refused.remove(&index);
    }

    /// Attaches to what should be traced and is not; detaches from what is and should not.
    async fn reconcile(&mut self) {
        let there: Vec<Link> = self.known_links.values().cloned().collect();
        let no_pods = !there.iter().any(Link::host_side_of_pod);
        let default_route = if self.context.config.interfaces.is_empty() && no_pods {
            self.links.default_route_interfaces().await.unwrap_or_default()
        } else {
            Vec::new()
        };
        let wanted = wanted(&self.context.config, &there, &default_route);
        let indices: HashSet<u32> = wanted.iter().map(|(link, _)| link.index).collect();
        let unwanted: Vec<u32> = self
            .interfaces
            .attached()
            .map(|(_, interface)| interface.index)
            .filter(|index| !indices.contains(index))
            .collect();
        for index in unwanted {
            let ours = self.interfaces.serial(index).and_then(|s| self.interfaces.get(s));
            let qdisc_is_ours = ours.is_some_and(|i| i.qdisc_is_ours);
            self.begin_retiring(index);
            if qdisc_is_ours {
                self.remove_qdisc(index).await;
            }
        }
        for (link, side) in wanted {
            self.attach(&link, side).await;
        }
        self.report_state();
    }

    async fn attach(&mut self, link: &Link, side: Side) {
        if let Some(serial) = self.interfaces.serial(link.index) {
            if !self.retiring.contains(&serial) {
                if let Some(interface) = self.interfaces.get_mut(serial) {
                    interface.nsid = link.peer_nsid;
                    if *interface.name != link.name {
                        interface.name = link.name.as_str().into();
                    }
                }
                return;
            }
            // The index is used again before the last packets of its former owner were taken.
            self.settle(Last::Nobody);
        }
        const ARPHRD_ETHER: u16 = 1;
        let how = self.context.config.tc_attach;
        let ethernet = link.arphrd == ARPHRD_ETHER || link.arphrd == libc::ARPHRD_LOOPBACK;
        match self.probe.attach(&link.name, link.index, ethernet, how) {
            Ok(attachments) => {
                let mut interface = Interface::new(link, side, Instant::now());
                interface.hold(attachments);
                interface.attached_unix_ns = self.clock.unix_ns(self.clock.now_ns());
                if let Ok(Some(now)) = self.links.get(link.index).await {
                    interface.kernel_at_attach = now.counters;
                }
                self.interfaces.refused.remove(&link.index);
                tracing::debug!(interface = link.name, how = interface.attached, "attached");
                self.interfaces.add(interface);
            }
            // It went away again: its removal is announced, or was.
            Err(_) if matches!(self.links.get(link.index).await, Ok(None)) => {
                self.known_links.remove(&link.index);
            }
            Err(error) => {
                let refused = (link.name.clone(), error.to_string());
                self.interfaces.refused.insert(link.index, refused);
            }
        }
    }

    fn report_state(&self) {
        let refused = &self.interfaces.refused;
        let attached = self.interfaces.attached().count();
        let state = match (attached, refused.values().next()) {
            (0, Some((name, why))) => State::Failed(format!("cannot attach to {name}: {why}")),
            (0, None) => State::Degraded(
                "nothing to attach to: no pod's veth, no default route, and no interface was \
                 named; waiting for one"
                    .into(),
            ),
            (_, None) => State::Active,
            (_, Some((name, why))) => State::Degraded(format!(
                "{} of {} interfaces are not traced, such as {name}: {why}",
                refused.len(),
                refused.len() + attached
            )),
        };
        self.context.status.set(NAME, state);
    }

    /// Finds the pods behind veths that have no owner yet.
    async fn resolve_owners(&mut self) {
        let unowned: Vec<(Serial, i32)> = self
            .interfaces
            .all()
            .filter(|(_, interface)| interface.wants_owner())
            .filter_map(|(serial, interface)| Some((serial, interface.nsid?)))
            .collect();
        if unowned.is_empty() {
            return;
        }
        let wanted: Vec<i32> = unowned.iter().map(|(_, nsid)| *nsid).collect();
        let owners = match self.netns.resolve(&wanted).await {
            Ok(owners) => owners,
            Err(error) => return tracing::warn!("{error}"),
        };
        for (serial, nsid) in unowned {
            let identity = owners.get(&nsid).and_then(|owner| owner.identity);
            if let (Some(identity), Some(interface)) = (identity, self.interfaces.get_mut(serial)) {
                interface.owner = Some(identity);
                self.epoch += 1;
            }
        }
    }

    /// Filters of a run that was killed: they count for nobody.
    async fn remove_leftovers(&mut self) {
        let indices: Vec<u32> = self.known_links.keys().copied().collect();
        for index in indices {
            if let Err(error) = self.remove_leftovers_of(index).await {
                tracing::warn!("leftovers of an earlier run: {error}");
            }
        }
    }

    async fn remove_leftovers_of(
        &mut self,
        index: u32,
    ) -> Result<(), crate::netlink::NetlinkError> {
        let mut removed = false;
        for filter in self.leftovers.orb8_filters(index).await? {
            let in_use = match filter.prog_id {
                Some(id) => program_held_by_a_process(id).await.unwrap_or(true),
                None => true,
            };
            if in_use {
                continue;
            }
            self.leftovers.remove(&filter).await?;
            tracing::info!(interface = index, filter = filter.name, "removed a leftover filter");
            removed = true;
        }
        if removed {
            self.leftovers.remove_clsact_if_empty(index).await?;
        }
        Ok(())
    }

    async fn remove_qdisc(&mut self, index: u32) {
        if let Err(error) = self.leftovers.remove_clsact_if_empty(index).await {
            tracing::warn!("{error}");
        }
    }

    async fn snapshot(&mut self) -> Snapshot {
        self.settle(Last::Nobody);
        let links = self.links.snapshot().await.unwrap_or_default();
        query::snapshot(self, &links)
    }

    async fn stop(&mut self) {
        let attached: Vec<(Serial, u32, bool)> =
            self.interfaces.attached().map(|(s, i)| (s, i.index, i.qdisc_is_ours)).collect();
        for (serial, index, qdisc_is_ours) in attached {
            if let Some(interface) = self.interfaces.get_mut(serial) {
                interface.detach();
            }
            if qdisc_is_ours {
                self.remove_qdisc(index).await;
            }
        }
        self.settle(Last::Everybody);
    }
}

/// Books a flow's total as far as it is new; `None` if its interface is not known.
fn take(
    interfaces: &mut Interfaces,
    table: &mut FlowTable,
    id: FlowId,
    stats: &FlowStats,
    last_ns: u64,
) -> Option<Serial> {
    let serial = interfaces.serial(id.key.ifindex)?;
    let new = table.observe(FlowKey::new(id, serial), stats, last_ns);
    if let Some(interface) = interfaces.get_mut(serial) {
        add(&mut interface.totals[usize::from(id.hook() == Hook::Egress)], &new);
    }
    Some(serial)
}

/// Why a flow that was quiet for `quiet_ns` is over, if it is.
const fn over_since(stats: &FlowStats, quiet_ns: u64, (linger, idle): (u64, u64)) -> Option<End> {
    if quiet_ns > linger && stats.rst != 0 {
        Some(End::Rst)
    } else if quiet_ns > linger && stats.fin != 0 {
        Some(End::Fin)
    } else if quiet_ns > idle {
        Some(End::Idle)
    } else {
        None
    }
}

/// An interface that was named without a wildcard has to be there from the start.
fn named_interfaces_exist(named: &[String], there: &[Link]) -> Result<(), NetworkError> {
    for name in named.iter().filter(|name| !name.ends_with('*')) {
        if !there.iter().any(|link| link.name == *name) {
            let mut there: Vec<String> = there.iter().map(|link| link.name.clone()).collect();
            there.sort();
            return Err(NetworkError::NoInterface { name: name.clone(), there });
        }
    }
    Ok(())
}
