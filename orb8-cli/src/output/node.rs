//! The columns of a node's status: signals, interfaces, maps, losses.

use orb8_proto::{InterfaceStatus, Loss, MapStatus, SignalStatus};

use super::{
    columns::{Column, Place},
    value::{Value, enum_name},
};

/// What works.
pub(crate) static SIGNALS: &[Column<SignalStatus>] = &[
    column("name", "SIGNAL", Place::Everywhere, |signal| Value::text(&signal.name)),
    column("state", "STATE", Place::Everywhere, |signal| {
        enum_name(signal.state().as_str_name(), "SIGNAL_STATE_")
    }),
    column("reason", "REASON", Place::Everywhere, |signal| Value::text(&signal.reason)),
];

/// What orb8 counted on each interface, beside what the kernel counted.
pub(crate) static INTERFACES: &[Column<InterfaceStatus>] = &[
    column("name", "INTERFACE", Place::Everywhere, |link| Value::text(&link.name)),
    column("ifindex", "IFINDEX", Place::Wide, |link| Value::number(link.ifindex)),
    column("namespace", "NAMESPACE", Place::Everywhere, |link| Value::text(&link.namespace)),
    column("pod_name", "POD", Place::Everywhere, |link| Value::text(&link.pod_name)),
    column("attached", "ATTACHED", Place::Everywhere, |link| Value::text(&link.attached)),
    column("attached_ns", "SINCE", Place::Wide, |link| Value::TimeNs(link.attached_ns)),
    column("ingress_bytes", "INGRESS", Place::Everywhere, |link| Value::Bytes(link.ingress_bytes)),
    column("kernel_ingress_bytes", "KERNEL-INGRESS", Place::Everywhere, |link| {
        Value::Bytes(link.kernel_ingress_bytes)
    }),
    column("egress_bytes", "EGRESS", Place::Everywhere, |link| Value::Bytes(link.egress_bytes)),
    column("kernel_egress_bytes", "KERNEL-EGRESS", Place::Everywhere, |link| {
        Value::Bytes(link.kernel_egress_bytes)
    }),
    column("difference_bytes", "DIFFERENCE", Place::Everywhere, |link| {
        difference(
            [link.ingress_bytes, link.egress_bytes],
            [link.kernel_ingress_bytes, link.kernel_egress_bytes],
        )
    }),
    column("ingress_packets", "INGRESS-PACKETS", Place::Wide, |link| {
        Value::Number(link.ingress_packets)
    }),
    column("kernel_ingress_packets", "KERNEL-INGRESS-PACKETS", Place::Wide, |link| {
        Value::Number(link.kernel_ingress_packets)
    }),
    column("egress_packets", "EGRESS-PACKETS", Place::Wide, |link| {
        Value::Number(link.egress_packets)
    }),
    column("kernel_egress_packets", "KERNEL-EGRESS-PACKETS", Place::Wide, |link| {
        Value::Number(link.kernel_egress_packets)
    }),
    column("difference_packets", "DIFFERENCE-PACKETS", Place::Wide, |link| {
        difference(
            [link.ingress_packets, link.egress_packets],
            [link.kernel_ingress_packets, link.kernel_egress_packets],
        )
    }),
    column("approximate", "APPROXIMATE", Place::Wide, |link| Value::Flag(link.approximate)),
    column("reason", "REASON", Place::Everywhere, |link| Value::text(&link.reason)),
];

/// How full the kernel maps are.
pub(crate) static MAPS: &[Column<MapStatus>] = &[
    column("name", "MAP", Place::Everywhere, |map| Value::text(&map.name)),
    column("type", "TYPE", Place::Everywhere, |map| Value::text(&map.r#type)),
    column("entries", "USED", Place::Everywhere, |map| Value::Number(map.entries)),
    column("max_entries", "CAPACITY", Place::Everywhere, |map| Value::Number(map.max_entries)),
    column("use", "USE", Place::People, |map| {
        let percent = u128::from(map.entries) * 100;
        match percent.checked_div(u128::from(map.max_entries)) {
            Some(percent) => Value::owned(format!("{percent} %")),
            None => Value::Absent,
        }
    }),
];

/// What was lost, where and why.
pub(crate) static LOSSES: &[Column<Loss>] = &[
    column("signal", "SIGNAL", Place::Everywhere, |loss| Value::text(&loss.signal)),
    column("stage", "STAGE", Place::Everywhere, |loss| Value::text(&loss.stage)),
    column("reason", "REASON", Place::Everywhere, |loss| Value::text(&loss.reason)),
    column("records", "RECORDS", Place::Everywhere, |loss| Value::Number(loss.records)),
    column("packets", "PACKETS", Place::Everywhere, |loss| Value::Number(loss.packets)),
    column("calls", "CALLS", Place::Everywhere, |loss| Value::Number(loss.calls)),
];

const fn column<T>(
    name: &'static str,
    header: &'static str,
    place: Place,
    get: for<'a> fn(&'a T) -> Value<'a>,
) -> Column<T> {
    Column { name, header, place, width: 0, get }
}

/// Ours less the kernel's, the further from zero of the two directions, so that an excess in one
/// does not hide a gap in the other.
fn difference(ours: [u64; 2], kernels: [u64; 2]) -> Value<'static> {
    let widest = ours
        .into_iter()
        .zip(kernels)
        .map(|(ours, kernels)| i128::from(ours) - i128::from(kernels))
        .max_by_key(|difference| difference.unsigned_abs())
        .unwrap_or(0);
    let limit = if widest < 0 { i64::MIN } else { i64::MAX };
    Value::Signed(i64::try_from(widest).unwrap_or(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_one_direction_is_not_hidden_by_an_excess_in_the_other() {
        assert_eq!(difference([5, 5], [5, 5]), Value::Signed(0));
        assert_eq!(difference([10, 0], [5, 6]), Value::Signed(-6));
        assert_eq!(difference([0, u64::MAX], [0, 0]), Value::Signed(i64::MAX));
        assert_eq!(difference([0, 0], [u64::MAX, 0]), Value::Signed(i64::MIN));
    }
}
