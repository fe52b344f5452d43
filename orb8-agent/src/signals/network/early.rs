//! What a pod's interface carried before it was attached to.
//!
//! The kernel's counters of an interface that was made while we followed tell how much that was: it
//! goes to the interface's pod. What of it a container sent is known at its sockets, which are counted
//! from their first packet on while pods start: whatever the interface's flows do not have of it passed
//! before. So a container that ended before the kernel let us attach is seen all the same.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use orb8_common::network::{Counts, Pulse, SocketSent};
use orb8_k8s::{ContainerId, PodUid};
use orb8_proto::{Direction, FlowState};

use super::{
    give::{Flowless, Last},
    interfaces::{Interface, Serial, Side, Wanted},
    maps::{add, is_zero, minus},
    pods::Traffic,
    record,
    task::Task,
};
use crate::{
    aggregator::{SliceNumber, slice_of},
    enricher::{AttributedBy, Attribution},
    k8s::cgroup::CgroupIdentity,
    ledger::Stage,
    netlink::links::{Link, LinkCounters},
};

/// Sockets are counted for this long after something was seen that may be a pod's start.
const EXPECTING: Duration = Duration::from_secs(10);
/// Nothing that a socket sent is on its way to an interface for this long.
const QUIET_NS: u64 = 300_000_000;
/// Containers that never stop sending are not waited for longer: what they sent before is their pod's.
const PATIENCE: Duration = Duration::from_secs(30);
/// What sockets sent is remembered for this long after their first packet.
const REMEMBERED_NS: u64 = 60_000_000_000;
/// Nobody was found behind an interface that is gone for so long, and nobody will be.
const ORPHANED: Duration = Duration::from_secs(2);
/// Whoever was not overlooked in a gap is found behind an interface by then.
const GAP: Duration = Duration::from_secs(4);
/// How late the end of an interface may be noticed, or its beginning.
const SLACK_NS: u64 = 1_000_000_000;
/// Rows that are kept for queries: five minutes of thirty containers a second. Beyond it the oldest is
/// forgotten, and that is counted.
const MOST_ROWS: usize = 10_000;
/// What an Ethernet interface counts and a socket does not.
const LINK_HEADER: u64 = 14;

/// What is known of an interface's time before it was attached to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Early {
    /// The kernel's counters as they were first announced.
    born: LinkCounters,
    /// It was made after this time since boot.
    since_ns: u64,
    /// Those just after it was attached to: no less than what passed before.
    pub(super) most: Option<LinkCounters>,
    /// A better start of our counters will not be found; what there is, is not too high.
    pub(super) baseline_is_final: bool,
    /// Those at its end, if it ended: as last announced, and as its end was.
    last: Option<(LinkCounters, LinkCounters)>,
    /// What its containers sent was given to them: so much.
    by_containers: Option<Counts>,
}

impl Early {
    const fn of(link: &Link, since_ns: u64) -> Self {
        Self {
            born: link.counters,
            since_ns,
            most: None,
            baseline_is_final: false,
            last: None,
            by_containers: None,
        }
    }
}

/// What waits to be given to its owners.
#[derive(Default)]
pub(super) struct EarlyTraffic {
    /// There are never more than interfaces.
    waiting: Vec<Serial>,
    /// Until when sockets are counted; none: they are not.
    watching: Option<Instant>,
    /// What was announced by this time since boot was followed.
    followed_ns: u64,
    /// Since when, and until when, interfaces may have come and gone without a word.
    gap: Option<(u64, Instant)>,
    /// What was given, oldest first, for as long as queries reach back.
    rows: VecDeque<Flowless>,
    /// What cgroups were given already. There are never more than in `SOCKET_SENT`.
    given: HashMap<u64, Counts>,
}

/// A cgroup whose sockets sent something.
struct Sender {
    identity: CgroupIdentity,
    cgroup: u64,
    first_ns: u64,
    last_ns: u64,
    /// It was silent while it was looked at, and shortly before.
    is_quiet: bool,
    /// What its interfaces' flows do not have of it.
    missing: Counts,
}

/// Whose an interface is. Containers of a pod share it.
type Owner = (Option<PodUid>, Option<ContainerId>);

const fn owner_of(identity: &CgroupIdentity) -> Owner {
    match identity.pod_uid {
        Some(uid) => (Some(uid), None),
        None => (None, identity.container_id),
    }
}

impl Task {
    /// A pod may be about to start.
    pub(super) fn expect_pods(&mut self) {
        let watched = self.early.watching.replace(Instant::now() + EXPECTING).is_some();
        if !watched {
            self.watch_sockets(true);
        }
    }

    fn watch_sockets(&self, watch: bool) {
        if let Err(error) = self.probe.watch_sockets(watch) {
            tracing::warn!("WATCH_SOCKETS: {error}");
        }
    }

    /// Adds an interface that has just been made. What passes it before it is attached to is to be
    /// given to its owner.
    pub(super) fn add_new(&mut self, mut interface: Interface, link: &Link) -> Serial {
        interface.early = Some(Box::new(Early::of(link, self.early.followed_ns)));
        let serial = self.interfaces.add(interface);
        self.early.waiting.push(serial);
        self.expect_pods();
        serial
    }

    /// Follows what was announced by now, so that it is known since when what comes later may be there.
    pub(super) async fn follow_announced(&mut self) {
        let now_ns = self.probe.pulse().map_or(0, |pulse| pulse.boot_ns);
        while let Some(change) = self.link_watch.next_queued() {
            self.links_changed(change).await;
        }
        self.early.followed_ns = now_ns;
    }

    /// Announcements of interfaces were lost: some may have come and gone.
    pub(super) fn note_gap(&mut self) {
        if self.follows {
            let since_ns = self.early.gap.map_or(self.early.followed_ns, |(since_ns, _)| since_ns);
            self.early.gap = Some((since_ns, Instant::now()));
        }
    }

    /// Notes what an interface that is gone carried, also if it went before anybody could follow it.
    pub(super) fn note_end(&mut self, link: &Link, end: LinkCounters) {
        let now = Instant::now();
        let config = &self.context.config;
        // If it was a node's first pod, nobody knew by then that pods are wanted.
        let wanted = Wanted::among(config, std::iter::once(link), &self.default_route);
        let side = wanted.side(link, config, &self.default_route);
        let serial = match self.interfaces.serial(link.index) {
            Some(serial) => serial,
            None if self.follows && side == Some(Side::Workload) => {
                let serial = self.add_new(Interface::new(link, Side::Workload, now), link);
                self.interfaces.gone(serial, now);
                serial
            }
            None => return,
        };
        if let Some(early) = self.interfaces.get_mut(serial).and_then(|i| i.early.as_mut()) {
            early.last = Some((link.counters, end));
        }
    }

    /// Takes everything that happened so far, and gives it to its owners, with what happened before
    /// interfaces were attached to. `ends`: nobody will be told later.
    pub(super) fn settle_early(&mut self, ends: bool) {
        // First what sockets sent, then what interfaces saw of it: what is missing is never too much, and
        // exact where nothing was sent meanwhile.
        let sent = self.socket_sent();
        let pulse = self.probe.pulse().unwrap_or_default();
        self.settle(Last::Nobody);
        let after = self.socket_sent();
        let senders = self.senders(sent, &after, &pulse);
        self.give_early(senders, ends);
        self.watch_while_needed();
    }

    /// Whether somebody's containers are still to be given what they sent.
    fn awaits_senders(&self) -> bool {
        let waits = |serial: &Serial| {
            let early = self.interfaces.get(*serial).and_then(|i| i.early.as_ref());
            early.is_some_and(|early| early.by_containers.is_none())
        };
        self.early.gap.is_some() || self.early.waiting.iter().any(waits)
    }

    fn socket_sent(&mut self) -> HashMap<u64, SocketSent> {
        if !self.awaits_senders() {
            return HashMap::new();
        }
        self.probe.socket_sent().unwrap_or_else(|error| {
            tracing::warn!("SOCKET_SENT: {error}");
            HashMap::new()
        })
    }

    fn watch_while_needed(&mut self) {
        if self.early.watching.is_some_and(|until| Instant::now() > until) && !self.awaits_senders()
        {
            self.early.watching = None;
            self.watch_sockets(false);
        }
    }

    /// Whose sockets sent more than the flows of interfaces have.
    fn senders(
        &mut self,
        sent: HashMap<u64, SocketSent>,
        after: &HashMap<u64, SocketSent>,
        read_at: &Pulse,
    ) -> Vec<Sender> {
        let now = Instant::now();
        self.early.given.retain(|cgroup, _| sent.contains_key(cgroup));
        let mut seen: HashMap<u64, Counts> = HashMap::new();
        for (key, flow) in self.table.iter().filter(|(_, flow)| sent.contains_key(&flow.cgroup_id))
        {
            let interface = self.interfaces.get(key.serial());
            let sends = interface
                .is_some_and(|i| record::direction(key.id().hook(), i.side) == Direction::Egress);
            if let Some(sum) = flow.window.sum(0, u32::MAX).filter(|_| sends) {
                let counts = Counts {
                    packets: sum.packets.into(),
                    bytes: sum.bytes,
                    extra_segments: sum.extra_segments.into(),
                };
                add(seen.entry(flow.cgroup_id).or_default(), &counts);
            }
        }
        let mut senders = Vec::new();
        for (cgroup, sent) in sent {
            // Its traffic is what the node's sockets have.
            if self.host_sockets.counts(cgroup) {
                continue;
            }
            if self.clock.now_ns().saturating_sub(sent.first_ns) > REMEMBERED_NS {
                if let Err(error) = self.probe.forget_socket_sent(cgroup) {
                    tracing::warn!("SOCKET_SENT: {error}");
                }
                continue;
            }
            let mut had = seen.get(&cgroup).copied().unwrap_or_default();
            add(&mut had, &self.early.given.get(&cgroup).copied().unwrap_or_default());
            let mut on_wire = sent.counts;
            on_wire.bytes += sent.counts.packets * LINK_HEADER;
            let missing = minus(&on_wire, &had);
            if missing.packets == 0 {
                continue;
            }
            let found = self.context.cgroups.identify(cgroup, now);
            if let Some(identity) = found.and_then(|found| found.identity) {
                let last_ns = self.clock.boot_ns(sent.last_jiffies);
                senders.push(Sender {
                    identity,
                    cgroup,
                    first_ns: sent.first_ns,
                    last_ns,
                    is_quiet: after.get(&cgroup) == Some(&sent)
                        && read_at.boot_ns.saturating_sub(last_ns) > QUIET_NS,
                    missing,
                });
            }
        }
        senders
    }

    fn give_early(&mut self, mut senders: Vec<Sender>, ends: bool) {
        let now = Instant::now();
        let mut owned = None;
        for serial in std::mem::take(&mut self.early.waiting) {
            let Some(interface) = self.interfaces.get(serial) else { continue };
            let Some(early) = interface.early.as_deref() else { continue };
            let ends = ends || now.saturating_duration_since(interface.seen_at) > PATIENCE;
            if early.by_containers.is_none() {
                let chosen = match interface.owner.or(interface.sender) {
                    Some(owner) => self.senders_of(interface, &owner, &mut senders, ends),
                    None if interface.gone.is_some_and(|at| ends || at.elapsed() > ORPHANED) => {
                        let owned = owned.get_or_insert_with(|| self.owners());
                        Some(self.orphaned_senders(interface, owned, &mut senders))
                    }
                    None => ends.then(Vec::new),
                };
                match chosen {
                    Some(chosen) => self.give_to_containers(serial, chosen),
                    None => {
                        self.early.waiting.push(serial);
                        continue;
                    }
                }
            }
            if !self.give_rest(serial) && !ends {
                self.early.waiting.push(serial);
            }
        }
        let Some((since_ns, until)) = self.early.gap.filter(|(_, at)| ends || at.elapsed() > GAP)
        else {
            return;
        };
        self.early.gap = None;
        let owned = self.owners();
        let until_ns = self.boot_ns_at(until);
        let unseen = senders.into_iter().filter(|sender| {
            sender.is_quiet
                && !owned.contains(&owner_of(&sender.identity))
                && sender.first_ns >= since_ns.saturating_sub(SLACK_NS)
                && sender.last_ns <= until_ns.saturating_add(SLACK_NS)
        });
        for sender in unseen {
            self.give_to(&sender, "".into());
        }
    }

    /// A time that is past, since boot.
    pub(super) fn boot_ns_at(&self, at: Instant) -> u64 {
        let ago = u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.clock.now_ns().saturating_sub(ago)
    }

    /// Gives a container what it sent early.
    fn give_to(&mut self, sender: &Sender, interface: Arc<str>) {
        add(self.early.given.entry(sender.cgroup).or_default(), &sender.missing);
        let attribution = self.enricher.of_container(&sender.identity, AttributedBy::SocketCgroup);
        let (counts, at_ns) = (sender.missing, sender.first_ns);
        self.book_early(attribution, interface, Direction::Egress, counts, at_ns);
    }

    /// The owner's containers, with what they sent before the interface was attached to; none if that
    /// is still to be waited for.
    fn senders_of(
        &self,
        interface: &Interface,
        owner: &CgroupIdentity,
        senders: &mut Vec<Sender>,
        ends: bool,
    ) -> Option<Vec<Sender>> {
        let early = interface.early.as_deref()?;
        let is_gone = interface.gone.is_some();
        if early.most.is_none() && !is_gone {
            return None;
        }
        let is_its = |sender: &Sender| owner_of(&sender.identity) == owner_of(owner);
        if !is_gone && !ends && senders.iter().any(|s| is_its(s) && !s.is_quiet) {
            return None;
        }
        let mut its: Vec<Sender> = senders.extract_if(.., |sender| is_its(sender)).collect();
        // Something may be on its way that flows will have.
        its.retain(|sender| is_gone || sender.is_quiet);
        let mut sum = Counts::default();
        its.iter().for_each(|sender| add(&mut sum, &sender.missing));
        // What has no room in the flow table has no sender either: it would be taken for early.
        if !is_zero(&interface.overflow_taken[0]) {
            its.clear();
        }
        if let Some(most) = early.most {
            let packets = most.rx_packets.saturating_sub(early.born.rx_packets);
            let bytes = most.rx_bytes.saturating_sub(early.born.rx_bytes);
            if sum.packets > packets || sum.bytes > bytes {
                // Something was sent and never arrived: who lacks what is not known.
                let name = &*interface.name;
                tracing::debug!(name, ?sum, packets, bytes, "more is missing than there was");
                match &mut its[..] {
                    [one] if packets > 0 => {
                        one.missing.packets = sum.packets.min(packets);
                        one.missing.bytes = sum.bytes.min(bytes);
                    }
                    _ => its.clear(),
                }
            }
        }
        Some(its)
    }

    /// Whoever is found behind some interface.
    fn owners(&self) -> HashSet<Owner> {
        let owners = self.interfaces.all().filter_map(|(_, i)| i.owner.or(i.sender));
        owners.map(|owner| owner_of(&owner)).collect()
    }

    /// The senders of one pod behind no interface that is known, that all sent while this one was
    /// there: it ended before anybody found out whose it was.
    fn orphaned_senders(
        &self,
        interface: &Interface,
        owned: &mut HashSet<Owner>,
        senders: &mut Vec<Sender>,
    ) -> Vec<Sender> {
        let since_ns = interface.early.as_deref().map_or(0, |early| early.since_ns);
        let from = since_ns.saturating_sub(SLACK_NS);
        let to = interface.gone.map_or(u64::MAX, |at| self.boot_ns_at(at).saturating_add(SLACK_NS));
        let within = |s: &Sender| s.is_quiet && s.first_ns >= from && s.last_ns <= to;
        let mut candidates: HashMap<Owner, (u64, bool)> = HashMap::new();
        for sender in senders.iter() {
            let owner = owner_of(&sender.identity);
            if !owned.contains(&owner) {
                let (first, all) = candidates.entry(owner).or_insert((u64::MAX, true));
                *first = sender.first_ns.min(*first);
                *all &= within(sender);
            }
        }
        let fitting = candidates.into_iter().filter(|(_, (_, all))| *all);
        let Some((owner, _)) = fitting.min_by_key(|(_, (first, _))| *first) else {
            return Vec::new();
        };
        owned.insert(owner);
        senders.extract_if(.., |sender| owner_of(&sender.identity) == owner).collect()
    }

    fn give_to_containers(&mut self, serial: Serial, senders: Vec<Sender>) {
        let Some(interface) = self.interfaces.get_mut(serial) else { return };
        let is_known = interface.owner.is_some() || interface.sender.is_some();
        let name: Arc<str> = if is_known { Arc::clone(&interface.name) } else { "".into() };
        let mut sum = Counts::default();
        senders.iter().for_each(|sender| add(&mut sum, &sender.missing));
        tracing::debug!(interface = &*interface.name, senders = senders.len(), ?sum, "early");
        if let Some(early) = &mut interface.early {
            early.by_containers = Some(sum);
        }
        for sender in senders {
            self.give_to(&sender, Arc::clone(&name));
        }
    }

    /// Gives what no container sent to the interface's owner, once it is known how much that is.
    fn give_rest(&mut self, serial: Serial) -> bool {
        let Some(interface) = self.interfaces.get(serial) else { return true };
        let Some((sent, received)) = before_attachment(interface) else { return false };
        let name = Arc::clone(&interface.name);
        let attribution = self.interface_attribution(serial);
        let now_ns = self.clock.now_ns();
        for (direction, counts) in [(Direction::Egress, sent), (Direction::Ingress, received)] {
            if !is_zero(&counts) {
                self.book_early(attribution.clone(), Arc::clone(&name), direction, counts, now_ns);
            }
        }
        if let Some(interface) = self.interfaces.get_mut(serial) {
            interface.early = None;
        }
        true
    }

    fn book_early(
        &mut self,
        attribution: Attribution,
        interface: Arc<str>,
        direction: Direction,
        counts: Counts,
        at_ns: u64,
    ) {
        let mut traffic = Traffic::of(direction, counts);
        traffic.early_packets = counts.packets;
        let state = FlowState::Early;
        let given = Flowless { attribution, interface, direction, counts, at_ns, state };
        self.give_flowless(&given, traffic);
        self.early.rows.push_back(given);
        if self.early.rows.len() > MOST_ROWS {
            self.early.rows.pop_front();
            self.lose(Stage::Aggregate, "early_history_full", 1, 0);
        }
    }

    /// What is to be told of it in answers.
    pub(super) fn early_rows(&self) -> impl Iterator<Item = &Flowless> {
        self.early.rows.iter()
    }

    /// Forgets what left the window.
    pub(super) fn forget_early(&mut self, oldest: SliceNumber) {
        self.early.rows.retain(|row| slice_of(row.at_ns) >= oldest);
    }

    /// Gives names that came late.
    pub(super) fn rename_early(&mut self) {
        for row in &mut self.early.rows {
            if let Some(identity) = &mut row.attribution.identity
                && let Some(named) = self.enricher.named_by_now(identity)
            {
                *identity = named;
            }
        }
    }
}

/// What passed an interface before it was attached to, as far as that is certain, in the pod's view:
/// sent, less what was given to containers, and received. None: that is still to be found out.
fn before_attachment(interface: &Interface) -> Option<(Counts, Counts)> {
    let early = interface.early.as_deref()?;
    let difference = |packets: (u64, u64), bytes: (u64, u64)| Counts {
        packets: packets.0.saturating_sub(packets.1),
        bytes: bytes.0.saturating_sub(bytes.1),
        extra_segments: 0,
    };
    let between = |now: &LinkCounters| {
        let born = &early.born;
        let rx = (now.rx_packets, born.rx_packets);
        let tx = (now.tx_packets, born.tx_packets);
        [
            difference(rx, (now.rx_bytes, born.rx_bytes)),
            difference(tx, (now.tx_bytes, born.tx_bytes)),
        ]
    };
    let [ingress, egress] = interface.totals;
    let [rx, tx] = if interface.baseline_is_exact || early.baseline_is_final {
        between(&interface.kernel_at_attach)
    } else if let Some((told, end)) = early.last.filter(|_| interface.gone.is_some()) {
        // A veth's end does not tell what it received, only what it sent.
        let rx = if early.most.is_some() { Counts::default() } else { between(&told)[0] };
        [minus(&rx, &ingress), minus(&between(&end)[1], &egress)]
    } else {
        return None;
    };
    Some((minus(&rx, &early.by_containers.unwrap_or_default()), tx))
}
