//! `orb8.OrbitService`, and its server for the process itself, over in-memory pipes.

use std::{collections::BTreeSet, io, sync::Arc, time::SystemTime};

use futures_util::stream::BoxStream;
use orb8_k8s::PodLookup;
use orb8_proto::{
    AnomalyQuery, AnomalyResponse, Event, FlowQuery, FlowResponse, LossReport, Node, NodeQuery,
    NodeResponse, NodeState, NodeStatus, NotFound, PodQuery, PodResponse, StatusRequest,
    StatusResponse, StreamRequest, SyscallProfileQuery, SyscallProfileResponse, SyscallQuery,
    SyscallResponse, TotalsQuery, TotalsResponse, event,
    orbit_service_server::{OrbitService, OrbitServiceServer},
};
use orb8_transport::Limits;
use tokio::{io::DuplexStream, sync::mpsc, time::Instant};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    config::Config,
    ledger::Ledger,
    live::{Live, Subscription},
    signals::{
        self, Signal, Signals, Snapshot,
        network::{self, Network},
        syscall::{self, Syscall},
    },
    status::StatusBoard,
    totals,
};

/// Longest duration of a stream that a client may ask for; a year is a mistake.
const MAX_DURATION_NS: i64 = 7 * 24 * 3600 * 1_000_000_000;

/// The service's state. Clones share it.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) config: Arc<Config>,
    pub(crate) signals: Signals,
    pub(crate) ledger: Ledger,
    pub(crate) live: Live,
    pub(crate) status: StatusBoard,
    pub(crate) pods: Arc<dyn PodLookup>,
    started: SystemTime,
}

impl Api {
    pub(crate) fn new(
        config: Arc<Config>,
        signals: Signals,
        ledger: Ledger,
        live: Live,
        status: StatusBoard,
        pods: Arc<dyn PodLookup>,
    ) -> Self {
        Self { config, signals, ledger, live, status, pods, started: SystemTime::now() }
    }

    fn network(&self) -> Result<&Network, Status> {
        self.signals.network.as_ref().ok_or_else(|| self.no_signal(network::NAME))
    }

    fn syscall(&self) -> Result<&Syscall, Status> {
        self.signals.syscall.as_ref().ok_or_else(|| self.no_signal(syscall::NAME))
    }

    /// Refuses a question to another node. Empty: whoever is asked.
    fn is_asked(&self, node: &str) -> Result<(), Status> {
        if node.is_empty() || node == self.config.node_name {
            return Ok(());
        }
        let own = BTreeSet::from([self.config.node_name.clone()]);
        Err(NotFound::status("node", node, "this agent", &own))
    }

    /// Why a signal cannot be asked.
    fn no_signal(&self, name: &str) -> Status {
        let signals = self.status.signals();
        let state = signals.iter().find(|signal| signal.name == name);
        let reason = state.map_or("it was not started", |s| s.reason.as_str());
        Status::failed_precondition(format!("no {name} signal on this node: {reason}"))
    }

    /// The signals that a stream is about: of those that it names, or of all, those that run.
    fn streamed(&self, request: &StreamRequest) -> Result<Vec<&dyn Signal>, Status> {
        if let Some(unknown) = request.signals.iter().find(|s| !signals::NAMES.contains(&&***s)) {
            return Err(Status::invalid_argument(format!(
                "no signal {unknown:?}; there are: {}",
                signals::NAMES.join(", ")
            )));
        }
        let named = |name: &str| {
            request.signals.is_empty() || request.signals.iter().any(|signal| signal == name)
        };
        let running: Vec<_> =
            self.signals.running().into_iter().filter(|signal| named(signal.name())).collect();
        if running.is_empty() {
            let first = signals::NAMES.into_iter().find(|name| named(name));
            return Err(self.no_signal(first.unwrap_or("running")));
        }
        Ok(running)
    }

    fn node_status(&self, snapshots: Vec<(&'static str, Snapshot)>) -> Event {
        let status = NodeStatus {
            signals: self.status.signals(),
            interfaces: snapshots.into_iter().flat_map(|(_, s)| s.interfaces).collect(),
            ..NodeStatus::default()
        };
        self.event(event::Event::NodeStatus(status))
    }

    fn event(&self, event: event::Event) -> Event {
        let node = self.config.node_name.clone();
        Event { node, timestamp_ns: unix_ns(SystemTime::now()), event: Some(event) }
    }
}

#[tonic::async_trait]
impl OrbitService for Api {
    type StreamEventsStream = BoxStream<'static, Result<Event, Status>>;

    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<FlowResponse>, Status> {
        let query = request.into_inner();
        self.is_asked(&query.node)?;
        self.network()?.flows(query).await.map(Response::new)
    }

    async fn query_pods(
        &self,
        request: Request<PodQuery>,
    ) -> Result<Response<PodResponse>, Status> {
        let query = request.into_inner();
        self.is_asked(&query.node)?;
        self.network()?.pods(query).await.map(Response::new)
    }

    async fn query_syscalls(
        &self,
        request: Request<SyscallQuery>,
    ) -> Result<Response<SyscallResponse>, Status> {
        let query = request.into_inner();
        self.is_asked(&query.node)?;
        self.syscall()?.calls(query).await.map(Response::new)
    }

    async fn query_anomalies(
        &self,
        request: Request<AnomalyQuery>,
    ) -> Result<Response<AnomalyResponse>, Status> {
        let query = request.into_inner();
        self.is_asked(&query.node)?;
        self.syscall()?.anomalies(query).await.map(Response::new)
    }

    async fn get_syscall_profile(
        &self,
        request: Request<SyscallProfileQuery>,
    ) -> Result<Response<SyscallProfileResponse>, Status> {
        let query = request.into_inner();
        self.is_asked(&query.node)?;
        self.syscall()?.profiles(query).await.map(Response::new)
    }

    async fn get_agent_status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.is_asked(&request.into_inner().node)?;
        let mut interfaces = Vec::new();
        let mut maps = Vec::new();
        let (mut map_bytes, mut peer_source) = (0, None);
        for (_, snapshot) in self.signals.snapshots().await {
            interfaces.extend(snapshot.interfaces);
            maps.extend(snapshot.maps);
            map_bytes += snapshot.map_bytes;
            peer_source = peer_source.or(snapshot.peer_source);
        }
        Ok(Response::new(StatusResponse {
            node: self.config.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_ns: unix_ns(self.started),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            signals: self.status.signals(),
            losses: self.ledger.losses(),
            interfaces,
            usage: Some(orb8_metrics::process::now(map_bytes)),
            maps,
            pod_source: Some(self.pods.source()),
            runtime_source: self.pods.runtime_source(),
            peer_source,
            agent_source: None,
        }))
    }

    async fn list_nodes(
        &self,
        request: Request<NodeQuery>,
    ) -> Result<Response<NodeResponse>, Status> {
        let node = Node {
            name: self.config.node_name.clone(),
            state: NodeState::Ready.into(),
            heard_ns: unix_ns(SystemTime::now()),
            since_ns: unix_ns(self.started),
            started_ns: unix_ns(self.started),
            version: env!("CARGO_PKG_VERSION").into(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            signals: self.status.signals(),
            ..Node::default()
        };
        let wanted = node.name.starts_with(&request.into_inner().name);
        Ok(Response::new(NodeResponse {
            nodes: wanted.then_some(node).into_iter().collect(),
            ..NodeResponse::default()
        }))
    }

    async fn get_totals(
        &self,
        _request: Request<TotalsQuery>,
    ) -> Result<Response<TotalsResponse>, Status> {
        let workloads = totals::merged(self.signals.totals().await?, &*self.pods);
        let snapshots = self.signals.snapshots().await;
        let map_bytes = snapshots.iter().map(|(_, snapshot)| snapshot.map_bytes).sum();
        Ok(Response::new(TotalsResponse {
            node: self.config.node_name.clone(),
            started_ns: unix_ns(self.started),
            workloads,
            losses: self.ledger.losses(),
            usage: Some(orb8_metrics::process::now(map_bytes)),
        }))
    }

    async fn stream_events(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let request = request.into_inner();
        self.is_asked(&request.node)?;
        let signals: Vec<&'static str> =
            self.streamed(&request)?.iter().map(|signal| signal.name()).collect();
        if let Some(ns) = request.duration_ns.filter(|ns| !(1..=MAX_DURATION_NS).contains(ns)) {
            return Err(Status::invalid_argument(format!(
                "duration_ns {ns} is out of range; expected 1 to {MAX_DURATION_NS} (7 days)"
            )));
        }
        let deadline = request.duration_ns.map(|ns| {
            Instant::now() + std::time::Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
        });
        let subscription = self.live.subscribe(request.clone());
        for signal in self.streamed(&request)? {
            if let Err(refused) = signal.subscribe(subscription.id, &request).await {
                self.live.remove(subscription.id);
                return Err(refused);
            }
        }
        let first = self.node_status(self.signals.snapshots().await);
        let (events, stream) = mpsc::channel(256);
        let api = self.clone();
        // Ends with the client, the deadline or the agent; it holds nothing that outlives those.
        tokio::spawn(async move {
            api.feed(&signals, subscription, first, deadline, events).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

impl Api {
    /// Passes a subscriber's records on, with a report whenever some were lost, and a last one.
    async fn feed(
        &self,
        signals: &[&str],
        mut subscription: Subscription,
        first: Event,
        deadline: Option<Instant>,
        events: mpsc::Sender<Result<Event, Status>>,
    ) {
        let mark = self.ledger.mark();
        let mut told = 0;
        let mut ended = false;
        if events.send(Ok(first)).await.is_err() {
            return self.live.remove(subscription.id);
        }
        loop {
            let expired = async {
                match deadline {
                    Some(at) if !ended => tokio::time::sleep_until(at).await,
                    _ => std::future::pending().await,
                }
            };
            let record = tokio::select! {
                record = subscription.records.recv() => record,
                () = events.closed() => return self.live.remove(subscription.id),
                () = expired => {
                    ended = true;
                    for signal in self.signals.running() {
                        if signals.contains(&signal.name()) {
                            signal.unsubscribe(subscription.id).await;
                        }
                    }
                    self.live.remove(subscription.id);
                    continue;
                }
            };
            let lost = subscription.tally.lost();
            if lost > told {
                told = lost;
                let report = self.report(&subscription, &mark, signals, false);
                if events.send(Ok(report)).await.is_err() {
                    return self.live.remove(subscription.id);
                }
            }
            let Some(record) = record else { break };
            if events.send(Ok(record)).await.is_err() {
                return self.live.remove(subscription.id);
            }
        }
        let _gone = events.send(Ok(self.report(&subscription, &mark, signals, true))).await;
    }

    fn report(
        &self,
        subscription: &Subscription,
        mark: &std::collections::BTreeMap<crate::ledger::LossPoint, crate::ledger::Amount>,
        signals: &[&str],
        last: bool,
    ) -> Event {
        let mut losses = self.ledger.since(mark);
        let history = crate::ledger::Stage::History.as_str();
        losses.retain(|loss| loss.stage != history && signals::concerns(loss, signals));
        self.event(event::Event::Loss(LossReport {
            records_delivered: subscription.tally.delivered(),
            records_lost: subscription.tally.lost(),
            losses,
            r#final: last,
            ..LossReport::default()
        }))
    }
}

/// Serves `api` on pipes of this process until `token` says stop.
pub(crate) async fn serve_pipes(
    api: Api,
    pipes: mpsc::Receiver<DuplexStream>,
    token: CancellationToken,
) {
    let incoming = ReceiverStream::new(pipes).map(Ok::<_, io::Error>);
    let server = Limits::default().server().add_service(OrbitServiceServer::new(api));
    if let Err(error) = server.serve_with_incoming_shutdown(incoming, token.cancelled_owned()).await
    {
        tracing::error!("gRPC over a pipe: {error}");
    }
}

fn unix_ns(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
