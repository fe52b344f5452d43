//! Giving what was taken to its owners: names, accounts, records for whoever listens.

use std::{sync::Arc, time::Instant};

use orb8_common::network::Counts;
use orb8_proto::{Direction, Event, FlowState, NetworkFlow, event};

use super::{
    NAME,
    interfaces::{Interface, Serial, Side, Sockets, WAIT_FOR_OWNER},
    maps::is_zero,
    pods::Traffic,
    record,
    table::FlowKey,
    task::Task,
};
use crate::{
    enricher::{AttributedBy, Attribution, Evidence},
    live::SubscriberId,
    probe_loader::Hook,
};

/// A container is looked for this often per flow; its cgroup may be younger than the flow.
const CONTAINER_TRIES: u8 = 5;

/// Who hears that the trace has stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Nobody,
    One(SubscriberId),
    Everybody,
}

/// Packets without a flow of their own.
pub(super) struct Flowless {
    pub(super) attribution: Attribution,
    /// Empty where nobody knows.
    pub(super) interface: Arc<str>,
    pub(super) direction: Direction,
    pub(super) counts: Counts,
    /// Since boot.
    pub(super) at_ns: u64,
    pub(super) state: FlowState,
}

impl Task {
    /// Gives what was taken to its owners and tells whoever listens. Flows whose owner is not known
    /// yet wait, but not for the agent's own end; a subscriber that leaves before them is told
    /// without a name, and alone.
    pub(super) fn flush(&mut self, last: Last) {
        let now = Instant::now();
        let heard = self.context.live.is_heard(NAME);
        let touched = self.table.take_touched();
        for key in &touched {
            self.note_sender(key, now);
            self.note_talking(key);
        }
        for key in touched {
            let settled = self.is_settled(&key, now);
            if settled || last == Last::Everybody {
                self.attribute(&key, now);
                self.name_peer(&key);
                self.give(&key, heard, last);
                continue;
            }
            if let Last::One(leaving) = last {
                self.attribute(&key, now);
                self.name_peer(&key);
                self.tell_early(&key, leaving);
            }
            self.table.postpone(key);
        }
    }

    /// A pod whose processes ended before anybody looked is known by the sockets that it sent from:
    /// all that comes out of its veth is its own.
    fn note_sender(&mut self, key: &FlowKey, now: Instant) {
        let Some(interface) = self.interfaces.get_mut(key.serial()) else { return };
        if interface.side == Side::Host || interface.owner.is_some() || interface.sender.is_some() {
            return;
        }
        let sends = key.id().hook() == Hook::Ingress;
        let cgroup_id = self.table.get(key).map_or(0, |flow| flow.cgroup_id);
        if sends && cgroup_id != 0 {
            let sender = self.context.cgroups.identify(cgroup_id, now).and_then(|c| c.identity);
            interface.sender = sender.filter(|sender| sender.pod_uid.is_some());
        }
    }

    /// A cgroup whose sockets are counted without an account gets one.
    fn note_talking(&mut self, key: &FlowKey) {
        let interface = self.interfaces.get(key.serial());
        if let Some(Sockets::Unlisted) = interface.and_then(|i| i.sockets.as_ref())
            && let Some(flow) = self.table.get(key)
        {
            self.host_sockets.talks(flow.cgroup_id);
        }
    }

    /// Whether a flow may be given to an owner now, or better waits for one to be known.
    fn is_settled(&mut self, key: &FlowKey, now: Instant) -> bool {
        let Some(interface) = self.interfaces.get(key.serial()) else { return true };
        if !matches!(interface.sockets, Some(Sockets::Unlisted)) {
            return interface.is_settled(now);
        }
        let Some(flow) = self.table.get(key) else { return true };
        let waited_ns = self.clock.now_ns().saturating_sub(flow.first_ns);
        u128::from(waited_ns) > WAIT_FOR_OWNER.as_nanos()
            || self.context.cgroups.identify(flow.cgroup_id, now).is_some()
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
        if let Some(told) = heard.then(|| self.told(key, &counts, first)).flatten() {
            self.context.live.publish(NAME, &told, |subscriber, told| {
                if last == Last::Everybody || last == Last::One(subscriber) {
                    stop_trace(told);
                }
                true
            });
        }
    }

    /// What waits for an owner stays where it is.
    fn tell_early(&self, key: &FlowKey, leaving: SubscriberId) {
        let Some(flow) = self.table.get(key).filter(|flow| !is_zero(&flow.unsettled)) else {
            return;
        };
        if let Some(told) = self.told(key, &flow.unsettled, !flow.started) {
            self.context.live.publish(NAME, &told, |subscriber, told| {
                stop_trace(told);
                subscriber == leaving
            });
        }
    }

    /// The record of a flow that moved by `counts`, or ended.
    fn told(&self, key: &FlowKey, counts: &Counts, first: bool) -> Option<Event> {
        let flow = self.table.get(key)?;
        let interface = self.interfaces.get(key.serial())?;
        let mut told = record::frame(&self.context.config.node_name, key.id(), flow, interface);
        record::set_counts(&mut told, counts);
        told.timestamp_ns = self.clock.unix_ns(flow.last_ns);
        self.peers.write(&mut told, key.id(), flow, interface.side);
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
        Some(self.event(event::Event::NetworkFlow(told)))
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
        let identity = flow.attribution.identity.as_ref();
        let named = identity.is_some_and(|i| !i.container.is_empty() || !i.unit.is_empty());
        if flow.epoch == self.epoch && (named || flow.tries >= CONTAINER_TRIES) {
            return;
        }
        // The sender's socket names the container; what a container receives is answered by it.
        let sends = record::direction(key.id().hook(), interface.side) == Direction::Egress;
        let cgroup_id = if sends {
            flow.cgroup_id
        } else {
            self.table.get(&key.reverse()).map_or(0, |answer| answer.cgroup_id)
        };
        let attribution = match &interface.sockets {
            Some(Sockets::Of(cgroup)) => {
                let cgroup = cgroup.clone();
                self.socket_attribution(flow.cgroup_id, Some(&cgroup))
            }
            Some(Sockets::Unlisted) => {
                let id = flow.cgroup_id;
                let cgroup = self.context.cgroups.identify(id, now);
                self.socket_attribution(id, cgroup.as_ref())
            }
            None => {
                // What sockets of the node send is counted there, and here it is the node's.
                let counted = interface.side == Side::Host && self.host_sockets.counts(cgroup_id);
                let sender = match cgroup_id {
                    0 => None,
                    _ if counted => None,
                    id => self.context.cgroups.identify(id, now).and_then(|c| c.identity),
                };
                self.enricher.attribute(Evidence {
                    sender_cgroup: sender.as_ref(),
                    veth_owner: interface.owner.as_ref().or(interface.sender.as_ref()),
                    local_ip: record::local_address(key.id(), interface.side),
                    at_unix_ns: self.clock.unix_ns(flow.last_ns),
                    interface_is_host: interface.side == Side::Host,
                })
            }
        };
        if let Some(flow) = self.table.get_mut(key) {
            flow.tries = if flow.epoch == self.epoch { flow.tries + 1 } else { 1 };
            flow.epoch = self.epoch;
            flow.attribution = attribution;
        }
    }

    /// Gives names that came late to what was given to owners without them.
    pub(super) fn rename(&mut self) {
        let enricher = &mut self.enricher;
        for flow in self.table.flows_mut() {
            if let Some(identity) = &mut flow.attribution.identity
                && let Some(named) = enricher.named_by_now(identity)
            {
                *identity = named;
            }
        }
        self.accounts.rename(|identity| enricher.named_by_now(identity));
    }

    /// Overflow has no flow, so it goes to the interface's owner at once.
    pub(super) fn book_overflow(&mut self, serial: Serial, hook: Hook, new: Counts) {
        let attribution = self.interface_attribution(serial);
        let Some(interface) = self.interfaces.get(serial) else { return };
        let direction = record::direction(hook, interface.side);
        let mut traffic = Traffic::of(direction, new);
        traffic.overflow_packets = new.packets;
        let flowless = Flowless {
            attribution,
            interface: Arc::clone(&interface.name),
            direction,
            counts: new,
            at_ns: self.clock.now_ns(),
            state: FlowState::Overflow,
        };
        self.give_flowless(&flowless, traffic);
    }

    /// Gives what has no flow to its owner, and tells whoever listens.
    pub(super) fn give_flowless(&mut self, given: &Flowless, traffic: Traffic) {
        self.accounts.book(&given.attribution, traffic, given.at_ns, &given.interface);
        if self.context.live.is_heard(NAME) {
            let flow = self.flowless(given);
            let event = self.event(event::Event::NetworkFlow(flow));
            self.context.live.publish(NAME, &event, |_, _| true);
        }
    }

    /// The record of packets without a flow.
    pub(super) fn flowless(&self, given: &Flowless) -> NetworkFlow {
        let mut flow = record::without_flow(&self.context.config.node_name, given);
        record::set_counts(&mut flow, &given.counts);
        flow.timestamp_ns = self.clock.unix_ns(given.at_ns);
        flow
    }

    pub(super) fn interface_attribution(&mut self, serial: Serial) -> Attribution {
        let interfaces = std::mem::take(&mut self.interfaces);
        let attribution = interfaces.get(serial).map(|interface| self.owner_behind(interface));
        self.interfaces = interfaces;
        attribution.unwrap_or(Attribution { identity: None, by: AttributedBy::None })
    }

    /// Whose an interface is, or was.
    pub(super) fn owner_behind(&mut self, interface: &Interface) -> Attribution {
        if let Some(Sockets::Of(cgroup)) = &interface.sockets {
            return self.socket_attribution(0, Some(cgroup));
        }
        self.enricher.attribute(Evidence {
            sender_cgroup: None,
            veth_owner: interface.owner.as_ref().or(interface.sender.as_ref()),
            local_ip: std::net::Ipv4Addr::UNSPECIFIED.into(),
            at_unix_ns: self.clock.unix_ns(self.clock.now_ns()),
            interface_is_host: interface.side == Side::Host,
        })
    }
}

/// Makes a record the flow's last one for a subscriber that leaves.
fn stop_trace(told: &mut Event) {
    if let Some(event::Event::NetworkFlow(flow)) = &mut told.event
        && flow.end_reason.is_empty()
    {
        flow.state = FlowState::Ended.into();
        flow.end_reason = "trace_stopped".into();
    }
}
