//! The columns of a node as a server sees it.

use orb8_proto::{Node, SignalState};

use super::{
    columns::{Column, Place},
    syscalls::duration,
    value::{Value, enum_name},
};

/// In the order of the tables.
pub(crate) static COLUMNS: &[Column<Node>] = &[
    column("name", "NODE", Place::Everywhere, |node| Value::text(&node.name)),
    column("state", "STATE", Place::Everywhere, |node| {
        enum_name(node.state().as_str_name(), "NODE_STATE_")
    }),
    column("since_ns", "SINCE", Place::Everywhere, |node| Value::Since(node.since_ns)),
    column("version", "VERSION", Place::Everywhere, |node| Value::text(&node.version)),
    column("kernel_release", "KERNEL", Place::Everywhere, |node| Value::text(&node.kernel_release)),
    column("works", "SIGNALS", Place::People, signals),
    column("signals", "SIGNAL-FIELDS", Place::Data, signal_fields),
    column("rtt", "RTT", Place::People, |node| duration(node.round_trip_ns)),
    column("round_trip_ns", "RTT-NS", Place::Data, |node| Value::Number(node.round_trip_ns)),
    column("reason", "REASON", Place::Everywhere, |node| Value::text(&node.reason)),
    column("address", "ADDRESS", Place::Wide, |node| Value::text(&node.address)),
    column("heard_ns", "HEARD", Place::Wide, |node| Value::Since(node.heard_ns)),
    column("started_ns", "STARTED", Place::Wide, |node| Value::Since(node.started_ns)),
];

const fn column(
    name: &'static str,
    header: &'static str,
    place: Place,
    get: for<'a> fn(&'a Node) -> Value<'a>,
) -> Column<Node> {
    // Nodes are never streamed, so their tables are always fitted.
    Column { name, header, place, width: 0, get }
}

/// Those that work by name, the others with how they do not: `network,syscall=degraded`.
fn signals(node: &Node) -> Value<'_> {
    let text = |signal: &orb8_proto::SignalStatus| match signal.state() {
        SignalState::Active => signal.name.clone(),
        SignalState::Disabled => String::new(),
        state => format!("{}={}", signal.name, state_name(state)),
    };
    let texts = node.signals.iter().map(text).filter(|text| !text.is_empty());
    Value::owned(texts.collect::<Vec<_>>().join(","))
}

fn signal_fields(node: &Node) -> Value<'_> {
    let fields = |signal: &orb8_proto::SignalStatus| {
        Value::Map(vec![
            ("name", Value::owned(signal.name.clone())),
            ("state", Value::owned(state_name(signal.state()))),
            ("reason", Value::owned(signal.reason.clone())),
        ])
    };
    Value::List(node.signals.iter().map(fields).collect())
}

fn state_name(state: SignalState) -> String {
    let name = state.as_str_name();
    name.strip_prefix("SIGNAL_STATE_").unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use orb8_proto::{NodeState, SignalStatus};

    use super::*;
    use crate::output::{Format, Look, Printer, columns::select};

    fn written(format: Format) -> String {
        let signal = |name: &str, state: SignalState| SignalStatus {
            name: name.into(),
            state: state.into(),
            reason: String::new(),
        };
        let node = Node {
            name: "node-1".into(),
            state: NodeState::Ready.into(),
            round_trip_ns: 1_234_567,
            signals: vec![
                signal("network", SignalState::Active),
                signal("syscall", SignalState::Degraded),
                signal("gpu", SignalState::Disabled),
            ],
            ..Node::default()
        };
        let columns = select(COLUMNS, &[], format).unwrap();
        let mut out = Vec::new();
        Printer::new(columns, Look { format, headers: true, color: false }, &mut out)
            .all(&[node])
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn people_see_what_works_and_what_does_not() {
        let table = written(Format::Table);
        let line = table.lines().nth(1).unwrap();
        let cells: Vec<&str> = line.split("   ").map(str::trim).filter(|c| !c.is_empty()).collect();
        let expected = ["node-1", "ready", "-", "-", "-", "network,syscall=degraded", "1 ms", "-"];
        assert_eq!(cells, expected, "{table}");
    }

    #[test]
    fn programs_see_the_protocols_fields() {
        let json: serde_json::Value = serde_json::from_str(&written(Format::Jsonl)).unwrap();
        assert_eq!(json["signals"][1]["state"], "degraded");
        assert_eq!(json["round_trip_ns"], 1_234_567);
        assert!(json.get("works").is_none(), "{json}");
    }
}
