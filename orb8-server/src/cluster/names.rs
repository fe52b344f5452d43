//! Names for the ends of flows that their agents had none for: an agent knows its own node only,
//! unless it is told otherwise.

use std::net::IpAddr;

use orb8_k8s::peers::{End, Who};
use orb8_proto::{NamedBy, NetworkFlow, OpenedBy, Peer, PeerKind};

use super::Cluster;

impl Cluster {
    /// Names the flow's peer and backend by whom the cluster knows at their addresses at the time of
    /// the record. What the agent said stays.
    pub(crate) fn name(&self, flow: &mut NetworkFlow) {
        let at = flow.timestamp_ns;
        // Of a connection that the owner opened, the other end is a server.
        let answers = flow.opened_by() == OpenedBy::Owner;
        let protocol = protocol(&flow.protocol);
        for peer in [&mut flow.peer, &mut flow.backend].into_iter().flatten() {
            let Some(ip) = unnamed(peer) else { continue };
            let port = u16::try_from(peer.port).unwrap_or(0);
            if let Some(who) = self.peers.named(End { ip, port, protocol }, at, answers) {
                write(peer, &who);
            }
        }
    }
}

/// The address of an end that its agent knows nobody by.
fn unnamed(peer: &Peer) -> Option<IpAddr> {
    let nobody = matches!(
        peer.kind(),
        // A public address may be a node's, a load balancer's, or a Service's endpoint.
        PeerKind::Unspecified | PeerKind::Unknown | PeerKind::External
    );
    peer.ip.parse().ok().filter(|_| nobody && peer.name.is_empty())
}

fn write(peer: &mut Peer, who: &Who) {
    match who {
        Who::Pod(pod) => {
            peer.set_kind(PeerKind::Pod);
            peer.namespace = pod.namespace.to_string();
            peer.name = pod.name.to_string();
            peer.workload = pod.workload().unwrap_or_default();
        }
        Who::Other(named) => {
            peer.set_kind(named.kind);
            peer.namespace = named.namespace.to_string();
            peer.name = named.name.to_string();
        }
    }
    peer.set_named_by(NamedBy::Server);
}

/// The IANA number of a protocol that has ports; 0 for others, of which ports say nothing.
fn protocol(keyword: &str) -> u8 {
    match keyword {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        _ => 0,
    }
}
