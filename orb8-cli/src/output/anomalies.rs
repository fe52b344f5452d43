//! The columns of an anomaly.

use orb8_proto::Anomaly;

use super::{
    columns::{Column, Place},
    value::{Value, enum_name},
};

/// In the order of the tables.
pub(crate) static COLUMNS: &[Column<Anomaly>] = &[
    column("since_ns", "SINCE", Place::Everywhere, 12, |a| Value::TimeNs(a.since_ns)),
    column("last_seen_ns", "LAST-SEEN", Place::Everywhere, 12, |a| Value::TimeNs(a.last_seen_ns)),
    column("cleared_ns", "CLEARED", Place::Everywhere, 12, |a| Value::TimeNs(a.cleared_ns)),
    column("node", "NODE", Place::Wide, 12, |a| Value::text(&a.node)),
    column("namespace", "NAMESPACE", Place::Everywhere, 12, |a| Value::text(&a.namespace)),
    column("owner", "WORKLOAD", Place::People, 20, owner),
    column("workload", "WORKLOAD-NAME", Place::Data, 20, |a| Value::text(&a.workload)),
    column("unit", "UNIT", Place::Data, 20, |a| Value::text(&a.unit)),
    column("pod_name", "POD", Place::Wide, 24, |a| Value::text(&a.pod_name)),
    column("container", "CONTAINER", Place::Everywhere, 12, |a| Value::text(&a.container)),
    column("kind", "KIND", Place::Everywhere, 17, |a| {
        enum_name(a.kind().as_str_name(), "ANOMALY_KIND_")
    }),
    column("syscall", "SYSCALL", Place::Everywhere, 12, |a| Value::text(&a.syscall)),
    column("occurrences", "CALLS", Place::Everywhere, 8, |a| Value::Number(a.occurrences)),
    column("value", "RATE", Place::Wide, 8, |a| rate(a, a.value)),
    column("normal", "NORMAL", Place::Wide, 8, |a| rate(a, a.normal)),
    column("deviation", "SIGMAS", Place::Wide, 8, |a| rate(a, a.deviation)),
    column("summary", "SUMMARY", Place::Data, 60, |a| Value::text(&a.summary)),
    column("evidence", "EVIDENCE", Place::Everywhere, 40, |a| {
        Value::List(a.evidence.iter().map(|text| Value::text(text)).collect())
    }),
    column("image", "IMAGE", Place::Wide, 20, |a| Value::text(&a.image)),
    column("container_id", "CONTAINER-ID", Place::Data, 64, |a| Value::text(&a.container_id)),
    column("id", "ID", Place::Data, 20, |a| Value::text(&a.id)),
];

const fn column(
    name: &'static str,
    header: &'static str,
    place: Place,
    width: usize,
    get: for<'a> fn(&'a Anomaly) -> Value<'a>,
) -> Column<Anomaly> {
    Column { name, header, place, width, get }
}

/// What runs the pod, or the unit of the node.
fn owner(anomaly: &Anomaly) -> Value<'_> {
    match (&*anomaly.workload, &*anomaly.unit) {
        ("", "") => Value::text(&anomaly.container),
        ("", unit) => Value::owned(format!("host:{unit}")),
        (workload, _) => Value::text(workload),
    }
}

/// A number of an anomaly that is about a rate.
fn rate(anomaly: &Anomaly, number: f64) -> Value<'static> {
    if anomaly.value > 0.0 { Value::Real(number) } else { Value::Absent }
}

#[cfg(test)]
mod tests {
    use orb8_proto::AnomalyKind;

    use super::*;
    use crate::output::{Format, Look, Printer, columns::select};

    fn written(format: Format, anomaly: Anomaly) -> String {
        let columns = select(COLUMNS, &[], format).unwrap();
        let mut out = Vec::new();
        let look = Look { format, headers: true, color: false };
        Printer::new(columns, look, &mut out).all(&[anomaly]).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn anomaly() -> Anomaly {
        Anomaly {
            kind: AnomalyKind::NewSyscall.into(),
            workload: "Deployment/web".into(),
            syscall: "execve".into(),
            evidence: vec!["sh (pid 9): execve /bin/sh".into()],
            ..Anomaly::default()
        }
    }

    #[test]
    fn the_data_formats_have_every_field_of_the_protocol_and_no_other() {
        let json: serde_json::Value =
            serde_json::from_str(&written(Format::Jsonl, anomaly())).unwrap();
        let mut names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        let proto = include_str!("../../../orb8-proto/proto/orb8.proto");
        let message = proto.split("message Anomaly {").nth(1).unwrap();
        let lines = message.split('}').next().unwrap().lines();
        let field = |line: &'static str| {
            line.split("//").next()?.split(" = ").next()?.split(' ').next_back()
        };
        let mut fields: Vec<_> = lines.filter_map(field).filter(|name| !name.is_empty()).collect();
        fields.sort_unstable();
        assert_eq!(names, fields);
        assert_eq!(json["kind"], "new_syscall");
        assert!(json["value"].is_null(), "{json}");
    }

    #[test]
    fn a_table_names_the_workload_or_the_unit() {
        assert!(written(Format::Table, anomaly()).contains("Deployment/web"));
        let unit = Anomaly { workload: "".into(), unit: "sshd.service".into(), ..anomaly() };
        assert!(written(Format::Table, unit).contains("host:sshd.service"));
    }
}
