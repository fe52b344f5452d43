//! Calls that the probe tells of, named and given to whoever listens.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use orb8_common::syscall::{SyscallEvent, event_flags::ENDED};
use orb8_proto::{Event, event};

use super::{NAME, execs::Call, names, record, task::Task};
use crate::{
    clock::boot_ns,
    enricher::Attribution,
    ledger::Stage,
    live::{Interest, SubscriberId},
};

/// Events per drain, so that a storm of them cannot keep the task from its other duties.
const DRAIN: usize = 65_536;
/// A container's name comes within this time after its first call, or is not waited for.
const WAIT_FOR_NAME: Duration = Duration::from_secs(3);
/// Events that wait for a name, some 5 MB. When it is full the oldest are told without one; whoever
/// listens to some pods only may miss those, which is counted.
const ROOM: usize = 8_192;

/// Who hears what waits, since no more will come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Nobody,
    One(SubscriberId),
    Everybody,
}

impl Task {
    /// Takes what the ring holds and gives it to whoever listens. What waits for a name waits, but not
    /// for the agent's own end; a subscriber that leaves before is told without a name, and alone.
    pub(super) fn drain(&mut self, last: Last) {
        let now = Instant::now();
        let Self { events, execs, waiting, ring_used, .. } = self;
        let (execve, execveat) = (names::number("execve"), names::number("execveat"));
        let mut bytes = 0;
        events.drain_with_rest(DRAIN, |head: SyscallEvent, rest| {
            let text = rest.get(..head.text_size as usize).unwrap_or(rest);
            bytes += size_of::<SyscallEvent>() + text.len();
            let begins = head.flags & ENDED == 0;
            let executes = begins && [execve, execveat].contains(&Some(head.number));
            let call = Call { head, text: text.into(), read: now };
            execs.take(call, executes, |call| waiting.push_back(call));
        });
        *ring_used = bytes as u64;
        execs.overdue(now, last == Last::Everybody, |call| waiting.push_back(call));
        self.give(now, last);
    }

    fn give(&mut self, now: Instant, last: Last) {
        if self.waiting.is_empty() {
            return;
        }
        let names_may_come = self.names_may_come();
        let mut without_room = self.waiting.len().saturating_sub(ROOM);
        // Who a cgroup is may become known while this goes on. What a container's runtime did before its
        // program is known by the order of the calls, so none overtakes one that waits.
        let mut waiting = HashSet::new();
        for call in std::mem::take(&mut self.waiting) {
            let attribution = self.attribution(&call, now, names_may_come);
            let waits = matches!(attribution, Waits::For(_));
            let waits = waits || waiting.contains(&call.head.cgroup_id);
            let (Waits::For(attribution) | Waits::No(attribution)) = attribution;
            if !waits || last == Last::Everybody {
                self.judge_told(&call, &attribution);
                self.tell(&call, &attribution, None);
            } else if without_room > 0 {
                without_room -= 1;
                self.judge_told(&call, &attribution);
                self.tell(&call, &attribution, None);
                if matches!(self.context.live.interest(NAME), Interest::Pods(_)) {
                    self.lose(Stage::Collect, "waiting_room_full", 1);
                }
            } else {
                if let Last::One(leaving) = last {
                    self.tell(&call, &attribution, Some(leaving));
                }
                waiting.insert(call.head.cgroup_id);
                self.waiting.push_back(call);
            }
        }
    }

    /// Whether pods that have no name yet may get one.
    fn names_may_come(&self) -> bool {
        let source = self.context.pods.source();
        let follows = source.state() != orb8_proto::PodSourceState::Static;
        follows && !source.kind.is_empty() || self.context.pods.runtime_source().is_some()
    }

    fn attribution(&mut self, call: &Call, now: Instant, names_may_come: bool) -> Waits {
        let Some(owner) = self.owner_of(call.head.cgroup_id, now) else {
            let unit = format!("cgroup-{}", call.head.cgroup_id);
            let by = crate::enricher::AttributedBy::Cgroup;
            return Waits::For(self.enricher.of_unit(&unit, by));
        };
        let Some(account) = self.accounts.get(&owner) else {
            let by = crate::enricher::AttributedBy::None;
            return Waits::No(Attribution { identity: None, by });
        };
        let attribution = account.attribution.clone();
        let Some(identity) = account.identity() else { return Waits::No(attribution) };
        let age = Duration::from_nanos(boot_ns().saturating_sub(account.first_ns));
        let is_young = age < WAIT_FOR_NAME;
        if identity.unit.is_empty() && !identity.has_names() && names_may_come && is_young {
            if let Some(named) = self.enricher.named_by_now(identity)
                && named.has_names()
            {
                return Waits::No(Attribution { identity: Some(named), ..attribution });
            }
            return Waits::For(attribution);
        }
        Waits::No(attribution)
    }

    /// Tells a call to whoever wants it, or to one only.
    fn tell(&self, call: &Call, attribution: &Attribution, only: Option<SubscriberId>) {
        // What the agent does is no news to whoever runs it, and telling of it would make more.
        if call.head.pid == std::process::id() || self.listeners.is_empty() {
            return;
        }
        let node = &self.context.config.node_name;
        let event = Event {
            node: node.clone(),
            timestamp_ns: self.wall.unix_ns(call.head.timestamp_ns),
            event: Some(event::Event::Syscall(record::event(call, attribution, node, &self.wall))),
        };
        self.context.live.publish(NAME, &event, |subscriber, _| {
            only.is_none_or(|only| only == subscriber)
                && self
                    .listeners
                    .get(&subscriber)
                    .is_some_and(|listener| listener.wants(&call.head, &self.telling.sensitive))
        });
    }
}

/// Whose a call is.
enum Waits {
    /// By its ids, but a name may come.
    For(Attribution),
    /// As well as it will ever be known.
    No(Attribution),
}
