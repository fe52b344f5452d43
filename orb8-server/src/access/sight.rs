//! What a caller may see, and what is therefore taken out of an answer.
//!
//! An answer about one namespace can name others: the peers of its flows, and what there is where
//! something was not found. Who may not list the pods of all namespaces gets a peer of another one
//! as an address, marked as hidden, and no names. Nodes are named to everybody, as a pod's own
//! `spec.nodeName` is.

use std::collections::BTreeSet;

use orb8_proto::{NetworkFlow, NotFound, Peer, PeerKind, StatusResponse};
use tonic::Status;

/// What may be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// The pods of all namespaces.
    All,
    /// Those of one.
    Namespace(String),
    /// Those of none.
    Nothing,
}

impl Sight {
    fn sees(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(name) => name == namespace,
            Self::Nothing => false,
        }
    }

    /// Hides who the peers are.
    pub(crate) fn flow(&self, flow: &mut NetworkFlow) {
        for peer in [&mut flow.peer, &mut flow.backend].into_iter().flatten() {
            if !peer.namespace.is_empty() && !self.sees(&peer.namespace) {
                *peer = Peer {
                    kind: PeerKind::Hidden.into(),
                    ip: std::mem::take(&mut peer.ip),
                    port: peer.port,
                    ..Peer::default()
                };
            }
        }
    }

    /// Hides whose the interfaces of a node are.
    pub(crate) fn status(&self, status: &mut StatusResponse) {
        for interface in &mut status.interfaces {
            if !interface.namespace.is_empty() && !self.sees(&interface.namespace) {
                interface.namespace.clear();
                interface.pod_name.clear();
            }
        }
    }

    /// Hides what there is instead of what was looked for: namespaces are named as such, pods as
    /// `NAMESPACE/POD`, and whatever else is a node's.
    pub(crate) fn candidates(&self, what: &str, candidates: &mut BTreeSet<String>) {
        match self {
            Self::All => {}
            _ if what == "node" => {}
            _ if what == "namespace" => candidates.retain(|name| self.sees(name)),
            _ => candidates.retain(|name| {
                name.split_once('/').is_some_and(|(namespace, _)| self.sees(namespace))
            }),
        }
    }

    /// An error of an agent that says in no known form what was not found.
    pub(crate) fn not_found(&self, status: &Status) -> Status {
        match self {
            Self::All => status.clone(),
            _ => NotFound::of(status).map_or_else(
                || Status::not_found("what was asked for is on no node"),
                |told| Status::not_found(format!("no {} {:?} on any node", told.what, told.name)),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(namespace: &str, name: &str) -> Peer {
        Peer {
            kind: PeerKind::Pod.into(),
            namespace: namespace.into(),
            name: name.into(),
            workload: "Deployment/x".into(),
            ip: "10.0.0.9".into(),
            port: 5432,
            ..Peer::default()
        }
    }

    #[test]
    fn a_peer_of_another_namespace_is_an_address() {
        let flow = NetworkFlow {
            peer: Some(peer("bank", "db-0")),
            backend: Some(peer("shop", "web-0")),
            ..NetworkFlow::default()
        };
        let seen = |sight: Sight| {
            let mut flow = flow.clone();
            sight.flow(&mut flow);
            (flow.peer.unwrap(), flow.backend.unwrap())
        };
        let hidden = Peer {
            kind: PeerKind::Hidden.into(),
            ip: "10.0.0.9".into(),
            port: 5432,
            ..Peer::default()
        };
        assert_eq!(seen(Sight::All), (peer("bank", "db-0"), peer("shop", "web-0")));
        assert_eq!(seen(Sight::Namespace("shop".into())), (hidden.clone(), peer("shop", "web-0")));
        assert_eq!(seen(Sight::Nothing), (hidden.clone(), hidden));
        let mut node = NetworkFlow {
            peer: Some(Peer { kind: PeerKind::Node.into(), name: "n".into(), ..Peer::default() }),
            ..NetworkFlow::default()
        };
        Sight::Nothing.flow(&mut node);
        assert_eq!(node.peer.unwrap().name, "n");
    }

    #[test]
    fn what_there_is_instead_is_told_of_the_own_namespace_only() {
        let all: BTreeSet<String> =
            ["bank", "bank/db-0", "shop", "shop/web-0", "veth1"].map(Into::into).into();
        let told = |sight: &Sight, what: &str| {
            let mut told = all.clone();
            sight.candidates(what, &mut told);
            Vec::from_iter(told)
        };
        let shop = Sight::Namespace("shop".into());
        assert_eq!(told(&shop, "namespace"), ["shop"]);
        assert_eq!(told(&shop, "pod"), ["shop/web-0"]);
        assert_eq!(told(&shop, "interface"), ["shop/web-0"]);
        assert_eq!(told(&Sight::All, "pod").len(), all.len());
        assert!(told(&Sight::Nothing, "namespace").is_empty());
    }
}
