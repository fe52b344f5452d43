//! The other side of flows: who it is as the packets name it, and who is really there where the node
//! translates addresses.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use orb8_common::network::key_flags;
use orb8_proto::{Direction, NetworkFlow, OpenedBy, Peer, PeerKind, PodSource, PodSourceState};

use super::{
    interfaces::Side,
    maps::FlowId,
    record,
    table::{Flow, FlowKey},
    task::Task,
};
use crate::{
    enricher::PodLookup,
    k8s::peers::{End, Named, PeerStore, Who},
    netlink::conntrack::{Conntrack, NotTracked, RealPeer, Tuple},
};

/// Connections that the kernel is asked about in a second, at most: about 20 ms of work. Beyond
/// them, flows have no backend until they have another record, and are counted as unasked.
const ASKS_PER_TICK: u32 = 2_000;
/// The kernel may not know a connection yet when its first packet is told of, so it is asked twice.
const TRIES: u8 = 2;
/// Datagrams may go elsewhere once the kernel has forgotten where the last ones went, which takes it
/// 30 s, or when a backend is taken away from a Service. Connections stay.
const GOOD_FOR_NS: u64 = 10_000_000_000;
/// A kernel that refused to answer is asked again after this long.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// What is known of a flow's other side.
#[derive(Clone, Debug, Default)]
pub(super) struct Facing {
    who: Option<Who>,
    /// When it was named, in the count of changed facts; 0 is never.
    named_at: u32,
    /// It was known to be who is asked, not who asks.
    answers: bool,
    real: Real,
    tries: u8,
    asked_ns: u64,
}

/// Who is really there.
#[derive(Clone, Debug, Default)]
enum Real {
    #[default]
    Unasked,
    /// Whoever the packets name, as far as can be told.
    AsNamed,
    Other(Arc<RealEnd>),
}

#[derive(Debug)]
struct RealEnd {
    at: SocketAddr,
    /// It is a server, not a client.
    answers: bool,
    who: Option<Who>,
}

impl Facing {
    /// The connection begins anew, and may lead elsewhere.
    pub(super) fn ask_again(&mut self) {
        (self.real, self.tries) = (Real::Unasked, 0);
    }
}

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
        let last_ns = flow.last_ns;
        let reverse = self.table.get(&key.reverse()).filter(|reverse| reverse.end.is_none());

        let facing = &flow.facing;
        let new_facts = facing.named_at != self.peers.generation;
        let answers = opened || facing.leads_on();
        let renames = new_facts || facing.answers != answers;
        if !renames && !facing.is_stale(id, last_ns) {
            return;
        }
        let peers = &mut self.peers;
        let mut facing = facing.clone();
        let first = facing.named_at == 0;
        if renames {
            (facing.answers, facing.who) = (answers, peers.who(end, at, answers));
        }
        let mut moved = false;
        if facing.is_stale(id, last_ns) {
            let known = reverse.map(|reverse| &reverse.facing);
            if !may_be_translated(id, side, end, &facing) {
                facing.take(Ok(None), last_ns);
            } else if let Some(known) = known.filter(|known| !known.is_stale(id, last_ns)) {
                facing.real = known.real.clone();
                (facing.tries, facing.asked_ns) = (known.tries, known.asked_ns);
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

impl Facing {
    /// What it names is a front, behind which there is a server.
    fn leads_on(&self) -> bool {
        matches!(&self.real, Real::Other(real) if real.answers)
    }

    /// Whether it is time to ask the kernel who is really there.
    fn is_stale(&self, id: &FlowId, last_ns: u64) -> bool {
        let since_ns = last_ns.saturating_sub(self.asked_ns);
        match self.real {
            Real::Unasked => true,
            _ if (1..TRIES).contains(&self.tries) => since_ns > 0,
            _ => id.key.protocol != TCP && since_ns > GOOD_FOR_NS,
        }
    }

    fn take(&mut self, answer: Result<Option<RealPeer>, NotTracked>, last_ns: u64) {
        self.asked_ns = last_ns;
        let other = |at, answers| Real::Other(Arc::new(RealEnd { at, answers, who: None }));
        self.tries = if answer.is_err() { self.tries.saturating_add(1) } else { 0 };
        self.real = match answer {
            Ok(Some(RealPeer::Server(at))) => other(at, true),
            Ok(Some(RealPeer::Client(at))) => other(at, false),
            Ok(None) | Err(NotTracked) => Real::AsNamed,
        };
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// The end of a flow that is not the workload's or the node's; `None` where there are no addresses.
fn peer_end(id: &FlowId, side: Side) -> Option<End> {
    const NO_PORTS: u8 = key_flags::FRAGMENT | key_flags::MALFORMED;
    let key = &id.key;
    if key.flags & key_flags::NOT_IP != 0 {
        return None;
    }
    let (src, dst) = record::addresses(id);
    let sends = record::direction(id.hook(), side) == Direction::Egress;
    let (ip, port) = if sends { (dst, key.dst_port) } else { (src, key.src_port) };
    let has_port = !matches!(key.protocol, 1 | 58) && key.flags & NO_PORTS == 0;
    Some(End { ip, port: if has_port { port } else { 0 }, protocol: key.protocol })
}

/// The packets of the flow's conversation that its owner sends. That is how the kernel has them: a
/// server's as they are before its answers are translated back, a client's as they are before they
/// are translated.
fn sent_by_owner(id: &FlowId, peer: End, sends: bool) -> Tuple {
    let (src, dst) = record::addresses(id);
    let (ip, port) = if sends { (src, id.key.src_port) } else { (dst, id.key.dst_port) };
    let to = SocketAddr::new(peer.ip, peer.port);
    Tuple { protocol: peer.protocol, src: SocketAddr::new(ip, port), dst: to }
}

/// Whether the node may translate the flow's peer. A pod's address is its own.
fn may_be_translated(id: &FlowId, side: Side, end: End, facing: &Facing) -> bool {
    const BROKEN: u8 = key_flags::FRAGMENT | key_flags::MALFORMED;
    side == Side::Workload
        && matches!(id.key.protocol, TCP | UDP | SCTP)
        && id.key.flags & BROKEN == 0
        && !matches!(facing.who, Some(Who::Pod(_)))
        && !matches!(class(end.ip), PeerKind::Loopback | PeerKind::Multicast)
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
fn class(ip: IpAddr) -> PeerKind {
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

    #[test]
    fn datagrams_are_asked_about_again_and_connections_are_not_once_they_are_known() {
        use orb8_common::network::{FlowKey6, family};
        let id = |protocol| {
            let key = FlowKey6 {
                src: [1, 0, 0, 0],
                dst: [2, 0, 0, 0],
                src_port: 1,
                dst_port: 2,
                ifindex: 3,
                vlan: 0,
                protocol,
                flags: 0,
            };
            FlowId { key, family: family::V4 }
        };
        let (tcp, udp) = (id(TCP), id(UDP));
        let mut facing = Facing::default();
        assert!(facing.is_stale(&tcp, 5) && facing.is_stale(&udp, 5));
        facing.take(Err(NotTracked), 5);
        assert!(!facing.is_stale(&tcp, 5), "nothing has moved");
        assert!(facing.is_stale(&tcp, 6), "it may be tracked by now");
        facing.take(Err(NotTracked), 6);
        assert!(!facing.is_stale(&tcp, GOOD_FOR_NS * 100), "it is not tracked");
        facing.take(Ok(None), 7);
        assert!(!facing.is_stale(&tcp, GOOD_FOR_NS * 100));
        assert!(!facing.is_stale(&udp, 7 + GOOD_FOR_NS) && facing.is_stale(&udp, 8 + GOOD_FOR_NS));
        facing.ask_again();
        assert!(facing.is_stale(&tcp, 8));
    }
}
