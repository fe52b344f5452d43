//! The columns of a pod's totals.

use orb8_proto::PodTraffic;

use super::{
    columns::{Column, Place},
    flows::owner,
    value::{Value, enum_name},
};

/// In the order of the tables.
pub(crate) static COLUMNS: &[Column<PodTraffic>] = &[
    column("node", "NODE", Place::Wide, |pod| Value::text(&pod.node)),
    column("namespace", "NAMESPACE", Place::Everywhere, |pod| Value::text(&pod.namespace)),
    column("pod", "POD", Place::People, |pod| owner(&pod.pod_name, &pod.unit, pod.attributed_by())),
    column("pod_name", "POD-NAME", Place::Data, |pod| Value::text(&pod.pod_name)),
    column("ingress_bytes", "BYTES-IN", Place::Everywhere, |pod| Value::Bytes(pod.ingress_bytes)),
    column("egress_bytes", "BYTES-OUT", Place::Everywhere, |pod| Value::Bytes(pod.egress_bytes)),
    column("ingress_packets", "PACKETS-IN", Place::Everywhere, |pod| {
        Value::Number(pod.ingress_packets)
    }),
    column("egress_packets", "PACKETS-OUT", Place::Everywhere, |pod| {
        Value::Number(pod.egress_packets)
    }),
    column("flows", "FLOWS", Place::Everywhere, |pod| Value::Number(pod.flows)),
    column("timestamp_ns", "LAST-SEEN", Place::Everywhere, |pod| Value::TimeNs(pod.timestamp_ns)),
    column("overflow_packets", "OVERFLOW-PACKETS", Place::Wide, |pod| {
        Value::Number(pod.overflow_packets)
    }),
    column("early_packets", "EARLY-PACKETS", Place::Wide, |pod| Value::Number(pod.early_packets)),
    column("attributed_by", "ATTRIBUTED-BY", Place::Wide, |pod| {
        enum_name(pod.attributed_by().as_str_name(), "ATTRIBUTED_BY_")
    }),
    column("workload", "WORKLOAD", Place::Wide, |pod| Value::text(&pod.workload)),
    column("qos_class", "QOS", Place::Wide, |pod| Value::text(&pod.qos_class)),
    column("interfaces", "INTERFACES", Place::Wide, |pod| {
        Value::List(pod.interfaces.iter().map(|name| Value::text(name)).collect())
    }),
    column("unit", "UNIT", Place::Data, |pod| Value::text(&pod.unit)),
    column("pod_uid", "POD-UID", Place::Data, |pod| Value::text(&pod.pod_uid)),
];

const fn column(
    name: &'static str,
    header: &'static str,
    place: Place,
    get: for<'a> fn(&'a PodTraffic) -> Value<'a>,
) -> Column<PodTraffic> {
    // Pods are never streamed, so their tables are always fitted.
    Column { name, header, place, width: 0, get }
}
