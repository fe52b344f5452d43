//! `/metrics` of the server: the cluster by namespace, workload and node, and its own health.
//!
//! Agents are asked for their totals at every scrape, all at once. An agent's totals begin anew
//! when it is restarted; the server's go on, so that a rate over them stays right.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use orb8_metrics::{Families, Label, Scrape, Source, Unit, process};
use orb8_proto::{NodeOutcome, NodeState, TotalsQuery, TotalsResponse, Usage, WorkloadTotals};
use tokio_util::sync::CancellationToken;

use crate::{
    agents::Client,
    api::Api,
    losses::{self, Losses},
    query::gather,
};

/// Most series that are labelled with a workload. What is beyond them is in the namespace's and the
/// node's series, and counted.
const MOST_WORKLOADS: usize = 10_000;
/// A sweep takes no longer: Prometheus gives up a scrape after ten seconds.
const SWEEP: Duration = Duration::from_secs(4);

/// Serves the server's metrics until `token` says stop.
pub(crate) async fn serve(api: Api, listener: tokio::net::TcpListener, token: CancellationToken) {
    let source = Cluster { api, kept: Arc::default() };
    orb8_metrics::serve(source, listener, token).await;
}

struct Cluster {
    api: Api,
    kept: Arc<Mutex<Kept>>,
}

/// Traffic and calls of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    ingress_bytes: u64,
    egress_bytes: u64,
    ingress_packets: u64,
    egress_packets: u64,
    syscalls: u64,
}

impl Sums {
    fn of(totals: &WorkloadTotals) -> Self {
        Self {
            ingress_bytes: totals.ingress_bytes,
            egress_bytes: totals.egress_bytes,
            ingress_packets: totals.ingress_packets,
            egress_packets: totals.egress_packets,
            syscalls: totals.syscalls,
        }
    }

    fn each(&mut self, other: Self, with: impl Fn(u64, u64) -> u64) {
        self.ingress_bytes = with(self.ingress_bytes, other.ingress_bytes);
        self.egress_bytes = with(self.egress_bytes, other.egress_bytes);
        self.ingress_packets = with(self.ingress_packets, other.ingress_packets);
        self.egress_packets = with(self.egress_packets, other.egress_packets);
        self.syscalls = with(self.syscalls, other.syscalls);
    }

    fn add(&mut self, other: Self) {
        self.each(other, u64::saturating_add);
    }
}

type Workload = (String, String);

/// What is kept from one sweep to the next.
#[derive(Debug, Default)]
struct Kept {
    /// What each node said last, by its name.
    said: HashMap<String, Said>,
    workloads: BTreeMap<Workload, Sums>,
    namespaces: BTreeMap<String, Sums>,
    nodes: BTreeMap<String, Sums>,
    losses: Losses,
    workloads_refused: u64,
}

#[derive(Debug, Default)]
struct Said {
    started_ns: i64,
    workloads: HashMap<Workload, Sums>,
    losses: HashMap<losses::Key, losses::Counts>,
}

impl Kept {
    /// Takes what a node says its totals are.
    fn take(&mut self, answer: TotalsResponse) {
        let said = self.said.entry(answer.node.clone()).or_default();
        if said.started_ns != answer.started_ns {
            *said = Said { started_ns: answer.started_ns, ..Said::default() };
        }
        for totals in answer.workloads {
            let now = Sums::of(&totals);
            let key = (totals.namespace, totals.workload);
            let before = said.workloads.insert(key.clone(), now).unwrap_or_default();
            let mut more = now;
            // What fell was a pod that is gone; what it had is counted already.
            more.each(before, u64::saturating_sub);
            self.namespaces.entry(key.0.clone()).or_default().add(more);
            self.nodes.entry(answer.node.clone()).or_default().add(more);
            if self.workloads.len() < MOST_WORKLOADS || self.workloads.contains_key(&key) {
                self.workloads.entry(key).or_default().add(more);
            } else {
                self.workloads_refused += 1;
            }
        }
        for loss in answer.losses {
            let (key, now) = losses::parts(loss);
            let before = said.losses.insert(key.clone(), now).unwrap_or_default();
            let mut more = now;
            for (more, before) in more.iter_mut().zip(before) {
                *more = more.saturating_sub(before);
            }
            self.losses.add(key, more);
        }
    }
}

impl Source for Cluster {
    async fn scrape(&self) -> Box<dyn Scrape> {
        let began = Instant::now();
        let nodes = self.api.agents.all();
        let call = |node: Arc<crate::agents::Node>| {
            let mut client: Client = node.client();
            async move { client.get_totals(TotalsQuery {}).await.map(tonic::Response::into_inner) }
        };
        let kept = &self.kept;
        let take = |answer: TotalsResponse| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).take(answer);
            (0, 0)
        };
        let outcomes = gather(&nodes, SWEEP, call, take).await;
        let answered =
            outcomes.iter().filter(|o| o.answer.outcome() == NodeOutcome::Answered).count();
        let states = nodes.iter().map(|node| (node.name(), node.health().state())).collect();
        let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        Box::new(Swept {
            workloads: kept.workloads.clone(),
            namespaces: kept.namespaces.clone(),
            nodes: kept.nodes.clone(),
            losses: kept.losses.clone(),
            workloads_refused: kept.workloads_refused,
            states,
            answered,
            took: began.elapsed(),
            streams: self.api.open_streams(),
            without_agent: self.api.without_agent().len(),
            usage: process::now(0),
        })
    }

    fn ready(&self) -> Result<(), String> {
        match self.api.agents.problem() {
            Some(problem) if self.api.agents.all().is_empty() => {
                Err(format!("agents: {problem}\n"))
            }
            _ => Ok(()),
        }
    }
}

/// One sweep over the cluster.
#[derive(Debug)]
struct Swept {
    workloads: BTreeMap<Workload, Sums>,
    namespaces: BTreeMap<String, Sums>,
    nodes: BTreeMap<String, Sums>,
    losses: Losses,
    workloads_refused: u64,
    states: Vec<(String, NodeState)>,
    answered: usize,
    took: Duration,
    streams: usize,
    without_agent: usize,
    usage: Usage,
}

impl Swept {
    /// The four families of one level, such as `orb8_namespace_network_bytes_total`.
    fn level<'a, const N: usize>(
        families: &mut Families<'_>,
        level: &str,
        rows: impl Iterator<Item = ([Label<'a>; N], &'a Sums)> + Clone,
    ) -> fmt::Result {
        type Of = fn(&Sums) -> [u64; 2];
        let network: [(&str, &str, Option<&Unit>, Of); 2] = [
            ("network", "L2 length of packets of pods", Some(&Unit::Bytes), |s| {
                [s.ingress_bytes, s.egress_bytes]
            }),
            ("network_packets", "Packets of pods", None, |s| [s.ingress_packets, s.egress_packets]),
        ];
        for (name, help, unit, of) in network {
            let series = rows.clone().flat_map(|(labels, sums)| {
                ["ingress", "egress"].into_iter().zip(of(sums)).map(move |(direction, value)| {
                    let mut labels = labels.to_vec();
                    labels.push(("direction", direction));
                    (labels, float(value))
                })
            });
            families.counter(&format!("orb8_{level}_{name}"), help, unit, series)?;
        }
        let calls = rows.map(|(labels, sums)| (labels, float(sums.syscalls)));
        families.counter(&format!("orb8_{level}_syscalls"), "System calls of pods", None, calls)
    }
}

impl Scrape for Swept {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let by_node = self.nodes.iter().map(|(node, sums)| ([("node", node.as_str())], sums));
        Self::level(families, "node", by_node)?;
        let namespaces = self.namespaces.iter();
        let by_namespace = namespaces.map(|(name, sums)| ([("namespace", name.as_str())], sums));
        Self::level(families, "namespace", by_namespace)?;
        let by_workload = self.workloads.iter().map(|((namespace, workload), sums)| {
            ([("namespace", namespace.as_str()), ("workload", workload.as_str())], sums)
        });
        Self::level(families, "workload", by_workload)?;

        for (index, (name, help)) in [
            ("orb8_cluster_lost_records", "Event or trace records that no agent delivered"),
            ("orb8_cluster_undetailed_packets", "Packets that are in the totals without detail"),
            (
                "orb8_cluster_unattributed_calls",
                "System calls that are in the totals, but nobody's",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let series = self.losses.iter().filter(|(_, sum)| sum[index] > 0).map(|(key, sum)| {
                let labels = [("signal", &*key.0), ("stage", &*key.1), ("reason", &*key.2)];
                (labels, float(sum[index]))
            });
            families.counter(name, help, None, series)?;
        }

        let up = self.states.iter().map(|(node, state)| {
            ([("node", node.as_str())], f64::from(u8::from(*state == NodeState::Ready)))
        });
        families.gauge("orb8_agent_up", "Whether the node's agent answers", None, up)?;
        let none = |value| [([] as [Label<'_>; 0], value)];
        let help = "Agents that answered this scrape";
        families.gauge("orb8_sweep_agents", help, None, none(float(self.answered as u64)))?;
        let help = "Time that asking all agents took";
        let took = self.took.as_secs_f64();
        families.gauge("orb8_sweep_duration", help, Some(&Unit::Seconds), none(took))?;
        let help = "Workloads left out of the workload's series, because there are too many";
        let refused = float(self.workloads_refused);
        families.counter("orb8_workload_series_refused", help, None, none(refused))?;
        let help = "Nodes of the cluster that no agent is known of";
        let nodes = float(self.without_agent as u64);
        families.gauge("orb8_nodes_without_agent", help, None, none(nodes))?;
        let help = "Traces that clients have open";
        families.gauge("orb8_open_streams", help, None, none(float(self.streams as u64)))?;
        let build = [([("version", env!("CARGO_PKG_VERSION"))], 1.0)];
        families.gauge("orb8_server_build_info", "1, labelled with the version", None, build)?;
        families.process(&self.usage)
    }
}

fn float(n: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
    let float = n as f64;
    float
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(started_ns: i64, bytes: u64) -> TotalsResponse {
        TotalsResponse {
            node: "a".into(),
            started_ns,
            workloads: vec![WorkloadTotals {
                namespace: "shop".into(),
                workload: "Deployment/web".into(),
                ingress_bytes: bytes,
                ..WorkloadTotals::default()
            }],
            ..TotalsResponse::default()
        }
    }

    #[test]
    fn totals_go_on_when_an_agent_begins_anew() {
        let mut kept = Kept::default();
        for (started, bytes, sum) in
            [(1, 100, 100), (1, 150, 150), (2, 30, 180), (2, 30, 180), (2, 50, 200)]
        {
            kept.take(said(started, bytes));
            assert_eq!(kept.namespaces["shop"].ingress_bytes, sum);
            assert_eq!(kept.nodes["a"].ingress_bytes, sum);
        }
    }

    #[test]
    fn workloads_beyond_the_cap_are_counted_in_their_namespace_and_told() {
        let mut kept = Kept::default();
        for n in 0..=MOST_WORKLOADS {
            let mut answer = said(1, 1);
            answer.workloads[0].workload = format!("Job/{n}");
            kept.take(answer);
        }
        assert_eq!(kept.workloads.len(), MOST_WORKLOADS);
        assert_eq!(kept.namespaces["shop"].ingress_bytes, MOST_WORKLOADS as u64 + 1);
        assert_eq!(kept.workloads_refused, 1);
    }
}
