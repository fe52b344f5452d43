//! What a simulated agent answers.

use std::{
    cmp::Reverse,
    future::pending,
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use orb8_proto::{
    AnomalyQuery, AnomalyResponse, Coverage, Event, FlowQuery, FlowResponse, LossReport,
    NetworkFlow, Node, NodeQuery, NodeResponse, NodeState, NodeStatus, NotFound, PodQuery,
    PodResponse, PodSort, PodTraffic, StatusRequest, StatusResponse, StreamRequest,
    SyscallProfileQuery, SyscallProfileResponse, SyscallQuery, SyscallResponse, TotalsQuery,
    TotalsResponse, WorkloadTotals, event, orbit_service_server::OrbitService,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{SimFaults, SimNode, State};

/// As an agent keeps them.
const WINDOW_NS: i64 = 300_000_000_000;

pub(super) struct Service {
    state: Arc<State>,
    token: CancellationToken,
}

impl Service {
    pub(super) fn new(state: Arc<State>, token: CancellationToken) -> Self {
        Self { state, token }
    }

    /// Takes its time, hangs or refuses, as it is told to.
    async fn begin(&self) -> Result<SimNode, Status> {
        let SimFaults { hang, jitter, refuse } =
            self.state.faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if hang {
            pending::<()>().await;
        }
        if !jitter.is_zero() {
            let most = u64::try_from(jitter.as_micros()).unwrap_or(u64::MAX).max(1);
            let spread = unix_ns().unsigned_abs().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
            let wait = spread % most;
            tokio::time::sleep(Duration::from_micros(wait)).await;
        }
        match refuse {
            Some(reason) => Err(Status::failed_precondition(reason)),
            None => Ok(self.state.node.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }
}

/// The pods that a filter names.
fn matching(node: &SimNode, namespace: &str, prefix: &str) -> Result<Vec<PodTraffic>, Status> {
    let wanted = |pod: &&PodTraffic| {
        (namespace.is_empty() || pod.namespace == namespace) && pod.pod_name.starts_with(prefix)
    };
    let pods: Vec<PodTraffic> = node.pods.iter().filter(wanted).cloned().collect();
    if pods.is_empty() && !(namespace.is_empty() && prefix.is_empty()) {
        let (what, name) =
            if prefix.is_empty() { ("namespace", namespace) } else { ("pod", prefix) };
        let there = node.pods.iter().map(|pod| match what {
            "namespace" => pod.namespace.clone(),
            _ => format!("{}/{}", pod.namespace, pod.pod_name),
        });
        return Err(NotFound::status(what, name, &format!("node {}", node.name), &there.collect()));
    }
    Ok(pods)
}

fn coverage(node: &SimNode, rows: usize) -> Coverage {
    let now = unix_ns();
    Coverage {
        start_time_ns: now - WINDOW_NS,
        end_time_ns: now,
        rows_matched: rows as u64,
        node: node.name.clone(),
        empty_reason: if rows == 0 { "nothing passed".into() } else { String::new() },
        ..Coverage::default()
    }
}

fn flow(node: &SimNode, pod: &PodTraffic) -> NetworkFlow {
    let like = &node.flow;
    NetworkFlow {
        namespace: pod.namespace.clone(),
        pod_name: pod.pod_name.clone(),
        workload: pod.workload.clone(),
        pod_uid: pod.pod_uid.clone(),
        node: pod.node.clone(),
        bytes: pod.egress_bytes,
        packets: pod.egress_packets,
        timestamp_ns: if like.timestamp_ns == 0 { unix_ns() } else { like.timestamp_ns },
        ..like.clone()
    }
}

#[tonic::async_trait]
impl OrbitService for Service {
    type StreamEventsStream = ReceiverStream<Result<Event, Status>>;

    async fn query_pods(
        &self,
        request: Request<PodQuery>,
    ) -> Result<Response<PodResponse>, Status> {
        let node = self.begin().await?;
        let query = request.into_inner();
        let mut pods = matching(&node, &query.namespace, &query.pod_name)?;
        let coverage = Some(coverage(&node, pods.len()));
        match query.sort_by() {
            PodSort::Name => pods.sort_by(|a, b| a.pod_name.cmp(&b.pod_name)),
            PodSort::Packets => {
                pods.sort_by_key(|pod| Reverse(pod.ingress_packets + pod.egress_packets));
            }
            PodSort::Flows => pods.sort_by_key(|pod| Reverse(pod.flows)),
            PodSort::Unspecified | PodSort::Bytes => {
                pods.sort_by_key(|pod| Reverse(pod.ingress_bytes + pod.egress_bytes));
            }
        }
        pods.truncate(query.limit as usize);
        Ok(Response::new(PodResponse { pods, coverage }))
    }

    async fn query_flows(
        &self,
        request: Request<FlowQuery>,
    ) -> Result<Response<FlowResponse>, Status> {
        let node = self.begin().await?;
        let query = request.into_inner();
        let pods = matching(&node, &query.namespace, &query.pod_name)?;
        let coverage = Some(coverage(&node, pods.len()));
        let mut flows: Vec<NetworkFlow> = pods.iter().map(|pod| flow(&node, pod)).collect();
        flows.sort_by_key(|flow| Reverse(flow.bytes));
        flows.truncate(query.limit as usize);
        Ok(Response::new(FlowResponse { flows, coverage }))
    }

    async fn query_syscalls(
        &self,
        _: Request<SyscallQuery>,
    ) -> Result<Response<SyscallResponse>, Status> {
        let node = self.begin().await?;
        let coverage = Some(coverage(&node, 0));
        Ok(Response::new(SyscallResponse { syscalls: Vec::new(), coverage }))
    }

    async fn query_anomalies(
        &self,
        _: Request<AnomalyQuery>,
    ) -> Result<Response<AnomalyResponse>, Status> {
        let node = self.begin().await?;
        let coverage = Some(coverage(&node, 0));
        Ok(Response::new(AnomalyResponse { coverage, ..AnomalyResponse::default() }))
    }

    async fn get_syscall_profile(
        &self,
        _: Request<SyscallProfileQuery>,
    ) -> Result<Response<SyscallProfileResponse>, Status> {
        let node = self.begin().await?;
        Ok(Response::new(SyscallProfileResponse { node: node.name, ..<_>::default() }))
    }

    async fn list_nodes(&self, _: Request<NodeQuery>) -> Result<Response<NodeResponse>, Status> {
        let node = self.begin().await?;
        let node = Node {
            name: node.name,
            state: NodeState::Ready.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_ns: self.state.started_ns,
            ..Node::default()
        };
        Ok(Response::new(NodeResponse { nodes: vec![node], ..<_>::default() }))
    }

    async fn get_totals(
        &self,
        _: Request<TotalsQuery>,
    ) -> Result<Response<TotalsResponse>, Status> {
        let node = self.begin().await?;
        let mut workloads: std::collections::BTreeMap<_, WorkloadTotals> = <_>::default();
        for pod in &node.pods {
            let key = (pod.namespace.clone(), pod.workload.clone());
            let sum = workloads.entry(key).or_insert_with(|| WorkloadTotals {
                namespace: pod.namespace.clone(),
                workload: pod.workload.clone(),
                ..WorkloadTotals::default()
            });
            sum.ingress_bytes += pod.ingress_bytes;
            sum.egress_bytes += pod.egress_bytes;
            sum.ingress_packets += pod.ingress_packets;
            sum.egress_packets += pod.egress_packets;
            sum.pods += 1;
        }
        Ok(Response::new(TotalsResponse {
            node: node.name,
            started_ns: self.state.started_ns,
            workloads: workloads.into_values().collect(),
            ..TotalsResponse::default()
        }))
    }

    async fn get_agent_status(
        &self,
        _: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let node = self.begin().await?;
        Ok(Response::new(StatusResponse {
            node: node.name,
            started_ns: self.state.started_ns,
            ..StatusResponse::default()
        }))
    }

    async fn stream_events(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let node = self.begin().await?;
        let request = request.into_inner();
        let pods = matching(&node, &request.namespace, &request.pod_name)?;
        let (events, stream) = mpsc::channel(256);
        let deadline = request
            .duration_ns
            .map(|ns| Instant::now() + Duration::from_nanos(u64::try_from(ns).unwrap_or(0)));
        tokio::spawn(self.token.clone().run_until_cancelled_owned(async move {
            let _gone = play(node, pods, deadline, events).await;
        }));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Ten times a second, as an agent does it.
async fn play(
    node: SimNode,
    pods: Vec<PodTraffic>,
    deadline: Option<Instant>,
    events: mpsc::Sender<Result<Event, Status>>,
) -> Result<(), mpsc::error::SendError<Result<Event, Status>>> {
    let event = |event| {
        let event = Some(event);
        Ok(Event { node: node.name.clone(), timestamp_ns: unix_ns(), event })
    };
    events.send(event(event::Event::NodeStatus(NodeStatus::default()))).await?;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut delivered, mut due, mut pods) = (0, 0, pods.iter().cycle());
    loop {
        tick.tick().await;
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break;
        }
        due += node.events;
        while due >= 10 {
            due -= 10;
            let Some(pod) = pods.next() else { break };
            events.send(event(event::Event::NetworkFlow(flow(&node, pod)))).await?;
            delivered += 1;
        }
    }
    let report = LossReport { records_delivered: delivered, r#final: true, ..<_>::default() };
    events.send(event(event::Event::Loss(report))).await
}

pub(super) fn unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
