//! Following the node's interfaces: attaching as they come, retiring as they go, finding who is
//! behind them, and clearing away what a killed run left.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    NAME, NetworkError,
    give::Last,
    interfaces::{Interface, Serial, Side, wanted},
    task::Task,
};
use crate::{
    netlink::{
        NetlinkError,
        addresses::Address,
        links::{Link, LinkCounters},
        tc::program_held_by_a_process,
        watch::LinkChange,
    },
    status::State,
};

/// Surveys of the node's processes are this far apart at least: each reads a link per process.
const BETWEEN_SURVEYS: Duration = Duration::from_millis(250);

/// How old what is known of the default route may be.
const BETWEEN_ROUTES: Duration = Duration::from_secs(5);
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
            if let Some(interface) = self.interfaces.get_mut(serial) {
                interface.detach();
            }
            self.retiring.push(serial);
        }
        self.interfaces.refused.remove(&index);
    }

    /// Attaches to what should be traced and is not; detaches from what is and should not.
    pub(super) async fn reconcile(&mut self) {
        self.read_default_route().await;
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
            if qdisc_is_ours {
                self.remove_qdisc(index).await;
            }
        }
        for (link, side) in wanted {
            self.attach(&link, side).await;
        }
        self.report_state();
    }

    /// A node may have very many routes, and its pods come and go much more often than they do. The
    /// node's addresses are read with them.
    async fn read_default_route(&mut self) {
        let now = Instant::now();
        let recent = |at: Instant| now.saturating_duration_since(at) < BETWEEN_ROUTES;
        if self.default_route_read.is_some_and(recent) {
            return;
        }
        self.default_route_read = Some(now);
        match self.links.default_route_interfaces().await {
            Ok(interfaces) => self.default_route = interfaces,
            Err(error) => tracing::warn!("{error}"),
        }
        match self.links.addresses().await {
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

    async fn attach(&mut self, link: &Link, side: Side) {
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
        const ARPHRD_ETHER: u16 = 1;
        let how = self.context.config.tc_attach;
        let ethernet = link.arphrd == ARPHRD_ETHER || link.arphrd == libc::ARPHRD_LOOPBACK;
        let before = self.kernel_counters(link).await;
        match self.probe.attach(&link.name, link.index, ethernet, how) {
            Ok(attachments) => {
                let mut interface = Interface::new(link, side, Instant::now());
                interface.hold(attachments);
                interface.attached_unix_ns = self.clock.unix_ns(self.clock.now_ns());
                let after = self.kernel_counters(link).await;
                // Attaching goes by the name, and by now the name may be another interface's.
                if after.is_none() {
                    interface.detach();
                    self.known_links.remove(&link.index);
                    if let Err(error) = self.probe.forget_overflow(link.index) {
                        tracing::warn!("OVERFLOW: {error}");
                    }
                    return;
                }
                interface.kernel_at_attach = after.unwrap_or(link.counters);
                interface.baseline_is_exact = before == after;
                self.interfaces.refused.remove(&link.index);
                tracing::debug!(interface = link.name, how = interface.attached, "attached");
                let serial = self.interfaces.add(interface);
                if before != after {
                    self.find_baseline(serial, link).await;
                }
            }
            // It went away again: its removal is announced, or was.
            Err(_) if before.is_none() => drop(self.known_links.remove(&link.index)),
            Err(error) => {
                let refused = (link.name.clone(), error.to_string());
                self.interfaces.refused.insert(link.index, refused);
            }
        }
    }

    /// The kernel's counters of an interface, if it is still there under its name.
    async fn kernel_counters(&mut self, link: &Link) -> Option<LinkCounters> {
        let now = self.links.get(link.index).await.ok()??;
        (now.name == link.name).then_some(now.counters)
    }

    /// Packets passed while the interface was attached, so the kernel's counters then are not those
    /// from which ours count. They are found at a moment when nothing moves, if there is one.
    async fn find_baseline(&mut self, serial: Serial, link: &Link) {
        for _ in 0..BASELINE_ATTEMPTS {
            let Some(before) = self.kernel_counters(link).await else { return };
            self.settle(Last::Nobody);
            let after = self.kernel_counters(link).await;
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

    /// Finds the pods behind veths that have no owner yet.
    pub(super) async fn resolve_owners(&mut self) {
        let now = Instant::now();
        let recent = |at: Instant| now.saturating_duration_since(at) < BETWEEN_SURVEYS;
        if self.surveyed.is_some_and(recent) {
            return;
        }
        let unowned: Vec<(Serial, i32)> = self
            .interfaces
            .all()
            .filter(|(_, interface)| interface.wants_owner(now))
            .filter_map(|(serial, interface)| Some((serial, interface.nsid?)))
            .collect();
        if unowned.is_empty() {
            return;
        }
        self.surveyed = Some(now);
        let wanted: Vec<i32> = unowned.iter().map(|(_, nsid)| *nsid).collect();
        let owners = match self.netns.resolve(&wanted).await {
            Ok(owners) => owners,
            Err(error) => return tracing::warn!("{error}"),
        };
        let mut found = HashMap::new();
        for (serial, nsid) in &unowned {
            if let Some(identity) = owners.get(nsid).and_then(|owner| owner.identity)
                && self.still_leads_to(*serial, *nsid).await
            {
                found.insert(*serial, identity);
            }
        }
        // The end of every interface whose index was used again by then is announced by now.
        while let Some(change) = self.link_watch.next_queued() {
            self.links_changed(change).await;
        }
        if self.link_watch.is_broken() {
            return;
        }
        for (serial, _) in unowned {
            if self.retiring.contains(&serial) {
                continue;
            }
            let identity = found.get(&serial).copied();
            if let Some(interface) = self.interfaces.get_mut(serial) {
                interface.looked_for_owner(identity, now);
                self.epoch += u32::from(identity.is_some());
            }
        }
    }

    /// Whether the interface is there and leads to the namespace with this number: both a namespace's
    /// number and an interface's index are used again as soon as they are free, and while it was
    /// found out who lives in that namespace, another one may have come.
    async fn still_leads_to(&mut self, serial: Serial, nsid: i32) -> bool {
        let Some(index) = self.interfaces.get(serial).map(|i| i.index) else { return false };
        let link = self.links.get(index).await.ok().flatten();
        link.is_some_and(|link| link.peer_nsid == Some(nsid))
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
