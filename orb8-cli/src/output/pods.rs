//! The columns of a pod's totals.

use orb8_proto::PodTraffic;

use super::{
    columns::{Column, Place},
    flows::owner,
    value::{Value, enum_name},
};

const NODE: Column<PodTraffic> = column("node", "NODE", Place::Wide, |pod| Value::text(&pod.node));
const NAMESPACE: Column<PodTraffic> =
    column("namespace", "NAMESPACE", Place::Everywhere, |pod| Value::text(&pod.namespace));
const POD: Column<PodTraffic> =
    column("pod", "POD", Place::People, |pod| owner(&pod.pod_name, &pod.unit, pod.attributed_by()));
const POD_NAME: Column<PodTraffic> =
    column("pod_name", "POD-NAME", Place::Data, |pod| Value::text(&pod.pod_name));
const BYTES_IN: Column<PodTraffic> =
    column("ingress_bytes", "BYTES-IN", Place::Everywhere, |pod| Value::Bytes(pod.ingress_bytes));
const BYTES_OUT: Column<PodTraffic> =
    column("egress_bytes", "BYTES-OUT", Place::Everywhere, |pod| Value::Bytes(pod.egress_bytes));
const PACKETS_IN: Column<PodTraffic> =
    column("ingress_packets", "PACKETS-IN", Place::Everywhere, |pod| {
        Value::Number(pod.ingress_packets)
    });
const PACKETS_OUT: Column<PodTraffic> =
    column("egress_packets", "PACKETS-OUT", Place::Everywhere, |pod| {
        Value::Number(pod.egress_packets)
    });
const WORKLOAD: Column<PodTraffic> =
    column("workload", "WORKLOAD", Place::Wide, |pod| Value::text(&pod.workload));
const UNIT: Column<PodTraffic> = column("unit", "UNIT", Place::Data, |pod| Value::text(&pod.unit));

/// In the order of the tables.
pub(crate) static COLUMNS: &[Column<PodTraffic>] = &[
    NODE,
    NAMESPACE,
    POD,
    POD_NAME,
    BYTES_IN,
    BYTES_OUT,
    PACKETS_IN,
    PACKETS_OUT,
    column("flows", "FLOWS", Place::Everywhere, |pod| Value::Number(pod.flows)),
    column("timestamp_ns", "LAST-SEEN", Place::Everywhere, |pod| Value::TimeNs(pod.timestamp_ns)),
    column("overflow_packets", "OVERFLOW-PACKETS", Place::Wide, |pod| {
        Value::Number(pod.overflow_packets)
    }),
    column("early_packets", "EARLY-PACKETS", Place::Wide, |pod| Value::Number(pod.early_packets)),
    column("attributed_by", "ATTRIBUTED-BY", Place::Wide, |pod| {
        enum_name(pod.attributed_by().as_str_name(), "ATTRIBUTED_BY_")
    }),
    WORKLOAD,
    column("qos_class", "QOS", Place::Wide, |pod| Value::text(&pod.qos_class)),
    column("interfaces", "INTERFACES", Place::Wide, |pod| {
        Value::List(pod.interfaces.iter().map(|name| Value::text(name)).collect())
    }),
    UNIT,
    column("pod_uid", "POD-UID", Place::Data, |pod| Value::text(&pod.pod_uid)),
];

/// The same as far as a Prometheus knows it: totals, and no flows.
pub(crate) static HISTORY: &[Column<PodTraffic>] =
    &[NODE, NAMESPACE, POD, POD_NAME, BYTES_IN, BYTES_OUT, PACKETS_IN, PACKETS_OUT, WORKLOAD, UNIT];

const fn column(
    name: &'static str,
    header: &'static str,
    place: Place,
    get: for<'a> fn(&'a PodTraffic) -> Value<'a>,
) -> Column<PodTraffic> {
    // Pods are never streamed, so their tables are always fitted.
    Column { name, header, place, width: 0, get }
}
