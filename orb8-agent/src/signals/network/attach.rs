//! Following the node's interfaces: attaching as they come, retiring as they go.

use std::time::Instant;

use super::{
    NAME, NetworkError,
    attacher::Outcome,
    give::Last,
    interfaces::{Interface, Serial, Side, Wanted},
    task::Task,
};
use crate::{
    netlink::{
        NetlinkError,
        addresses::Address,
        links::{Link, Links},
        watch::LinkChange,
    },
    status::State,
};

/// Where kube-proxy, in its mode of IPVS, puts the addresses of Services.
const SERVICES_ONLY: &str = "kube-ipvs0";

impl Task {
    pub(super) async fn links_changed(&mut self, change: LinkChange) {
        let mut changed = Vec::new();
        let mut next = Some(change);
        // A pod that starts announces itself several times.
        while let Some(change) = next {
            match change {
                LinkChange::Up(link) => changed.extend(self.note_link(link)),
                LinkChange::Gone { index, counters, .. } => {
                    if let Some(link) = self.known_links.remove(&index) {
                        self.note_end(&link, counters);
                    }
                    self.begin_retiring(index);
                    changed.push(index);
                }
                LinkChange::Resync => {
                    match self.links.snapshot().await {
                        Ok(there) => {
                            self.known_links = there.into_iter().map(|l| (l.index, l)).collect();
                        }
                        Err(error) => tracing::warn!("{error}"),
                    }
                    self.wanted = None;
                    self.note_gap();
                }
            }
            next = self.link_watch.next_queued();
        }
        let wanted = self.wanted_now();
        if self.wanted != Some(wanted) {
            return self.reconcile();
        }
        if changed.is_empty() {
            return;
        }
        for index in changed {
            self.reconcile_one(index);
        }
        self.report_state();
    }

    /// Notes what is announced of an interface; answers its index if more than its counters changed.
    fn note_link(&mut self, mut link: Link) -> Option<u32> {
        let index = link.index;
        let known = self.known_links.get(&index);
        // It comes down because it goes: what it was is what it has been.
        if known.is_some() && link.is_veth_without_peer() {
            return None;
        }
        // Until it is followed, what counts is what it had carried when it was first announced.
        if let Some(known) = known.filter(|_| self.interfaces.serial(index).is_none()) {
            link.counters = known.counters;
        }
        let is_new = known.is_none_or(|known| !known.is_like(&link));
        self.known_links.insert(index, link);
        is_new.then_some(index)
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

    fn wanted_now(&self) -> Wanted {
        Wanted::among(&self.context.config, self.known_links.values(), &self.default_route)
    }

    /// Attaches to what should be traced and is not; detaches from what is and should not.
    pub(super) fn reconcile(&mut self) {
        self.wanted = Some(self.wanted_now());
        let traced = self.interfaces.all().filter(|(_, i)| i.sockets.is_none() && i.gone.is_none());
        let mut indices: Vec<u32> = traced.map(|(_, interface)| interface.index).collect();
        indices.extend(self.known_links.keys());
        indices.sort_unstable();
        indices.dedup();
        for index in indices {
            self.reconcile_one(index);
        }
        self.report_state();
    }

    /// Whose view an interface gives, if it should be traced.
    pub(super) fn side_of(&self, link: &Link) -> Option<Side> {
        self.wanted?.side(link, &self.context.config, &self.default_route)
    }

    fn reconcile_one(&mut self, index: u32) {
        let link = self.known_links.get(&index);
        let side = link.and_then(|link| self.side_of(link));
        if let Some((link, side)) = link.cloned().zip(side) {
            return self.attach(&link, side);
        }
        let is_there = link.is_some();
        let Some(serial) = self.interfaces.serial(index).filter(|s| !self.retiring.contains(s))
        else {
            return;
        };
        let Some(traced) = self.interfaces.get_mut(serial) else { return };
        if traced.sockets.is_some() {
            return;
        }
        if !is_there {
            return self.begin_retiring(index);
        }
        // Its last packets are taken once no more are counted. Until it is attached to, that is told.
        traced.leaves = true;
        if let Some(attachments) = traced.release() {
            self.attacher.leave(serial, index, attachments);
        }
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
        let interface = Interface::new(link, side, Instant::now());
        let serial = if self.follows && side == Side::Workload {
            self.add_new(interface, link)
        } else {
            self.interfaces.add(interface)
        };
        self.attacher.attach(serial, link, self.follows);
    }

    /// Takes what became of an interface that was to be attached to.
    pub(super) fn attached(&mut self, serial: Serial, outcome: Outcome) {
        let there = !self.retiring.contains(&serial);
        let interface = self.interfaces.get_mut(serial);
        let Some(interface) = interface.filter(|i| there && i.gone.is_none()) else {
            // Dropping it would wait for the kernel.
            if let Outcome::Attached { attachments, .. } = outcome {
                self.attacher.detach(attachments);
            }
            return;
        };
        let index = interface.index;
        match outcome {
            Outcome::Attached { attachments, .. } if interface.leaves => {
                self.attacher.leave(serial, index, attachments);
            }
            Outcome::Left => {
                self.begin_retiring(index);
                self.reconcile_one(index);
            }
            Outcome::Attached { attachments, before, after } => {
                interface.hold(attachments);
                interface.attached_unix_ns = self.clock.unix_ns(self.clock.now_ns());
                interface.kernel_at_attach = after;
                interface.baseline_is_exact = before == after;
                if let Some(early) = &mut interface.early {
                    early.most = Some(after);
                }
                let late = interface.seen_at.elapsed();
                tracing::debug!(
                    interface = &*interface.name,
                    how = interface.attached,
                    ?late,
                    "attached"
                );
                self.attached_at = Some(Instant::now());
                self.interfaces.refused.remove(&index);
                if before != after {
                    self.unbalanced.push_back(serial);
                }
            }
            Outcome::Gone { .. } if interface.leaves => self.begin_retiring(index),
            Outcome::Gone { tried } => match self.known_links.get(&index) {
                // It was given another name meanwhile. If that is still to be announced, so is what
                // comes then.
                Some(link) if link.name != tried => {
                    self.attacher.attach(serial, link, self.follows);
                }
                _ => self.begin_retiring(index),
            },
            Outcome::Refused(error) => {
                let refused = (interface.name.to_string(), error.to_string());
                self.begin_retiring(index);
                self.interfaces.refused.insert(index, refused);
            }
        }
        self.report_state();
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
