//! Following the node's interfaces: attaching as they come, retiring as they go, finding who is
//! behind them, and clearing away what a killed run left.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    NAME, NetworkError,
    attacher::Outcome,
    give::Last,
    interfaces::{Interface, Serial, Side, wanted},
    survey::{Found, Sought},
    task::Task,
};
use crate::{
    netlink::{
        NetlinkError,
        addresses::Address,
        links::{Link, LinkCounters, Links},
        tc::program_held_by_a_process,
        watch::LinkChange,
    },
    status::State,
};

/// Surveys of the node's processes are this far apart at least: each reads a link per process.
const BETWEEN_SURVEYS: Duration = Duration::from_millis(250);

/// How long a question waits for a survey. It takes tens of milliseconds, unless others keep the
/// kernel busy.
const WAIT_FOR_SURVEY: Duration = Duration::from_millis(500);

/// Questions to the kernel about interfaces that may take long are this far apart.
const BETWEEN_BASELINES: Duration = Duration::from_millis(250);

/// Where kube-proxy, in its mode of IPVS, puts the addresses of Services.
const SERVICES_ONLY: &str = "kube-ipvs0";

/// Moments at which the kernel's and our counters are compared for a start. On an interface that is
/// never quiet the comparison stays off by what passed in between, and says so.
const BASELINE_ATTEMPTS: usize = 5;

impl Task {
    pub(super) async fn links_changed(&mut self, change: LinkChange) {
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
            next = self.link_watch.next_queued();
        }
        self.reconcile().await;
    }

    pub(super) fn begin_retiring(&mut self, index: u32) {
        if let Some(serial) = self.interfaces.serial(index)
            && !self.retiring.contains(&serial)
        {
            let interface = self.interfaces.get_mut(serial);
            if let Some(attachments) = interface.and_then(Interface::release) {
                self.attacher.detach(attachments);
            }
            self.retiring.push(serial);
        }
        self.interfaces.refused.remove(&index);
    }

    /// Waits for an answer of the kernel, which may take as long as others change interfaces, and goes
    /// on attaching meanwhile.
    pub(super) async fn while_following<T>(&mut self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                change = self.link_watch.next() => self.links_changed(change).await,
                (serial, outcome) = self.attacher.outcome() => self.attached(serial, outcome),
            }
        }
    }

    /// Attaches to what should be traced and is not; detaches from what is and should not.
    pub(super) async fn reconcile(&mut self) {
        let there: Vec<Link> = self.known_links.values().cloned().collect();
        let wanted = wanted(&self.context.config, &there, &self.default_route);
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
            // Its last packets are taken once no more are counted.
            self.attacher.settled().await;
            if qdisc_is_ours {
                self.remove_qdisc(index).await;
            }
        }
        for (link, side) in wanted {
            self.attach(&link, side);
        }
        self.report_state();
    }

    /// A node may have very many routes, and its pods come and go much more often than they do. The
    /// node's addresses are read with them.
    pub(super) async fn read_routes(&mut self) {
        let read = async {
            let mut links = Links::open()?;
            Ok((links.default_route_interfaces().await, links.addresses().await))
        };
        let (routes, addresses) = match self.while_following(read).await {
            Ok(read) => read,
            Err(error) => {
                let error: NetlinkError = error;
                return tracing::warn!("{error}");
            }
        };
        match routes {
            Ok(interfaces) => self.default_route = interfaces,
            Err(error) => tracing::warn!("{error}"),
        }
        match addresses {
            Ok(addresses) => {
                let own = |a: &Address| {
                    self.known_links.get(&a.index).is_none_or(|link| link.name != SERVICES_ONLY)
                };
                let own = addresses.into_iter().filter(own).map(|a| a.ip).collect();
                self.peers.set_own_addresses(own);
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Begins to attach. Until that is done the interface is there, and what comes is its own.
    fn attach(&mut self, link: &Link, side: Side) {
        if let Some(serial) = self.interfaces.serial(link.index) {
            if !self.retiring.contains(&serial) {
                if let Some(interface) = self.interfaces.get_mut(serial) {
                    interface.nsid = link.peer_nsid;
                    // A veth is announced before its other end is in a pod.
                    interface.side = side;
                    if *interface.name != link.name {
                        interface.name = link.name.as_str().into();
                    }
                }
                return;
            }
            // The index is used again before the last packets of its former owner were taken.
            self.settle(Last::Nobody);
        }
        if let Err(error) = self.filter.forget(link.index) {
            tracing::warn!("INTERFACE_PODS: {error}");
        }
        if let Err(error) = self.probe.expect(link.index) {
            let refused = (link.name.clone(), format!("map OVERFLOW: {error}"));
            self.interfaces.refused.insert(link.index, refused);
            return;
        }
        let serial = self.interfaces.add(Interface::new(link, side, Instant::now()));
        self.attacher.attach(serial, link, self.follows);
    }

    /// Takes what became of an interface that was to be attached to.
    pub(super) fn attached(&mut self, serial: Serial, outcome: Outcome) {
        let there = !self.retiring.contains(&serial);
        let Some(interface) = self.interfaces.get_mut(serial).filter(|i| i.gone.is_none()) else {
            // Dropping it would wait for the kernel.
            if let Outcome::Attached { attachments, .. } = outcome {
                self.attacher.detach(attachments);
            }
            return;
        };
        let index = interface.index;
        match outcome {
            Outcome::Attached { attachments, before, after } => {
                interface.hold(attachments);
                interface.attached_unix_ns = self.clock.unix_ns(self.clock.now_ns());
                interface.kernel_at_attach = after;
                interface.baseline_is_exact = before == after;
                tracing::debug!(interface = &*interface.name, how = interface.attached, "attached");
                self.attached_at = Some(Instant::now());
                self.interfaces.refused.remove(&index);
                if before != after {
                    self.unbalanced.push_back(serial);
                }
            }
            Outcome::Gone => {
                self.known_links.remove(&index);
                self.begin_retiring(index);
            }
            Outcome::Refused(error) => {
                let refused = (interface.name.to_string(), error.to_string());
                self.begin_retiring(index);
                self.interfaces.refused.insert(index, refused);
            }
        }
        if there {
            self.report_state();
        }
    }

    /// Waits until everything that was to be attached to is.
    pub(super) async fn await_attached(&mut self) {
        while self.attacher.pending > 0 {
            let (serial, outcome) = self.attacher.outcome().await;
            self.attached(serial, outcome);
        }
        while !self.unbalanced.is_empty() {
            self.find_baselines().await;
        }
    }

    /// Finds the start of the kernel's counters for the next interface that lacks it, unless others
    /// are being attached to: the kernel would let us wait for those.
    pub(super) async fn find_baselines(&mut self) {
        let now = Instant::now();
        let recent = |at: Instant| now.saturating_duration_since(at) < BETWEEN_BASELINES;
        if self.attacher.pending > 0
            || self.balanced.is_some_and(recent)
            || self.follows && self.attached_at.is_some_and(recent)
        {
            return;
        }
        if let Some(serial) = self.unbalanced.pop_front() {
            self.balanced = self.follows.then_some(now);
            self.find_baseline(serial).await;
        }
    }

    /// Packets passed while the interface was attached, so the kernel's counters then are not those
    /// from which ours count. They are found at a moment when nothing moves, if there is one.
    async fn find_baseline(&mut self, serial: Serial) {
        for _ in 0..BASELINE_ATTEMPTS {
            let Some(before) = self.kernel_counters(serial).await else { return };
            self.settle(Last::Nobody);
            let after = self.kernel_counters(serial).await;
            let Some(interface) = self.interfaces.get_mut(serial) else { return };
            let [ingress, egress] = interface.totals;
            interface.kernel_at_attach = LinkCounters {
                rx_packets: before.rx_packets.saturating_sub(ingress.packets),
                rx_bytes: before.rx_bytes.saturating_sub(ingress.bytes),
                tx_packets: before.tx_packets.saturating_sub(egress.packets),
                tx_bytes: before.tx_bytes.saturating_sub(egress.bytes),
            };
            if after == Some(before) {
                interface.baseline_is_exact = true;
                return;
            }
        }
    }

    /// The kernel's counters of an interface, if it is still there under its name.
    async fn kernel_counters(&mut self, serial: Serial) -> Option<LinkCounters> {
        let interface = self.interfaces.get(serial)?;
        if !interface.is_attached() {
            return None;
        }
        let (index, name) = (interface.index, Arc::clone(&interface.name));
        let now = self.links.get(index).await.ok()??;
        (now.name == *name).then_some(now.counters)
    }

    pub(super) fn report_state(&self) {
        let refused = &self.interfaces.refused;
        let attached = self.interfaces.attached().count();
        let state = match (attached, refused.values().next()) {
            (0, Some((name, why))) => State::Failed(format!("cannot attach to {name}: {why}")),
            (0, None) if self.attacher.pending > 0 => return,
            (0, None) => State::Degraded(
                "nothing to attach to: no pod's veth, no default route, and no interface was \
                 named; waiting for one"
                    .into(),
            ),
            (_, None) => {
                let cgroups = self.context.cgroups.missing();
                let missing = cgroups.or_else(|| self.host_sockets.shortcoming());
                missing.map_or(State::Active, State::Degraded)
            }
            (_, Some((name, why))) => State::Degraded(format!(
                "{} of {} interfaces are not traced, such as {name}: {why}",
                refused.len(),
                refused.len() + attached
            )),
        };
        self.context.status.set(NAME, state);
    }

    /// Has the pods behind veths looked for that have no owner yet.
    pub(super) fn seek_owners(&mut self) {
        let now = Instant::now();
        let recent = |at: Instant| now.saturating_duration_since(at) < BETWEEN_SURVEYS;
        if self.surveyor.busy || self.surveyed.is_some_and(recent) {
            return;
        }
        let unowned = self.interfaces.all().filter(|(_, interface)| interface.wants_owner(now));
        let sought: Vec<Sought> = unowned
            .filter_map(|(serial, i)| Some(Sought { serial, index: i.index, nsid: i.nsid? }))
            .collect();
        if !sought.is_empty() {
            self.surveyed = Some(now);
            self.surveyor.ask(sought);
        }
    }

    /// Looks for owners now, and waits a moment for what is found: somebody asks.
    pub(super) async fn await_owners(&mut self) {
        self.seek_owners();
        let mut late = std::pin::pin!(tokio::time::sleep(WAIT_FOR_SURVEY));
        while self.surveyor.busy {
            tokio::select! {
                biased;
                change = self.link_watch.next() => self.links_changed(change).await,
                (serial, outcome) = self.attacher.outcome() => self.attached(serial, outcome),
                found = self.surveyor.found() => self.owners_found(found).await,
                () = &mut late => return,
            }
        }
    }

    /// Takes what a survey found.
    pub(super) async fn owners_found(&mut self, found: Found) {
        // The end of every interface whose index was used again by then is announced by now.
        while let Some(change) = self.link_watch.next_queued() {
            self.links_changed(change).await;
        }
        if self.link_watch.is_broken() {
            return;
        }
        let now = Instant::now();
        for (serial, identity) in found {
            if self.retiring.contains(&serial) {
                continue;
            }
            if let Some(interface) = self.interfaces.get_mut(serial) {
                interface.looked_for_owner(identity, now);
                self.epoch += u32::from(identity.is_some());
            }
        }
    }

    /// Filters of a run that was killed: they count for nobody.
    pub(super) async fn remove_leftovers(&mut self) {
        let indices: Vec<u32> = self.known_links.keys().copied().collect();
        for index in indices {
            if let Err(error) = self.remove_leftovers_of(index).await {
                tracing::warn!("leftovers of an earlier run: {error}");
            }
        }
    }

    async fn remove_leftovers_of(&mut self, index: u32) -> Result<(), NetlinkError> {
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

    pub(super) async fn remove_qdisc(&mut self, index: u32) {
        if let Err(error) = self.leftovers.remove_clsact_if_empty(index).await {
            tracing::warn!("{error}");
        }
    }
}

/// An interface that was named without a wildcard has to be there from the start.
pub(super) fn named_interfaces_exist(named: &[String], there: &[Link]) -> Result<(), NetworkError> {
    for name in named.iter().filter(|name| !name.ends_with('*')) {
        if !there.iter().any(|link| link.name == *name) {
            let mut there: Vec<String> = there.iter().map(|link| link.name.clone()).collect();
            there.sort();
            return Err(NetworkError::NoInterface { name: name.clone(), there });
        }
    }
    Ok(())
}
