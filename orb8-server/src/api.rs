//! `orb8.OrbitService` for a whole cluster.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::stream::BoxStream;
use orb8_proto::{
    AgentSource, AnomalyQuery, AnomalyResponse, Event, FlowQuery, FlowResponse, Node as NodeView,
    NodeQuery, NodeResponse, NodeState, NotFound, PodQuery, PodResponse, StatusRequest,
    StatusResponse, StreamRequest, SyscallProfileQuery, SyscallProfileResponse, SyscallQuery,
    SyscallResponse, TotalsQuery, TotalsResponse, orbit_service_server::OrbitService,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    access::{Access, Want},
    agents::{Agents, Client, Node, unix_ns},
    aggregator::{Anomalies, Flows, Pods, Syscalls},
    cluster::{Cluster, Route},
    config::Config,
    query::{Outcome, judge},
    stream::Merger,
};

/// Longest duration of a stream that a client may ask for; a year is a mistake.
const MAX_DURATION_NS: i64 = 7 * 24 * 3600 * 1_000_000_000;
/// Records on their way to a client. When there are more it loses the next ones.
const QUEUE: usize = 4_096;

/// The service's state. Clones share it.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) agents: Agents,
    cluster: Option<Cluster>,
    pub(crate) config: Arc<Config>,
    pub(crate) access: Access,
    streams: Arc<Semaphore>,
    started: SystemTime,
    token: CancellationToken,
}

impl Api {
    pub(crate) fn new(
        agents: Agents,
        cluster: Option<Cluster>,
        config: Arc<Config>,
        access: Access,
        token: CancellationToken,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(config.max_streams as usize));
        Self { agents, cluster, config, access, streams, started: SystemTime::now(), token }
    }

    /// Whether it can do its work.
    ///
    /// # Errors
    /// Why not, as a line.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match self.agents.problem() {
            Some(problem) if self.agents.all().is_empty() => Err(format!("agents: {problem}\n")),
            _ => Ok(()),
        }
    }

    pub(crate) fn open_streams(&self) -> usize {
        (self.config.max_streams as usize).saturating_sub(self.streams.available_permits())
    }

    /// The nodes that are to be asked: one by its name, or all.
    fn nodes(&self, name: &str) -> Result<Vec<Arc<Node>>, Status> {
        let mut nodes = self.agents.all();
        if name.is_empty() {
            return Ok(nodes);
        }
        let names = nodes.iter().map(|node| node.name()).collect();
        nodes.retain(|node| node.name() == name);
        if nodes.is_empty() {
            if self.without_agent().iter().any(|node| **node == *name) {
                return Err(Status::failed_precondition(format!("node {name} has no agent")));
            }
            return Err(NotFound::status("node", name, "this server", &names));
        }
        Ok(nodes)
    }

    /// Nodes of the cluster that no agent is known of.
    pub(crate) fn without_agent(&self) -> BTreeSet<Arc<str>> {
        let mut nodes = self.cluster.as_ref().map(Cluster::nodes).unwrap_or_default();
        for name in self.agents.all().iter().flat_map(|agent| agent.node_names()) {
            nodes.remove(&*name);
        }
        nodes
    }

    /// The agents that a query about pods of `namespace` whose names begin with `pod` goes to.
    fn route(&self, node: &str, namespace: &str, pod: &str) -> Result<Route, Status> {
        Ok(Route::to_pods(self.nodes(node)?, self.cluster.as_ref(), namespace, pod))
    }

    fn agent_source(&self) -> AgentSource {
        AgentSource {
            source: self.config.agents.to_string(),
            agents: self.agents.all().len() as u64,
            problem: self.agents.problem().unwrap_or_default(),
        }
    }

    /// Rows that are asked of each agent, which is what the answer has at most.
    fn limit(&self, asked: u32) -> Result<u32, Status> {
        let most = self.config.max_rows;
        match asked {
            0 => Ok(most),
            asked if asked <= most => Ok(asked),
            asked => Err(Status::invalid_argument(format!(
                "limit {asked} is more than the {most} rows that this server gives at a time"
            ))),
        }
    }

    /// The client's own deadline where that is earlier.
    fn time_limit<T>(&self, request: &Request<T>) -> Duration {
        let header = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
        let theirs = header.and_then(grpc_timeout);
        // What came by then still has to be merged and sent.
        let theirs = theirs.map(|limit| limit.mul_f32(0.9));
        self.config.query_timeout.min(theirs.unwrap_or(Duration::MAX))
    }

    async fn ask<T, F>(
        &self,
        route: Route,
        limit: Duration,
        call: impl Fn(Client) -> F,
        take: impl FnMut(T) -> (i64, i64),
    ) -> Vec<Outcome>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let call = |node: Arc<Node>| {
            let answer = call(node.client());
            async move { answer.await.map(Response::into_inner) }
        };
        route.gather(limit, call, take).await
    }
}

/// Everything that a typed query does: checks, fan-out with limits pushed down, merge. Gives the
/// answer, and what the client may see of it.
macro_rules! query {
    ($api:ident, $request:ident, $method:ident, $route:expr, $merged:expr) => {{
        let limit = $api.time_limit(&$request);
        let want = Want::Pods($request.get_ref().namespace.clone());
        let sight = $api.access.check(&$request, want).await?.sight;
        let mut query = $request.into_inner();
        window(query.start_time_ns, query.end_time_ns)?;
        query.limit = $api.limit(query.limit)?;
        let route = $route(&query)?;
        let mut merged = $merged(&query);
        let call = |mut client: Client| {
            let query = query.clone();
            async move { client.$method(query).await }
        };
        let outcomes = $api.ask(route, limit, call, |answer| merged.add(answer)).await;
        (merged.told(judge(outcomes, &sight)?), sight)
    }};
}

#[tonic::async_trait]
impl OrbitService for Api {
    type StreamEventsStream = BoxStream<'static, Result<Event, Status>>;

    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<FlowResponse>, Status> {
        let route = |q: &FlowQuery| self.route(&q.node, &q.namespace, &q.pod_name);
        let merged = |q: &FlowQuery| Flows::new(q.limit, q.sort_by());
        let (mut told, sight) = query!(self, request, query_flows, route, merged);
        for flow in &mut told.flows {
            if let Some(cluster) = &self.cluster {
                cluster.name(flow);
            }
            // Last, as it hides what was named before.
            sight.flow(flow);
        }
        Ok(Response::new(told))
    }

    async fn query_pods(
        &self,
        request: Request<PodQuery>,
    ) -> Result<Response<PodResponse>, Status> {
        let route = |q: &PodQuery| self.route(&q.node, &q.namespace, &q.pod_name);
        let merged = |q: &PodQuery| Pods::new(q.limit, q.sort_by());
        Ok(Response::new(query!(self, request, query_pods, route, merged).0))
    }

    async fn query_syscalls(
        &self,
        request: Request<SyscallQuery>,
    ) -> Result<Response<SyscallResponse>, Status> {
        let route = |q: &SyscallQuery| self.route(&q.node, &q.namespace, &q.pod_name);
        let merged = |q: &SyscallQuery| Syscalls::new(q.limit, q.sort_by());
        Ok(Response::new(query!(self, request, query_syscalls, route, merged).0))
    }

    async fn query_anomalies(
        &self,
        request: Request<AnomalyQuery>,
    ) -> Result<Response<AnomalyResponse>, Status> {
        // Agents remember findings, and what is normal, for much longer than pods are.
        let route = |q: &AnomalyQuery| self.nodes(&q.node).map(Route::all);
        let merged = |q: &AnomalyQuery| Anomalies::new(q.limit);
        Ok(Response::new(query!(self, request, query_anomalies, route, merged).0))
    }

    async fn get_syscall_profile(
        &self,
        request: Request<SyscallProfileQuery>,
    ) -> Result<Response<SyscallProfileResponse>, Status> {
        let limit = self.time_limit(&request);
        let want = Want::Pods(request.get_ref().namespace.clone());
        let sight = self.access.check(&request, want).await?.sight;
        let query = request.into_inner();
        let nodes = self.nodes(&query.node)?;
        let mut profiles = Vec::new();
        let call = |mut client: Client| {
            let query = query.clone();
            async move { client.get_syscall_profile(query).await }
        };
        let take = |answer: SyscallProfileResponse| {
            let node = answer.node;
            profiles.extend(answer.profiles.into_iter().map(|mut profile| {
                profile.node.clone_from(&node);
                profile
            }));
            (0, 0)
        };
        // Of what a container ever called, for as long as its agent runs.
        let outcomes = self.ask(Route::all(nodes), limit, call, take).await;
        let nodes = judge(outcomes, &sight)?;
        profiles.sort_by(|a, b| {
            let key = |p: &orb8_proto::SyscallProfile| {
                (
                    p.namespace.clone(),
                    p.pod_name.clone(),
                    p.container.clone(),
                    p.container_id.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        Ok(Response::new(SyscallProfileResponse { profiles, node: String::new(), nodes }))
    }

    async fn list_nodes(
        &self,
        request: Request<NodeQuery>,
    ) -> Result<Response<NodeResponse>, Status> {
        self.access.check(&request, Want::Nodes).await?;
        let name = request.into_inner().name;
        let mut nodes: Vec<NodeView> = self.agents.all().iter().map(|node| node.view()).collect();
        nodes.extend(self.without_agent().into_iter().map(|name| NodeView {
            name: name.to_string(),
            state: NodeState::NoAgent.into(),
            reason: "no agent runs on it".into(),
            ..NodeView::default()
        }));
        nodes.retain(|node| node.name.starts_with(&name));
        nodes.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
        let problem = self.agents.problem().unwrap_or_default();
        Ok(Response::new(NodeResponse { nodes, problem }))
    }

    async fn get_totals(
        &self,
        _request: Request<TotalsQuery>,
    ) -> Result<Response<TotalsResponse>, Status> {
        Err(Status::unimplemented("a server has no totals of its own: see its /metrics"))
    }

    async fn get_agent_status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let limit = self.time_limit(&request);
        let of_server = request.get_ref().node.is_empty();
        let want = if of_server { Want::Presence } else { Want::Nodes };
        let sight = self.access.check(&request, want).await?.sight;
        let StatusRequest { node } = request.into_inner();
        if of_server {
            let (pod_source, peer_source) = self.cluster.as_ref().map(Cluster::sources).unzip();
            return Ok(Response::new(StatusResponse {
                pod_source,
                peer_source,
                agent_source: Some(self.agent_source()),
                version: env!("CARGO_PKG_VERSION").into(),
                started_ns: unix_ns(self.started),
                kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
                usage: Some(orb8_metrics::process::now(0)),
                ..StatusResponse::default()
            }));
        }
        let nodes = self.nodes(&node)?;
        let mut status = None;
        let call = |mut client: Client| async move {
            client.get_agent_status(StatusRequest::default()).await
        };
        let take = |mut answer: StatusResponse| {
            sight.status(&mut answer);
            status = Some(answer);
            (0, 0)
        };
        let outcomes = self.ask(Route::all(nodes), limit, call, take).await;
        let answers = judge(outcomes, &sight)?;
        status.map(Response::new).ok_or_else(|| {
            let reason = answers.first().map_or("", |answer| &answer.reason);
            Status::unavailable(format!("node {node}: {reason}"))
        })
    }

    async fn stream_events(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let limit = self.config.query_timeout;
        let want = Want::Pods(request.get_ref().namespace.clone());
        let pass = self.access.check(&request, want).await?;
        let request = request.into_inner();
        if let Some(ns) = request.duration_ns.filter(|ns| !(1..=MAX_DURATION_NS).contains(ns)) {
            return Err(Status::invalid_argument(format!(
                "duration_ns {ns} is out of range; expected 1 to {MAX_DURATION_NS} (7 days)"
            )));
        }
        self.nodes(&request.node)?;
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{} streams are open, and this server has no more",
                self.config.max_streams
            ))
        })?;
        let sight = pass.sight.clone();
        let (agents, cluster) = (self.agents.clone(), self.cluster.clone());
        let merger = Merger::start(agents, cluster, request, sight, limit).await?;
        let (events, stream) = mpsc::channel(QUEUE);
        let token = self.token.clone();
        // Ends with the client, its time, its right or the server; it holds nothing that outlives those.
        tokio::spawn(async move {
            let _permit: OwnedSemaphorePermit = permit;
            // Elsewhere: asking the Kubernetes API takes much room, and happens once in a while.
            let ended = Box::pin(pass.ended());
            let stop = async {
                tokio::select! {
                    () = token.cancelled() => Status::unavailable("the server stops"),
                    why = ended => why,
                }
            };
            merger.run(events, stop).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn window(start_ns: Option<i64>, end_ns: Option<i64>) -> Result<(), Status> {
    match (start_ns, end_ns) {
        (Some(start), Some(end)) if start > end => Err(Status::invalid_argument(format!(
            "start_time_ns {start} is after end_time_ns {end}"
        ))),
        _ => Ok(()),
    }
}

/// The header `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
fn grpc_timeout(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_deadline_is_read_from_its_header() {
        for (header, limit) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("5000000n", Some(Duration::from_millis(5))),
            ("1H", Some(Duration::from_secs(3600))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("999999999S", None),
            ("1é", None),
        ] {
            assert_eq!(grpc_timeout(header), limit, "{header}");
        }
    }
}
