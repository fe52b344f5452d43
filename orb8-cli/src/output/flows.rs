//! The columns of a network flow.

use orb8_proto::{AttributedBy, Direction, NetworkFlow};

use super::{
    columns::{Column, Place},
    peer,
    value::{Value, enum_name},
};

/// In the order of the tables.
pub(crate) static COLUMNS: &[Column<NetworkFlow>] = &[
    column("timestamp_ns", "TIME", Place::Everywhere, 12, |flow| Value::TimeNs(flow.timestamp_ns)),
    column("node", "NODE", Place::Wide, 12, |flow| Value::text(&flow.node)),
    column("namespace", "NAMESPACE", Place::Everywhere, 12, |flow| Value::text(&flow.namespace)),
    column("pod", "POD", Place::People, 24, |flow| {
        owner(&flow.pod_name, &flow.unit, flow.attributed_by())
    }),
    column("pod_name", "POD-NAME", Place::Data, 24, |flow| Value::text(&flow.pod_name)),
    column("container", "CONTAINER", Place::Wide, 16, |flow| Value::text(&flow.container)),
    column("attributed_by", "ATTRIBUTED-BY", Place::Wide, 13, |flow| {
        enum_name(flow.attributed_by().as_str_name(), "ATTRIBUTED_BY_")
    }),
    column("interface", "INTERFACE", Place::Wide, 15, |flow| Value::text(&flow.interface)),
    column("direction", "DIRECTION", Place::Everywhere, 9, |flow| {
        enum_name(flow.direction().as_str_name(), "DIRECTION_")
    }),
    column("protocol", "PROTO", Place::Everywhere, 5, |flow| Value::text(&flow.protocol)),
    column("own_port", "PORT", Place::People, 5, own_port),
    column("peer_name", "PEER", Place::People, 28, peer::cell),
    column("opened_by", "OPENED-BY", Place::Wide, 9, |flow| {
        enum_name(flow.opened_by().as_str_name(), "OPENED_BY_")
    }),
    column("workload", "WORKLOAD", Place::Wide, 20, |flow| Value::text(&flow.workload)),
    column("peer_workload", "PEER-WORKLOAD", Place::WidePeople, 20, peer::workload),
    column("source", "SOURCE", Place::WidePeople, 21, |flow| endpoint(&flow.src_ip, flow.src_port)),
    column("destination", "DESTINATION", Place::WidePeople, 21, |flow| {
        endpoint(&flow.dst_ip, flow.dst_port)
    }),
    column("peer", "PEER-FIELDS", Place::Data, 40, |flow| peer::fields(flow.peer.as_ref())),
    column("backend", "BACKEND-FIELDS", Place::Data, 40, |flow| {
        peer::fields(flow.backend.as_ref())
    }),
    column("src_ip", "SOURCE-IP", Place::Data, 15, |flow| Value::text(&flow.src_ip)),
    column("src_port", "SOURCE-PORT", Place::Data, 5, |flow| Value::number(flow.src_port)),
    column("dst_ip", "DESTINATION-IP", Place::Data, 15, |flow| Value::text(&flow.dst_ip)),
    column("dst_port", "DESTINATION-PORT", Place::Data, 5, |flow| Value::number(flow.dst_port)),
    column("bytes", "BYTES", Place::Everywhere, 10, |flow| Value::Bytes(flow.bytes)),
    column("packets", "PACKETS", Place::Wide, 8, |flow| Value::Number(flow.packets)),
    column("wire_packets", "WIRE-PACKETS", Place::Wide, 12, |flow| {
        Value::Number(flow.wire_packets)
    }),
    column("state", "STATE", Place::Everywhere, 8, |flow| {
        enum_name(flow.state().as_str_name(), "FLOW_STATE_")
    }),
    column("end_reason", "END-REASON", Place::Wide, 13, |flow| Value::text(&flow.end_reason)),
    column("tcp_flags", "TCP-FLAGS", Place::Wide, 11, |flow| Value::text(&flow.tcp_flags)),
    column("first_seen_ns", "FIRST-SEEN", Place::Wide, 30, |flow| {
        Value::TimeNs(flow.first_seen_ns)
    }),
    column("vlan_id", "VLAN", Place::Wide, 4, |flow| Value::optional(flow.vlan_id)),
    column("icmp_type", "ICMP-TYPE", Place::Data, 9, |flow| Value::optional(flow.icmp_type)),
    column("icmp_code", "ICMP-CODE", Place::Data, 9, |flow| Value::optional(flow.icmp_code)),
    column("fragment", "FRAGMENT", Place::Data, 8, |flow| Value::Flag(flow.fragment)),
    column("malformed", "MALFORMED", Place::Data, 9, |flow| Value::Flag(flow.malformed)),
    column("pod_uid", "POD-UID", Place::Data, 36, |flow| Value::text(&flow.pod_uid)),
    column("unit", "UNIT", Place::Data, 24, |flow| Value::text(&flow.unit)),
    column("container_id", "CONTAINER-ID", Place::Data, 64, |flow| Value::text(&flow.container_id)),
];

const fn column(
    name: &'static str,
    header: &'static str,
    place: Place,
    width: usize,
    get: for<'a> fn(&'a NetworkFlow) -> Value<'a>,
) -> Column<NetworkFlow> {
    Column { name, header, place, width, get }
}

/// The pod's name, or who it is instead. Colons and angle brackets cannot occur in a pod's name.
pub(super) fn owner<'a>(pod_name: &'a str, unit: &str, by: AttributedBy) -> Value<'a> {
    match by {
        _ if !pod_name.is_empty() => Value::text(pod_name),
        _ if !unit.is_empty() => Value::owned(format!("host:{unit}")),
        AttributedBy::Host => Value::text("<host>"),
        _ => Value::text("<unknown>"),
    }
}

/// The port on the owner's side: a server's is what it serves.
fn own_port(flow: &NetworkFlow) -> Value<'_> {
    let port = match flow.direction() {
        Direction::Egress => flow.src_port,
        Direction::Ingress => flow.dst_port,
        Direction::Unspecified => 0,
    };
    if port == 0 { Value::Absent } else { Value::number(port) }
}

/// `ip:port`, IPv6 in brackets, and the bare address where the protocol has no ports.
pub(super) fn endpoint(ip: &str, port: u32) -> Value<'_> {
    if port == 0 {
        Value::text(ip)
    } else if ip.contains(':') {
        Value::owned(format!("[{ip}]:{port}"))
    } else {
        Value::owned(format!("{ip}:{port}"))
    }
}

#[cfg(test)]
mod tests {
    use orb8_proto::{FlowState, OpenedBy, Peer, PeerKind};

    use super::*;
    use crate::output::{Format, Look, Printer, columns::select};

    fn flow() -> NetworkFlow {
        NetworkFlow {
            namespace: "prod".into(),
            pod_name: "web-1".into(),
            src_ip: "fd00::1".into(),
            dst_ip: "10.0.0.2".into(),
            src_port: 40_000,
            dst_port: 80,
            protocol: "tcp".into(),
            bytes: 1_258_291,
            packets: 12,
            timestamp_ns: 1_700_000_000_123_456_789,
            direction: Direction::Egress.into(),
            attributed_by: AttributedBy::SocketCgroup.into(),
            state: FlowState::Ended.into(),
            opened_by: OpenedBy::Owner.into(),
            workload: "Deployment/web".into(),
            peer: Some(Peer {
                kind: PeerKind::Service.into(),
                namespace: "prod".into(),
                name: "db".into(),
                ip: "10.0.0.2".into(),
                port: 80,
                ..Peer::default()
            }),
            ..NetworkFlow::default()
        }
    }

    fn written(format: Format, fields: &[&str], flows: &[NetworkFlow]) -> String {
        let fields: Vec<_> = fields.iter().map(ToString::to_string).collect();
        let columns = select(COLUMNS, &fields, format).unwrap();
        let mut out = Vec::new();
        let look = Look { format, headers: true, color: false };
        Printer::new(columns, look, &mut out).all(flows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_data_formats_have_every_field_of_the_protocol_and_no_other() {
        let text = written(Format::Jsonl, &[], &[flow()]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        let proto = include_str!("../../../orb8-proto/proto/orb8.proto");
        let message = proto.split("message NetworkFlow {").nth(1).unwrap();
        let mut fields: Vec<_> = message
            .split('}')
            .next()
            .unwrap()
            .lines()
            .filter_map(|line| line.split("//").next()?.split(" = ").next()?.split(' ').next_back())
            .filter(|name| !name.is_empty())
            .collect();
        fields.sort_unstable();
        assert_eq!(names, fields);
        assert_eq!(json["direction"], "egress");
        assert_eq!(json["attributed_by"], "socket_cgroup");
        assert_eq!(json["state"], "ended");
        assert_eq!(json["bytes"], 1_258_291);
        assert!(json["vlan_id"].is_null());
        assert_eq!((&json["peer"]["kind"], &json["peer"]["port"]), (&"service".into(), &80.into()));
        assert_eq!((&json["opened_by"], &json["backend"]), (&"owner".into(), &().into()));
    }

    #[test]
    fn the_table_rounds_and_the_wide_table_is_exact() {
        let table = written(Format::Table, &[], &[flow()]);
        assert!(table.contains("22:13:20.123"), "{table}");
        assert!(table.contains("tcp     40000   svc:prod/db:80   1.2 MiB"), "{table}");
        let wide = written(Format::Wide, &[], &[flow()]);
        assert!(wide.contains("2023-11-14T22:13:20.123456789Z"), "{wide}");
        assert!(wide.contains("1258291"), "{wide}");
        assert!(wide.contains("[fd00::1]:40000   10.0.0.2:80"), "{wide}");
        assert!(wide.contains("owner       Deployment/web"), "{wide}");
    }

    #[test]
    fn a_table_of_usual_names_is_readable_in_120_columns() {
        let backend = Peer {
            kind: PeerKind::Pod.into(),
            namespace: "prod".into(),
            name: "db-0".into(),
            ..Peer::default()
        };
        let flow =
            NetworkFlow { pod_name: "web-5d9c7bb4f8-x".into(), backend: Some(backend), ..flow() };
        let table = written(Format::Table, &[], &[flow]);
        assert!(table.contains("svc:prod/db:80 → prod/db-0"), "{table}");
        let widest = table.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(120), "{widest:?}:\n{table}");
    }

    #[test]
    fn owners_without_a_name_are_named_for_what_they_are() {
        let cell = |by| {
            let nameless = NetworkFlow {
                pod_name: String::new(),
                attributed_by: AttributedBy::into(by),
                ..flow()
            };
            written(Format::Table, &["pod"], &[nameless])
        };
        assert_eq!(cell(AttributedBy::Host), "POD\n<host>\n");
        assert_eq!(cell(AttributedBy::None), "POD\n<unknown>\n");
        let unit = NetworkFlow { pod_name: String::new(), unit: "sshd.service".into(), ..flow() };
        assert_eq!(written(Format::Table, &["pod"], &[unit]), "POD\nhost:sshd.service\n");
    }

    #[test]
    fn json_is_one_array_and_yaml_one_sequence_even_when_empty() {
        for records in [vec![], vec![flow()], vec![flow(), flow()]] {
            let json: Vec<serde_json::Value> =
                serde_json::from_str(&written(Format::Json, &[], &records)).unwrap();
            let yaml: Vec<serde_json::Value> =
                serde_saphyr::from_str(&written(Format::Yaml, &[], &records)).unwrap();
            assert_eq!(json.len(), records.len());
            assert_eq!(json, yaml);
        }
    }

    #[test]
    fn ports_are_left_out_where_there_are_none() {
        assert_eq!(endpoint("10.0.0.1", 0), Value::text("10.0.0.1"));
        assert_eq!(endpoint("::1", 0), Value::text("::1"));
        assert_eq!(endpoint("", 0), Value::text(""));
    }
}
