//! An `OrbitService` on the loopback that answers what a test tells it to, and the binary run
//! against it.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use orb8_proto::{
    AnomalyQuery, AnomalyResponse, AttributedBy, Direction, Event, FlowQuery, FlowResponse,
    FlowState, InterfaceStatus, LossReport, NetworkFlow, Node, NodeQuery, NodeResponse, NodeStatus,
    PodQuery, PodResponse, SignalState, SignalStatus, StatusRequest, StatusResponse, StreamRequest,
    SyscallProfileQuery, SyscallProfileResponse, SyscallQuery, SyscallResponse, TotalsQuery,
    TotalsResponse,
    event::Event as Kind,
    orbit_service_server::{OrbitService, OrbitServiceServer},
};
use orb8_transport::{Limits, ServerFiles, ServerTls, incoming};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::Server};

/// How a stream goes on after its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    End,
    Fail,
    Hang,
}

/// What the agent answers.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub events: Vec<Event>,
    pub then: Then,
    pub flows: Result<FlowResponse, Status>,
    pub pods: Result<PodResponse, Status>,
    pub syscalls: Result<SyscallResponse, Status>,
    pub anomalies: Result<AnomalyResponse, Status>,
    pub profile: Result<SyscallProfileResponse, Status>,
    pub nodes: Result<Vec<Node>, Status>,
    pub status: StatusResponse,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            events: Vec::new(),
            then: Then::End,
            flows: Ok(FlowResponse::default()),
            pods: Ok(PodResponse::default()),
            syscalls: Ok(SyscallResponse::default()),
            anomalies: Ok(AnomalyResponse::default()),
            profile: Ok(SyscallProfileResponse::default()),
            nodes: Ok(Vec::new()),
            status: StatusResponse { node: "node-1".into(), ..StatusResponse::default() },
        }
    }
}

/// A running agent. Its connections break when it is dropped.
pub(crate) struct FakeAgent {
    pub address: SocketAddr,
    pub requests: std::sync::mpsc::Receiver<StreamRequest>,
    /// What every request showed as its authorization.
    pub shown: Arc<Mutex<Vec<Option<String>>>>,
    runtime: Option<Runtime>,
}

struct Service {
    script: Script,
    requests: std::sync::mpsc::Sender<StreamRequest>,
}

impl FakeAgent {
    pub(crate) fn start(script: Script) -> FakeAgent {
        Self::serve(script, None)
    }

    /// One that speaks TLS.
    pub(crate) fn start_with_tls(script: Script, files: ServerFiles) -> FakeAgent {
        Self::serve(script, Some(files))
    }

    fn serve(script: Script, files: Option<ServerFiles>) -> FakeAgent {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = std::sync::mpsc::channel();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&shown);
        let see = move |request: Request<()>| {
            let value = request.metadata().get("authorization");
            let text = value.and_then(|value| value.to_str().ok()).map(str::to_owned);
            seen.lock().unwrap().push(text);
            Ok(request)
        };
        let service =
            OrbitServiceServer::with_interceptor(Service { script, requests: sender }, see);
        runtime.spawn(async move {
            let limits = Limits::default();
            let tls = files.map(|files| ServerTls::load(files).unwrap());
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming(listener, tls, &limits))
                .await
        });
        FakeAgent { address, requests, shown, runtime: Some(runtime) }
    }

    /// The binary with these arguments, told to ask this agent.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = orb8(arguments);
        command.arg("--server").arg(self.address.to_string());
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        let started = Instant::now();
        let output = self.command(arguments).output().unwrap();
        Run::new(output, started.elapsed())
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The binary, without what the environment of the test could tell it.
pub(crate) fn orb8(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orb8"));
    command.args(arguments).stdin(Stdio::null());
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("ORB8_") {
            command.env_remove(variable);
        }
    }
    command.env_remove("RUST_LOG").env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command
}

/// What the binary left.
#[derive(Debug)]
pub(crate) struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Run {
    pub(crate) fn new(output: Output, took: Duration) -> Run {
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            took,
        }
    }

    pub(crate) fn last_line(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }
}

/// Starts the binary with both outputs piped.
pub(crate) fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The first line on stdout, and the reader for what follows.
pub(crate) fn first_line(child: &mut Child) -> (String, impl Read + use<>) {
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (line, reader)
}

pub(crate) fn flow(pod: &str, bytes: u64) -> NetworkFlow {
    NetworkFlow {
        namespace: "prod".into(),
        pod_name: pod.into(),
        src_ip: "10.0.0.1".into(),
        dst_ip: "10.0.0.2".into(),
        src_port: 40_000,
        dst_port: 80,
        protocol: "tcp".into(),
        direction: Direction::Egress.into(),
        attributed_by: AttributedBy::Veth.into(),
        state: FlowState::Active.into(),
        interface: "veth1".into(),
        node: "node-1".into(),
        bytes,
        packets: bytes / 100,
        timestamp_ns: 1_700_000_000_000_000_000,
        ..NetworkFlow::default()
    }
}

pub(crate) fn event(kind: Kind) -> Event {
    Event { node: "node-1".into(), timestamp_ns: 1, event: Some(kind) }
}

pub(crate) fn node_status() -> Event {
    event(Kind::NodeStatus(NodeStatus {
        signals: vec![SignalStatus {
            name: "network".into(),
            state: SignalState::Degraded.into(),
            reason: "ring too small".into(),
        }],
        interfaces: vec![
            InterfaceStatus {
                name: "veth1".into(),
                attached: "tcx".into(),
                namespace: "prod".into(),
                pod_name: "web".into(),
                ..InterfaceStatus::default()
            },
            InterfaceStatus {
                name: "lo".into(),
                reason: "loopback".into(),
                ..InterfaceStatus::default()
            },
        ],
        ..NodeStatus::default()
    }))
}

pub(crate) fn final_report(delivered: u64, lost: u64) -> Event {
    event(Kind::Loss(LossReport {
        records_delivered: delivered,
        records_lost: lost,
        r#final: true,
        ..LossReport::default()
    }))
}

#[tonic::async_trait]
impl OrbitService for Service {
    type StreamEventsStream = ReceiverStream<Result<Event, Status>>;

    async fn stream_events(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let _ = self.requests.send(request.into_inner());
        let (sender, receiver) = mpsc::channel(16);
        let Script { events, then, .. } = self.script.clone();
        tokio::spawn(async move {
            for event in events {
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            match then {
                Then::End => (),
                Then::Fail => {
                    let _ = sender.send(Err(Status::internal("the \u{1b}[31mroof fell in"))).await;
                }
                Then::Hang => sender.closed().await,
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn query_flows(&self, _: Request<FlowQuery>) -> Result<Response<FlowResponse>, Status> {
        self.script.flows.clone().map(Response::new)
    }

    async fn query_pods(&self, _: Request<PodQuery>) -> Result<Response<PodResponse>, Status> {
        self.script.pods.clone().map(Response::new)
    }

    async fn get_agent_status(
        &self,
        _: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.script.status.clone()))
    }

    async fn query_syscalls(
        &self,
        _: Request<SyscallQuery>,
    ) -> Result<Response<SyscallResponse>, Status> {
        self.script.syscalls.clone().map(Response::new)
    }

    async fn query_anomalies(
        &self,
        _: Request<AnomalyQuery>,
    ) -> Result<Response<AnomalyResponse>, Status> {
        self.script.anomalies.clone().map(Response::new)
    }

    async fn get_syscall_profile(
        &self,
        _: Request<SyscallProfileQuery>,
    ) -> Result<Response<SyscallProfileResponse>, Status> {
        self.script.profile.clone().map(Response::new)
    }

    async fn list_nodes(
        &self,
        request: Request<NodeQuery>,
    ) -> Result<Response<NodeResponse>, Status> {
        let prefix = request.into_inner().name;
        let mut nodes = self.script.nodes.clone()?;
        nodes.retain(|node| node.name.starts_with(&prefix));
        Ok(Response::new(NodeResponse { nodes, problem: String::new() }))
    }

    async fn get_totals(
        &self,
        _: Request<TotalsQuery>,
    ) -> Result<Response<TotalsResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}
