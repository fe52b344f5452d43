//! `/metrics` of the server: the cluster by namespace, workload and node, and its own health.
//!
//! Agents are asked for their totals at every scrape, all at once.

mod kept;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use orb8_metrics::{Families, Label, Scrape, Source, Unit, one, process};
use orb8_proto::{NodeOutcome, NodeState, TotalsQuery, TotalsResponse, Usage};
use orb8_transport::{Port, Refused};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use self::kept::{Kept, Sums, Workload};
use crate::{agents::Client, api::Api, losses::Losses, query::gather};

/// A sweep takes no longer: Prometheus gives up a scrape after ten seconds.
const SWEEP: Duration = Duration::from_secs(4);

/// Serves the server's metrics until `token` says stop.
pub(crate) async fn serve(
    api: Api,
    port: Port,
    listener: tokio::net::TcpListener,
    token: CancellationToken,
) {
    let source = Cluster { api, port, kept: Arc::default(), sweeping: Mutex::default() };
    orb8_metrics::serve(source, listener, token).await;
}

struct Cluster {
    api: Api,
    /// That of gRPC.
    port: Port,
    kept: Arc<std::sync::Mutex<Kept>>,
    /// One sweep at a time, whoever scrapes and how often: others wait.
    sweeping: Mutex<()>,
}

impl Source for Cluster {
    async fn scrape(&self) -> Box<dyn Scrape> {
        let _turn = self.sweeping.lock().await;
        let began = Instant::now();
        let nodes = self.api.agents.all();
        let call = |node: Arc<crate::agents::Node>| {
            let mut client: Client = node.client();
            async move { client.get_totals(TotalsQuery {}).await.map(tonic::Response::into_inner) }
        };
        let kept = &self.kept;
        let take = |answer: TotalsResponse| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).take(answer, Instant::now());
            (0, 0)
        };
        let outcomes = gather(&nodes, SWEEP, call, take).await;
        let answered =
            outcomes.iter().filter(|o| o.answer.outcome() == NodeOutcome::Answered).count();
        let states = nodes.iter().map(|node| (node.name(), node.health().state())).collect();
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget(Instant::now());
        Box::new(Swept {
            workloads: kept.workloads.sums(),
            namespaces: kept.namespaces.sums(),
            nodes: kept.nodes.sums(),
            losses: kept.losses.clone(),
            workloads_refused: kept.workloads_refused,
            states,
            answered,
            took: began.elapsed(),
            streams: self.api.open_streams(),
            without_agent: self.api.without_agent().len(),
            requests_refused: self.api.access.refusals(),
            connections_refused: self.port.refused(),
            usage: process::now(0),
        })
    }

    fn ready(&self) -> Result<(), String> {
        self.api.ready()
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
    requests_refused: Vec<(&'static str, u64)>,
    connections_refused: BTreeMap<Refused, u64>,
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
            ("network", "Length of packets, as the agents count it", Some(&Unit::Bytes), |s| {
                [s.ingress_bytes, s.egress_bytes]
            }),
            ("network_packets", "Packets, as the agents count them", None, |s| {
                [s.ingress_packets, s.egress_packets]
            }),
        ];
        for (name, help, unit, of) in network {
            let series = rows.clone().flat_map(|(labels, sums)| {
                ["ingress", "egress"].into_iter().zip(of(sums)).map(move |(direction, value)| {
                    let mut labels = labels.to_vec();
                    labels.push(("direction", direction));
                    (labels, value)
                })
            });
            families.counter(&format!("orb8_{level}_{name}"), help, unit, series)?;
        }
        let calls = rows.map(|(labels, sums)| (labels, sums.syscalls));
        let help = "System calls, counted at their beginning";
        families.counter(&format!("orb8_{level}_syscalls"), help, None, calls)
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
                (labels, sum[index])
            });
            families.counter(name, help, None, series)?;
        }

        let up = self.states.iter().map(|(node, state)| {
            ([("node", node.as_str())], f64::from(u8::from(*state == NodeState::Ready)))
        });
        families.gauge("orb8_agent_up", "Whether the node's agent answers", None, up)?;
        let help = "Agents that answered this scrape";
        families.gauge("orb8_sweep_agents", help, None, one(self.answered))?;
        let help = "Time that asking all agents took";
        let took = one(self.took.as_secs_f64());
        families.gauge("orb8_sweep_duration", help, Some(&Unit::Seconds), took)?;
        let help = "Workloads left out of the workload's series, because there are too many";
        let refused = one(self.workloads_refused);
        families.counter("orb8_workload_series_refused", help, None, refused)?;
        let help = "Nodes of the cluster that no agent is known of";
        families.gauge("orb8_nodes_without_agent", help, None, one(self.without_agent))?;
        let help = "Traces that clients have open";
        families.gauge("orb8_open_streams", help, None, one(self.streams))?;
        let help = "Requests that were refused because of who asked";
        let refused = self.requests_refused.iter();
        let refused = refused.map(|(reason, count)| ([("reason", *reason)], *count));
        families.counter("orb8_requests_refused", help, None, refused)?;
        let help = "Connections to the gRPC port that were not let in";
        let refused = Refused::ALL.iter().map(|reason| {
            let count = self.connections_refused.get(reason).copied().unwrap_or_default();
            ([("reason", reason.as_str())], count)
        });
        families.counter("orb8_connections_refused", help, None, refused)?;
        let build = [([("version", env!("CARGO_PKG_VERSION"))], 1.0)];
        families.gauge("orb8_server_build_info", "1, labelled with the version", None, build)?;
        families.process("this process", &self.usage)
    }
}
