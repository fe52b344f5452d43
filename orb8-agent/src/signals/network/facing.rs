//! What is known of a flow's other side, for how long that is good, and how the kernel is asked for
//! more.

use std::{net::SocketAddr, sync::Arc};

use orb8_common::network::key_flags;
use orb8_k8s::peers::{End, Who};
use orb8_proto::{Direction, PeerKind};

use super::{interfaces::Side, maps::FlowId, peers::class, record};
use crate::netlink::conntrack::{NotTracked, RealPeer, Tuple};

/// The kernel may not know a connection yet when its first packet is told of, so it is asked twice.
const TRIES: u8 = 2;
/// Datagrams may go elsewhere once the kernel has forgotten where the last ones went, which takes it
/// 30 s, or when a backend is taken away from a Service. Connections stay.
const GOOD_FOR_NS: u64 = 10_000_000_000;
/// After a connection's end, what comes may be of the next one by the same ports.
const GOOD_AFTER_THE_END_FOR_NS: u64 = 1_000_000_000;

/// What is known of a flow's other side.
#[derive(Clone, Debug, Default)]
pub(super) struct Facing {
    pub(super) who: Option<Who>,
    /// When it was named, in the count of changed facts; 0 is never.
    pub(super) named_at: u32,
    /// It was known to be who is asked, not who asks.
    pub(super) answers: bool,
    pub(super) real: Real,
    tries: u8,
    asked_ns: u64,
}

/// Who is really there.
#[derive(Clone, Debug, Default)]
pub(super) enum Real {
    #[default]
    Unasked,
    /// Whoever the packets name, as far as can be told.
    AsNamed,
    Other(Arc<RealEnd>),
}

#[derive(Debug)]
pub(super) struct RealEnd {
    pub(super) at: SocketAddr,
    /// It is a server, not a client.
    pub(super) answers: bool,
    pub(super) who: Option<Who>,
}

impl Facing {
    /// What it names is a front, behind which there is a server.
    pub(super) fn leads_on(&self) -> bool {
        matches!(&self.real, Real::Other(real) if real.answers)
    }

    /// Whether it is time to ask the kernel who is really there. `closed`: a FIN or RST was seen.
    pub(super) fn is_stale(&self, id: &FlowId, last_ns: u64, closed: bool) -> bool {
        let since_ns = last_ns.saturating_sub(self.asked_ns);
        match self.real {
            Real::Unasked => true,
            _ if (1..TRIES).contains(&self.tries) => since_ns > 0,
            _ if id.key.protocol != TCP => since_ns > GOOD_FOR_NS,
            _ => closed && since_ns > GOOD_AFTER_THE_END_FOR_NS,
        }
    }

    /// The same conversation's other direction knows.
    pub(super) fn copy(&mut self, known: &Self) {
        self.real = known.real.clone();
        (self.tries, self.asked_ns) = (known.tries, known.asked_ns);
    }

    /// The kernel's answer, when the flow's last packet was at `last_ns`.
    pub(super) fn take(&mut self, answer: Result<Option<RealPeer>, NotTracked>, last_ns: u64) {
        self.asked_ns = last_ns;
        let other = |at, answers| Real::Other(Arc::new(RealEnd { at, answers, who: None }));
        self.tries = if answer.is_err() { self.tries.saturating_add(1) } else { 0 };
        self.real = match (answer, &self.real) {
            (Ok(Some(RealPeer::Server(at))), _) => other(at, true),
            (Ok(Some(RealPeer::Client(at))), _) => other(at, false),
            // The kernel has forgotten what it knew, and there was no packet to make it know again.
            (Err(NotTracked), Real::Other(_)) => return,
            (Ok(None) | Err(NotTracked), _) => Real::AsNamed,
        };
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// The end of a flow that is not the workload's or the node's; `None` where there are no addresses.
pub(super) fn peer_end(id: &FlowId, side: Side) -> Option<End> {
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
pub(super) fn sent_by_owner(id: &FlowId, peer: End, sends: bool) -> Tuple {
    let (src, dst) = record::addresses(id);
    let (ip, port) = if sends { (src, id.key.src_port) } else { (dst, id.key.dst_port) };
    let to = SocketAddr::new(peer.ip, peer.port);
    Tuple { protocol: peer.protocol, src: SocketAddr::new(ip, port), dst: to }
}

/// Whether the node may translate the flow's peer. A pod's address is its own.
pub(super) fn may_be_translated(id: &FlowId, side: Side, end: End, facing: &Facing) -> bool {
    const BROKEN: u8 = key_flags::FRAGMENT | key_flags::MALFORMED;
    side == Side::Workload
        && matches!(id.key.protocol, TCP | UDP | SCTP)
        && id.key.flags & BROKEN == 0
        && !matches!(facing.who, Some(Who::Pod(_)))
        && !matches!(class(end.ip), PeerKind::Loopback | PeerKind::Multicast)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_asked_about_again_and_connections_are_not_once_they_are_known() {
        let (tcp, udp) = (FlowId::example(TCP, 1, 2), FlowId::example(UDP, 1, 2));
        let stale = |facing: &Facing, id, last_ns| facing.is_stale(id, last_ns, false);
        let mut facing = Facing::default();
        assert!(stale(&facing, &tcp, 5) && stale(&facing, &udp, 5));
        facing.take(Err(NotTracked), 5);
        assert!(!stale(&facing, &tcp, 5), "nothing has moved");
        assert!(stale(&facing, &tcp, 6), "it may be tracked by now");
        facing.take(Err(NotTracked), 6);
        assert!(!stale(&facing, &tcp, GOOD_FOR_NS * 100), "it is not tracked");
        facing.take(Ok(None), 7);
        assert!(!stale(&facing, &tcp, GOOD_FOR_NS * 100));
        assert!(!stale(&facing, &udp, 7 + GOOD_FOR_NS) && stale(&facing, &udp, 8 + GOOD_FOR_NS));
        // The same ports, used again.
        assert!(!facing.is_stale(&tcp, 8, true));
        assert!(facing.is_stale(&tcp, 8 + GOOD_AFTER_THE_END_FOR_NS, true));
        let server = RealPeer::Server("10.0.0.5:80".parse().unwrap());
        facing.take(Ok(Some(server)), 9);
        facing.take(Err(NotTracked), 10);
        assert!(facing.leads_on(), "what the kernel has forgotten was true all the same");
    }
}
