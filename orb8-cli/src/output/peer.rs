//! The other side of a flow, as people read it: `shop/web-1:8080`, `svc:shop/web:80 → shop/web-1`.

use orb8_proto::{NetworkFlow, Peer, PeerKind};

use super::{
    flows::endpoint,
    value::{Value, enum_name},
};

/// Peer and backend in a cell. The peer's port is shown: it may be the service's.
pub(super) fn cell(flow: &NetworkFlow) -> Value<'_> {
    let Some(peer) = &flow.peer else { return Value::Absent };
    let mut text = name(peer);
    if peer.port != 0 && is_named(peer) {
        text.push_str(&format!(":{}", peer.port));
    }
    if let Some(backend) = &flow.backend {
        text.push_str(" → ");
        text.push_str(&name(backend));
    }
    Value::owned(text)
}

fn is_named(peer: &Peer) -> bool {
    !peer.name.is_empty()
}

/// `namespace/name`, with what it is unless it is a pod; what nobody is known by is its address.
fn name(peer: &Peer) -> String {
    let Peer { namespace, name, .. } = peer;
    let full = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
    let prefix = match peer.kind() {
        PeerKind::Pod => return full,
        PeerKind::Service => "svc",
        PeerKind::Node => "node",
        PeerKind::External => "external",
        PeerKind::Loopback => "loopback",
        PeerKind::Multicast => "multicast",
        PeerKind::Hidden => "hidden",
        PeerKind::Unknown | PeerKind::Unspecified => "unknown",
    };
    if is_named(peer) { format!("{prefix}:{full}") } else { format!("{prefix} {}", address(peer)) }
}

fn address(peer: &Peer) -> String {
    match endpoint(&peer.ip, peer.port) {
        Value::Text(text) => text.into_owned(),
        _ => String::new(),
    }
}

/// Every field, for the data formats.
pub(super) fn fields(peer: Option<&Peer>) -> Value<'_> {
    let Some(peer) = peer else { return Value::Absent };
    Value::Map(vec![
        ("kind", enum_name(peer.kind().as_str_name(), "PEER_KIND_")),
        ("namespace", Value::text(&peer.namespace)),
        ("name", Value::text(&peer.name)),
        ("workload", Value::text(&peer.workload)),
        ("ip", Value::text(&peer.ip)),
        ("port", Value::number(peer.port)),
        ("named_by", enum_name(peer.named_by().as_str_name(), "NAMED_BY_")),
    ])
}

/// What runs the pod that is there in the end.
pub(super) fn workload(flow: &NetworkFlow) -> Value<'_> {
    let there = flow.backend.as_ref().or(flow.peer.as_ref());
    Value::text(there.map_or("", |peer| &peer.workload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(kind: PeerKind, namespace: &str, name: &str) -> Peer {
        Peer {
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
            ip: "fd00::7".into(),
            port: 80,
            ..Peer::default()
        }
    }

    fn shown(peer: Peer, backend: Option<Peer>) -> String {
        let flow = NetworkFlow { peer: Some(peer), backend, ..NetworkFlow::default() };
        match cell(&flow) {
            Value::Text(text) => text.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_peer_is_shown_by_its_name_or_else_by_what_its_address_is() {
        use PeerKind::{External, Multicast, Node, Pod, Service, Unknown};
        let web = || Some(peer(Pod, "shop", "web-1"));
        let cases = [
            (peer(Pod, "shop", "db"), None, "shop/db:80"),
            (peer(Service, "shop", "web"), web(), "svc:shop/web:80 → shop/web-1"),
            (peer(Node, "", "worker-2"), None, "node:worker-2:80"),
            (peer(Node, "", "worker-2"), web(), "node:worker-2:80 → shop/web-1"),
            (peer(External, "", ""), None, "external [fd00::7]:80"),
            (peer(External, "shop", "bank"), None, "external:shop/bank:80"),
            (peer(Unknown, "", ""), web(), "unknown [fd00::7]:80 → shop/web-1"),
            (Peer { port: 0, ..peer(Multicast, "", "") }, None, "multicast fd00::7"),
            (Peer { port: 0, ..peer(Pod, "shop", "db") }, None, "shop/db"),
        ];
        for (peer, backend, expected) in cases {
            assert_eq!(shown(peer, backend), expected);
        }
    }
}
