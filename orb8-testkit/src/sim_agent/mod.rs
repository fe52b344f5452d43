//! Agents without a kernel: real gRPC servers that answer from made-up pods, for what needs a
//! thousand nodes. What they answer is filtered, sorted and cut as an agent's own answers are.

mod cut;
mod service;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use orb8_proto::{NetworkFlow, PodTraffic, orbit_service_server::OrbitServiceServer};
use orb8_transport::{Limits, ServerFiles, ServerTls, incoming};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use self::{cut::Cut, service::Service};

/// What goes wrong with an agent, and how fast it is.
#[derive(Clone, Debug, Default)]
pub struct SimFaults {
    /// It accepts questions and never answers.
    pub hang: bool,
    /// Answers take up to this long; how long is different each time.
    pub jitter: Duration,
    /// Every question is answered with this error.
    pub refuse: Option<String>,
}

/// What an agent knows.
#[derive(Clone, Debug)]
pub struct SimNode {
    /// Its name.
    pub name: String,
    /// Its pods with their traffic. Flows are made of them, one for each pod.
    pub pods: Vec<PodTraffic>,
    /// What all flows have that pods do not say. Those without a time are of just now.
    pub flow: NetworkFlow,
    /// Records of a trace, a second.
    pub events: u32,
}

impl SimNode {
    /// A node with `pods` pods of several namespaces and workloads, each with its own traffic.
    #[must_use]
    pub fn new(name: &str, pods: u32) -> Self {
        let pod = |n: u32| {
            // Spread, and different for every pod of every node.
            let seed = name.bytes().fold(u64::from(n), |h, b| h.wrapping_mul(31) + u64::from(b));
            PodTraffic {
                namespace: format!("ns-{}", n % 10),
                pod_name: format!("app-{}-{name}-{n}", n % 25),
                workload: format!("Deployment/app-{}", n % 25),
                ingress_bytes: seed.wrapping_mul(0x9E37_79B9) % 1_000_000_007,
                egress_bytes: seed.wrapping_mul(0x85EB_CA6B) % 1_000_000_007,
                ingress_packets: seed % 100_003,
                egress_packets: seed % 10_007,
                flows: u64::from(n % 7) + 1,
                pod_uid: format!("{seed:032x}"),
                node: name.to_owned(),
                ..PodTraffic::default()
            }
        };
        let flow = NetworkFlow {
            src_ip: "10.0.0.1".into(),
            dst_ip: "10.0.0.2".into(),
            src_port: 40_000,
            dst_port: 80,
            protocol: "tcp".into(),
            interface: "veth0".into(),
            ..NetworkFlow::default()
        };
        Self { name: name.to_owned(), pods: (0..pods).map(pod).collect(), flow, events: 0 }
    }
}

#[derive(Debug)]
struct State {
    node: Mutex<SimNode>,
    faults: Mutex<SimFaults>,
    /// When it was started, in nanoseconds since the Unix epoch.
    started_ns: i64,
}

impl State {
    fn of(node: SimNode) -> Arc<Self> {
        let (node, faults) = (Mutex::new(node), Mutex::default());
        Arc::new(Self { node, faults, started_ns: service::unix_ns() })
    }
}

/// One agent. It ends when it is dropped.
#[derive(Debug)]
pub struct SimAgent {
    address: SocketAddr,
    state: Arc<State>,
    token: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl SimAgent {
    /// Serves `node` on a port of the loopback. It has to be called on a tokio runtime.
    pub async fn start(node: SimNode) -> Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), node).await
    }

    /// Serves `node` at `address`, such as that of an agent that was there before.
    pub async fn start_at(address: SocketAddr, node: SimNode) -> Result<Self> {
        let listener = TcpListener::bind(address).await.context("binding an agent")?;
        let address = listener.local_addr()?;
        let (state, token) = (State::of(node), CancellationToken::new());
        let service = Service::new(Arc::clone(&state), token.clone());
        let server = Server::builder().add_service(OrbitServiceServer::new(service));
        let ended = token.clone();
        let server = tokio::spawn(async move {
            let cut = ended.clone();
            let incoming = TcpListenerStream::new(listener)
                .map(move |stream| stream.map(|stream| Cut::new(stream, cut.clone())));
            ended.run_until_cancelled(server.serve_with_incoming(incoming)).await;
        });
        Ok(Self { address, state, token, server })
    }

    /// Serves `node` by TLS, as an agent does: with these files, on a port of the loopback.
    ///
    /// # Errors
    /// When the files cannot be used, or there is no port.
    pub async fn start_tls(address: SocketAddr, node: SimNode, tls: ServerFiles) -> Result<Self> {
        let tls = ServerTls::load(tls)?;
        let listener = TcpListener::bind(address).await.context("binding an agent")?;
        let (address, limits) = (listener.local_addr()?, Limits::default());
        let (state, token) = (State::of(node), CancellationToken::new());
        let service = Service::new(Arc::clone(&state), token.clone());
        let incoming = incoming(listener, Some(tls), &limits);
        let (port, stop) = (incoming.port(), token.clone());
        let serving = limits
            .server()
            .add_service(OrbitServiceServer::new(service))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let server = tokio::spawn(async move {
            // Cut at once, as those of a process that was killed.
            let _ended = port.drain(serving, stop, Duration::ZERO).await;
        });
        Ok(Self { address, state, token, server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how it behaves from now on.
    pub fn faults(&self, change: impl FnOnce(&mut SimFaults)) {
        change(&mut self.state.faults.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes what it knows from now on.
    pub fn node(&self, change: impl FnOnce(&mut SimNode)) {
        change(&mut self.state.node.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends it, with every connection, before this returns.
    pub async fn kill(self) {
        self.token.cancel();
        let mut this = self;
        let _ended = (&mut this.server).await;
    }
}

impl Drop for SimAgent {
    fn drop(&mut self) {
        self.token.cancel();
    }
}
