//! Merging the answers of many agents. Pure: in whatever order and grouping answers are taken in,
//! the result is the same.

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
};

use orb8_proto::{
    Anomaly, AnomalyResponse, Baseline, Coverage, FlowResponse, FlowSort, NetworkFlow, NodeAnswer,
    PodResponse, PodSort, PodTraffic, SyscallCount, SyscallResponse, SyscallSort,
};

use crate::losses::Losses;

/// The first `limit` rows of an order, of as many as are put in. It holds at most twice as many.
#[derive(Clone, Debug)]
pub(crate) struct Top<R> {
    rows: Vec<R>,
    limit: usize,
    order: fn(&R, &R) -> Ordering,
}

impl<R> Top<R> {
    /// `limit` 0: all of them.
    fn new(limit: u32, order: fn(&R, &R) -> Ordering) -> Self {
        let limit = if limit == 0 { usize::MAX } else { limit as usize };
        Self { rows: Vec::new(), limit, order }
    }

    fn extend(&mut self, rows: Vec<R>) {
        for row in rows {
            self.rows.push(row);
            if self.rows.len() >= self.limit.saturating_mul(2).max(1_024) {
                self.cut();
            }
        }
    }

    fn cut(&mut self) {
        self.rows.sort_unstable_by(self.order);
        self.rows.truncate(self.limit);
    }

    fn take(mut self) -> Vec<R> {
        self.cut();
        self.rows
    }
}

/// What several answers cover together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Covered {
    window: Option<(i64, i64)>,
    rows_matched: u64,
    losses: Losses,
    /// Why there are no rows, with how many nodes say so.
    empty_reasons: BTreeMap<String, u64>,
}

impl Covered {
    /// The window of this answer is the result.
    fn add(&mut self, coverage: Option<Coverage>) -> (i64, i64) {
        let coverage = coverage.unwrap_or_default();
        let (start, end) = (coverage.start_time_ns, coverage.end_time_ns);
        self.window = Some(match self.window {
            None => (start, end),
            Some((first, last)) => (first.min(start), last.max(end)),
        });
        self.rows_matched = self.rows_matched.saturating_add(coverage.rows_matched);
        self.losses.extend(coverage.losses);
        if !coverage.empty_reason.is_empty() {
            *self.empty_reasons.entry(coverage.empty_reason).or_default() += 1;
        }
        (start, end)
    }

    fn told(self, is_empty: bool, nodes: Vec<NodeAnswer>) -> Coverage {
        let (start_time_ns, end_time_ns) = self.window.unwrap_or_default();
        // What most of them say; of equals, the first in the alphabet.
        let reason =
            self.empty_reasons.into_iter().max_by_key(|(text, n)| (*n, Reverse(text.clone())));
        let empty_reason = match reason {
            _ if !is_empty => String::new(),
            Some((reason, _)) => reason,
            None if nodes.is_empty() => "there are no agents".into(),
            None => "no node answered".into(),
        };
        Coverage {
            start_time_ns,
            end_time_ns,
            rows_matched: self.rows_matched,
            losses: self.losses.into(),
            empty_reason,
            node: String::new(),
            nodes,
        }
    }
}

/// Flows of many nodes.
pub(crate) struct Flows(Top<NetworkFlow>, Covered);

impl Flows {
    pub(crate) fn new(limit: u32, sort: FlowSort) -> Self {
        let order: fn(&NetworkFlow, &NetworkFlow) -> Ordering = match sort {
            FlowSort::Unspecified | FlowSort::Bytes => {
                |a, b| b.bytes.cmp(&a.bytes).then_with(|| flow_key(a).cmp(&flow_key(b)))
            }
            FlowSort::Packets => {
                |a, b| b.packets.cmp(&a.packets).then_with(|| flow_key(a).cmp(&flow_key(b)))
            }
            FlowSort::Time => |a, b| {
                b.timestamp_ns.cmp(&a.timestamp_ns).then_with(|| flow_key(a).cmp(&flow_key(b)))
            },
        };
        Self(Top::new(limit, order), Covered::default())
    }

    pub(crate) fn add(&mut self, answer: FlowResponse) -> (i64, i64) {
        self.0.extend(answer.flows);
        self.1.add(answer.coverage)
    }

    pub(crate) fn told(self, nodes: Vec<NodeAnswer>) -> FlowResponse {
        let flows = self.0.take();
        let coverage = Some(self.1.told(flows.is_empty(), nodes));
        FlowResponse { flows, coverage }
    }
}

/// No two flows of a cluster have the same.
fn flow_key(flow: &NetworkFlow) -> impl Ord + '_ {
    (
        (&flow.node, &flow.interface, flow.direction, &flow.protocol),
        (&flow.src_ip, flow.src_port, &flow.dst_ip, flow.dst_port),
        (flow.first_seen_ns, flow.bytes, flow.packets, flow.state),
        (&flow.pod_uid, &flow.container_id),
    )
}

/// Totals of pods of many nodes.
pub(crate) struct Pods(Top<PodTraffic>, Covered);

impl Pods {
    pub(crate) fn new(limit: u32, sort: PodSort) -> Self {
        let order: fn(&PodTraffic, &PodTraffic) -> Ordering = match sort {
            PodSort::Unspecified | PodSort::Bytes => {
                |a, b| pod_bytes(b).cmp(&pod_bytes(a)).then_with(|| pod_key(a).cmp(&pod_key(b)))
            }
            PodSort::Packets => {
                |a, b| pod_packets(b).cmp(&pod_packets(a)).then_with(|| pod_key(a).cmp(&pod_key(b)))
            }
            PodSort::Flows => {
                |a, b| b.flows.cmp(&a.flows).then_with(|| pod_key(a).cmp(&pod_key(b)))
            }
            PodSort::Name => |a, b| pod_key(a).cmp(&pod_key(b)),
        };
        Self(Top::new(limit, order), Covered::default())
    }

    pub(crate) fn add(&mut self, answer: PodResponse) -> (i64, i64) {
        self.0.extend(answer.pods);
        self.1.add(answer.coverage)
    }

    pub(crate) fn told(self, nodes: Vec<NodeAnswer>) -> PodResponse {
        let pods = self.0.take();
        let coverage = Some(self.1.told(pods.is_empty(), nodes));
        PodResponse { pods, coverage }
    }
}

fn pod_key(pod: &PodTraffic) -> impl Ord + '_ {
    (
        (&pod.namespace, &pod.pod_name, &pod.unit, &pod.node),
        (&pod.pod_uid, pod.attributed_by, pod.timestamp_ns, pod.flows),
        (pod.ingress_bytes, pod.egress_bytes, pod.ingress_packets, pod.egress_packets),
    )
}

fn pod_bytes(pod: &PodTraffic) -> u64 {
    pod.ingress_bytes.saturating_add(pod.egress_bytes)
}

fn pod_packets(pod: &PodTraffic) -> u64 {
    pod.ingress_packets.saturating_add(pod.egress_packets)
}

/// System calls of many nodes.
pub(crate) struct Syscalls(Top<SyscallCount>, Covered);

impl Syscalls {
    pub(crate) fn new(limit: u32, sort: SyscallSort) -> Self {
        let order: fn(&SyscallCount, &SyscallCount) -> Ordering = match sort {
            SyscallSort::Unspecified | SyscallSort::Calls => {
                |a, b| b.calls.cmp(&a.calls).then_with(|| call_key(a).cmp(&call_key(b)))
            }
            SyscallSort::Errors => {
                |a, b| errors(b).cmp(&errors(a)).then_with(|| call_key(a).cmp(&call_key(b)))
            }
            SyscallSort::Latency => {
                |a, b| p99(b).cmp(&p99(a)).then_with(|| call_key(a).cmp(&call_key(b)))
            }
            SyscallSort::Name => |a, b| call_key(a).cmp(&call_key(b)),
        };
        Self(Top::new(limit, order), Covered::default())
    }

    pub(crate) fn add(&mut self, answer: SyscallResponse) -> (i64, i64) {
        self.0.extend(answer.syscalls);
        self.1.add(answer.coverage)
    }

    pub(crate) fn told(self, nodes: Vec<NodeAnswer>) -> SyscallResponse {
        let syscalls = self.0.take();
        let coverage = Some(self.1.told(syscalls.is_empty(), nodes));
        SyscallResponse { syscalls, coverage }
    }
}

fn call_key(call: &SyscallCount) -> impl Ord + '_ {
    (
        (&call.namespace, &call.pod_name, &call.unit, &call.container),
        (&call.syscall, &call.node, &call.container_id, call.calls),
    )
}

fn errors(call: &SyscallCount) -> u64 {
    call.outcome.as_ref().map_or(0, |outcome| outcome.errors)
}

fn p99(call: &SyscallCount) -> u64 {
    call.outcome.as_ref().map_or(0, |outcome| outcome.p99_ns)
}

/// Anomalies of many nodes, latest first.
pub(crate) struct Anomalies(Top<Anomaly>, Vec<Baseline>, Covered);

impl Anomalies {
    pub(crate) fn new(limit: u32) -> Self {
        let order: fn(&Anomaly, &Anomaly) -> Ordering = |a, b| {
            let key = |a: &Anomaly| (Reverse(a.since_ns), a.node.clone(), a.id.clone());
            key(a).cmp(&key(b))
        };
        Self(Top::new(limit, order), Vec::new(), Covered::default())
    }

    pub(crate) fn add(&mut self, answer: AnomalyResponse) -> (i64, i64) {
        self.0.extend(answer.anomalies);
        self.1.extend(answer.baselines);
        self.2.add(answer.coverage)
    }

    pub(crate) fn told(self, nodes: Vec<NodeAnswer>) -> AnomalyResponse {
        let Self(anomalies, mut baselines, covered) = self;
        let anomalies = anomalies.take();
        baselines.sort_by(|a, b| baseline_key(a).cmp(&baseline_key(b)));
        let coverage = Some(covered.told(anomalies.is_empty(), nodes));
        AnomalyResponse { anomalies, coverage, baselines }
    }
}

fn baseline_key(baseline: &Baseline) -> impl Ord + '_ {
    (
        (&baseline.namespace, &baseline.workload, &baseline.container, &baseline.image),
        (baseline.since_ns, baseline.learnt_ns),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod() -> impl Strategy<Value = PodTraffic> {
        let fields = ("[ab]", "[a-d]", 0u64..5, 0u64..5, 0u64..5, "[xyz]");
        fields.prop_map(|(namespace, pod_name, ingress_bytes, egress_bytes, flows, node)| {
            PodTraffic {
                namespace,
                pod_name,
                ingress_bytes,
                egress_bytes,
                flows,
                node,
                ..<_>::default()
            }
        })
    }

    fn answer() -> impl Strategy<Value = PodResponse> {
        let coverage = (0i64..9, 0i64..9, 0u64..9, "[ab]?", 0u64..9).prop_map(
            |(start_time_ns, end_time_ns, rows_matched, empty_reason, records)| Coverage {
                start_time_ns,
                end_time_ns,
                rows_matched,
                empty_reason,
                losses: vec![orb8_proto::Loss {
                    signal: "network".into(),
                    records,
                    ..<_>::default()
                }],
                ..Coverage::default()
            },
        );
        (proptest::collection::vec(pod(), 0..20), coverage)
            .prop_map(|(pods, coverage)| PodResponse { pods, coverage: Some(coverage) })
    }

    fn merged(answers: &[PodResponse], limit: u32, sort: PodSort) -> PodResponse {
        let mut merged = Pods::new(limit, sort);
        for answer in answers {
            merged.add(answer.clone());
        }
        merged.told(Vec::new())
    }

    proptest! {
        /// Commutative, and the limit cuts only what the order puts last.
        #[test]
        fn the_order_of_answers_does_not_matter(
            answers in proptest::collection::vec(answer(), 0..6),
            limit in 0u32..30,
            sort in 0i32..5,
            seed in any::<u64>(),
        ) {
            let sort = PodSort::try_from(sort).unwrap();
            let whole = merged(&answers, limit, sort);
            let mut shuffled = answers.clone();
            shuffled.sort_by_key(|answer| {
                (answer.pods.len() as u64).wrapping_mul(seed | 1).rotate_left(7)
            });
            shuffled.reverse();
            prop_assert_eq!(&merged(&shuffled, limit, sort), &whole);
            let all = merged(&answers, 0, sort).pods;
            let first = if limit == 0 { all.len() } else { all.len().min(limit as usize) };
            prop_assert_eq!(&all[..first], &whole.pods[..]);
        }

        /// Associative: a server above servers would answer the same.
        #[test]
        fn answers_may_be_merged_in_groups(
            left in proptest::collection::vec(answer(), 1..4),
            right in proptest::collection::vec(answer(), 1..4),
            limit in 1u32..30,
        ) {
            let sort = PodSort::Bytes;
            let all: Vec<_> = left.iter().chain(&right).cloned().collect();
            let grouped = [merged(&left, limit, sort), merged(&right, limit, sort)];
            let (grouped, whole) = (merged(&grouped, limit, sort), merged(&all, limit, sort));
            prop_assert_eq!(grouped.pods, whole.pods);
            let (a, b) = (grouped.coverage.unwrap(), whole.coverage.unwrap());
            prop_assert_eq!((a.start_time_ns, a.end_time_ns), (b.start_time_ns, b.end_time_ns));
            prop_assert_eq!((a.rows_matched, a.losses), (b.rows_matched, b.losses));
        }
    }

    #[test]
    fn no_rows_say_what_most_nodes_say() {
        let mut flows = Flows::new(10, FlowSort::Bytes);
        for reason in ["no packet passed", "the window is older", "no packet passed"] {
            let coverage = Coverage { empty_reason: reason.into(), ..Coverage::default() };
            flows.add(FlowResponse { coverage: Some(coverage), ..FlowResponse::default() });
        }
        let told = flows.told(vec![NodeAnswer::default()]);
        assert_eq!(told.coverage.unwrap().empty_reason, "no packet passed");
        let nobody = Flows::new(10, FlowSort::Bytes).told(Vec::new());
        assert_eq!(nobody.coverage.unwrap().empty_reason, "there are no agents");
    }
}
