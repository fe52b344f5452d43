//! The other side of flows: who it is as the packets name it, and who is really there where the node
//! translates addresses.

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use orb8_k8s::{
    PodLookup,
    peers::{End, Named, PeerStore, Who},
};
use orb8_proto::{Direction, NetworkFlow, OpenedBy, Peer, PeerKind, PodSource, PodSourceState};

use super::{
    facing::{Real, RealEnd, may_be_translated, peer_end, sent_by_owner},
    interfaces::Side,
    maps::FlowId,
    record,
    table::{Flow, FlowKey},
    task::Task,
};
use crate::netlink::conntrack::{Conntrack, NotTracked, RealPeer, Tuple};

/// Connections that the kernel is asked about in a second, at most, at 10 to 20 µs each. Beyond
/// them, flows have no backend until they have another record, and are counted as unasked.
const ASKS_PER_TICK: u32 = 2_000;
/// A kernel that refused to answer is asked again after this long.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// Whom there is to name, and what is needed to find out.
pub(super) struct Peers {
    pods: Arc<dyn PodLookup>,
    cluster: Option<Arc<PeerStore>>,
    own_addresses: HashSet<IpAddr>,
    own: Who,
    conntrack: io::Result<Conntrack>,
    refused: Option<(Instant, String)>,
    asks_left: u32,
    /// Flows whose first record went out before the kernel was asked.
    pub(super) unasked: u64,
    generations: (u64, u64),
    /// Counts changes of facts that names rest on.
    generation: u32,
}

impl Peers {
    /// To be made on the thread whose network namespace is the node's.
    pub(super) fn new(
        node: &str,
        pods: Arc<dyn PodLookup>,
        cluster: Option<Arc<PeerStore>>,
    ) -> Self {
        Self {
            pods,
            cluster,
            own_addresses: HashSet::new(),
            own: Who::Other(Named::new(PeerKind::Node, "", node)),
            conntrack: Conntrack::open(),
            refused: None,
            asks_left: ASKS_PER_TICK,
            unasked: 0,
            generations: (0, 0),
            generation: 1,
        }
    }

    /// Takes note of what has changed since the last tick.
    pub(super) fn tick(&mut self) {
        self.asks_left = ASKS_PER_TICK;
        let cluster = self.cluster.as_ref().map_or(0, |cluster| cluster.generation());
        let generations = (self.pods.generation(), cluster);
        if self.generations != generations {
            self.generations = generations;
            self.generation += 1;
        }
    }

    /// These are the node's own addresses.
    pub(super) fn set_own_addresses(&mut self, addresses: HashSet<IpAddr>) {
        if self.own_addresses != addresses {
            self.own_addresses = addresses;
            self.generation += 1;
        }
    }

    /// Where names come from, and what is missing.
    pub(super) fn source(&self) -> PodSource {
        let mut source = match &self.cluster {
            Some(cluster) => cluster.source(),
            None => PodSource { state: PodSourceState::Static.into(), ..PodSource::default() },
        };
        let refused = match (&self.conntrack, &self.refused) {
            (Err(why), _) => Some(why.to_string()),
            (Ok(_), refused) => refused.as_ref().map(|(_, why)| why.clone()),
        };
        if let Some(why) = refused {
            let gap = if source.reason.is_empty() { "" } else { "; " };
            let what = "who is behind Services is not known: connection tracking cannot be asked";
            source.reason = format!("{}{gap}{what}: {why}", source.reason);
        }
        source
    }

    /// Who was at `end` then; see [`PeerStore::named`] for `answers`.
    fn who(&self, end: End, at: i64, answers: bool) -> Option<Who> {
        if let Some(pod) = self.pods.by_ip(end.ip, at) {
            return Some(Who::Pod(pod));
        }
        let named = self.cluster.as_ref().and_then(|cluster| cluster.named(end, at, answers));
        if named.is_some() || !self.own_addresses.contains(&end.ip) {
            return named;
        }
        // The API may not know all of this node's addresses; its ports are those of all nodes.
        let port = self.cluster.as_ref().and_then(|cluster| cluster.node_port(end, at, answers));
        Some(port.unwrap_or_else(|| self.own.clone()))
    }

    /// Asks the kernel who is really there. `None`: not now.
    fn ask(&mut self, tuple: &Tuple) -> Option<Result<Option<RealPeer>, NotTracked>> {
        let recent = |at: &Instant| at.elapsed() < REFUSED_FOR;
        if self.refused.as_ref().is_some_and(|(at, _)| recent(at)) {
            return Some(Err(NotTracked));
        }
        let Ok(conntrack) = &mut self.conntrack else { return Some(Err(NotTracked)) };
        self.asks_left = self.asks_left.checked_sub(1)?;
        match conntrack.real_peer(tuple) {
            Ok(answer) => {
                self.refused = None;
                Some(answer)
            }
            Err(why) => {
                tracing::debug!("connection tracking: {why}");
                self.refused = Some((Instant::now(), why.to_string()));
                Some(Err(NotTracked))
            }
        }
    }

    /// Writes a flow's peer and backend, at the record's time. Who was not known when the flow was last told of may be by
    /// now.
    pub(super) fn write(&self, to: &mut NetworkFlow, id: &FlowId, flow: &Flow, side: Side) {
        let Some(end) = peer_end(id, side) else { return };
        let at = to.timestamp_ns;
        let facing = &flow.facing;
        let named = |who: &Option<Who>, end, answers| match who {
            Some(who) => Some(who.clone()),
            None => self.who(end, at, answers),
        };
        to.peer = Some(told(named(&facing.who, end, facing.answers), end));
        if let Real::Other(real) = &facing.real {
            let there = End { ip: real.at.ip(), port: real.at.port(), ..end };
            to.backend = Some(told(named(&real.who, there, real.answers), there));
        }
    }
}

impl Task {
    /// Names the other side of a flow, when facts changed since it was last named.
    pub(super) fn name_peer(&mut self, key: &FlowKey) {
        let Some(interface) = self.interfaces.get(key.serial()) else { return };
        let Some(flow) = self.table.get(key) else { return };
        let (id, side) = (key.id(), interface.side);
        let Some(end) = peer_end(id, side) else { return };
        let sends = record::direction(id.hook(), side) == Direction::Egress;
        let at = self.clock.unix_ns(flow.last_ns);
        let opened = flow.opening.opened_by(sends) == OpenedBy::Owner;
        let (last_ns, closed) = (flow.last_ns, flow.fin || flow.rst);
        let reverse = self.table.get(&key.reverse()).filter(|reverse| reverse.end.is_none());

        let facing = &flow.facing;
        let new_facts = facing.named_at != self.peers.generation;
        let answers = opened || facing.leads_on();
        let renames = new_facts || facing.answers != answers;
        if !renames && !facing.is_stale(id, last_ns, closed) {
            return;
        }
        let peers = &mut self.peers;
        let mut facing = facing.clone();
        let first = facing.named_at == 0;
        if renames {
            (facing.answers, facing.who) = (answers, peers.who(end, at, answers));
        }
        let mut moved = false;
        if facing.is_stale(id, last_ns, closed) {
            let known = reverse.map(|reverse| &reverse.facing);
            if !may_be_translated(id, side, end, &facing) {
                facing.take(Ok(None), last_ns);
            } else if let Some(known) = known.filter(|known| !known.is_stale(id, last_ns, closed)) {
                facing.copy(known);
                moved = true;
            } else if let Some(answer) = peers.ask(&sent_by_owner(id, end, sends)) {
                facing.take(answer, last_ns);
                moved = true;
            } else if first {
                peers.unasked += 1;
            }
        }
        if (moved || new_facts)
            && let Real::Other(real) = &facing.real
        {
            let (there, answers) = (real.at, real.answers);
            let end = End { ip: there.ip(), port: there.port(), ..end };
            let who = peers.who(end, at, answers);
            facing.real = Real::Other(Arc::new(RealEnd { at: there, answers, who }));
        }
        if facing.leads_on() && !facing.answers {
            facing.answers = true;
            facing.who = peers.who(end, at, true);
        }
        facing.named_at = peers.generation;
        if let Some(flow) = self.table.get_mut(key) {
            flow.facing = facing;
        }
    }
}

/// As the wire has it.
fn told(who: Option<Who>, end: End) -> Peer {
    let End { ip, port, .. } = end;
    let mut peer = Peer { ip: ip.to_string(), port: port.into(), ..Peer::default() };
    match who {
        Some(Who::Pod(pod)) => {
            peer.set_kind(PeerKind::Pod);
            peer.namespace = pod.namespace.to_string();
            peer.name = pod.name.to_string();
            peer.workload = pod.workload().unwrap_or_default();
        }
        Some(Who::Other(named)) => {
            peer.set_kind(named.kind);
            peer.namespace = named.namespace.to_string();
            peer.name = named.name.to_string();
        }
        None => peer.set_kind(class(ip)),
    }
    peer
}

/// What an address is that nobody is known by, from the registries of special addresses (RFC 6890).
pub(super) fn class(ip: IpAddr) -> PeerKind {
    let private = match ip.to_canonical() {
        ip if ip.is_loopback() => return PeerKind::Loopback,
        ip if ip.is_multicast() => return PeerKind::Multicast,
        IpAddr::V4(ip) if ip.is_broadcast() => return PeerKind::Multicast,
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && b & 0xc0 == 64;
            ip.is_private() || ip.is_link_local() || shared || a == 0 || a >= 240
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified(),
    };
    if private { PeerKind::Unknown } else { PeerKind::External }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_nobody_is_known_by_is_told_for_what_it_is() {
        let cases = [
            ("10.0.0.1", PeerKind::Unknown),
            ("172.31.255.255", PeerKind::Unknown),
            ("192.168.7.7", PeerKind::Unknown),
            ("100.64.0.1", PeerKind::Unknown),
            ("100.128.0.1", PeerKind::External),
            ("169.254.169.254", PeerKind::Unknown),
            ("0.0.0.0", PeerKind::Unknown),
            ("240.0.0.1", PeerKind::Unknown),
            ("255.255.255.255", PeerKind::Multicast),
            ("224.0.0.251", PeerKind::Multicast),
            ("127.3.2.1", PeerKind::Loopback),
            ("8.8.8.8", PeerKind::External),
            ("172.32.0.1", PeerKind::External),
            ("::1", PeerKind::Loopback),
            ("::", PeerKind::Unknown),
            ("ff02::1", PeerKind::Multicast),
            ("fe80::1", PeerKind::Unknown),
            ("fd00::1", PeerKind::Unknown),
            ("2001:4860:4860::8888", PeerKind::External),
            ("::ffff:10.0.0.1", PeerKind::Unknown),
        ];
        for (ip, expected) in cases {
            assert_eq!(class(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
