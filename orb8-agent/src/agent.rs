//! Putting the parts together: start, serve, stop.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use hyper_util::rt::TokioIo;
use orb8_k8s::{
    PodLookup,
    peers::PeerStore,
    pods::{PodListError, PodTable},
    watcher::{PodWatcher, Timing},
};
use orb8_proto::{Loss, SignalState};
use orb8_transport::{FileError, ServerTls};
use tokio::io::DuplexStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    api_server::{self, Api},
    config::{Config, PeerScope},
    k8s::{
        cgroups::Cgroups,
        runtime::{self, RuntimeChoice, RuntimePods, RuntimeSource},
        second_opinion::SecondOpinion,
    },
    ledger::Ledger,
    live::Live,
    prom_exporter,
    signals::{Context, Signals},
    status::StatusBoard,
    tasks::Tasks,
    tcp_server,
};

/// Bytes in flight in each direction of the in-memory pipe.
const PIPE: usize = 1 << 20;

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be bound.
    #[error("{0}")]
    Listen(io::Error),
    /// The files of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] FileError),
    /// The pod list could not be read.
    #[error(transparent)]
    Pods(#[from] PodListError),
    /// No signal works, and the configuration requires one.
    #[error("{0}")]
    NoSignal(String),
}

/// How an agent ended.
#[derive(Debug, Default)]
pub struct StopReport {
    /// Tasks that did not end by the deadline.
    pub unfinished: Vec<&'static str>,
    /// Everything lost since the start.
    pub losses: Vec<Loss>,
}

/// A running agent.
pub struct Agent {
    config: Arc<Config>,
    grpc_addr: Option<SocketAddr>,
    metrics_addr: Option<SocketAddr>,
    signals: Signals,
    live: Live,
    ledger: Ledger,
    tasks: Tasks,
    pipes: tokio::sync::mpsc::Sender<DuplexStream>,
}

impl Agent {
    /// Binds, loads, attaches, serves. Whatever can be found wrong is found before anything is
    /// attached; a signal that does not work is a state of the agent, unless the configuration
    /// requires one that does.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let bind = |what, address: Option<SocketAddr>| {
            address.map(|a| Config::bind(what, a)).transpose().map_err(StartError::Listen)
        };
        let grpc = bind("gRPC", config.listen)?;
        let metrics = bind("metrics", config.metrics_listen)?;
        let tls = config.tls.clone().map(ServerTls::load).transpose()?;
        let tasks = Tasks::default();
        let pods = pod_source(&config, &tasks)?;
        let peers = peer_source(&config, &tasks);
        orb8_metrics::process::raise_descriptor_limit();

        let (ledger, live, status) = (Ledger::default(), Live::default(), StatusBoard::default());
        let cgroups = Cgroups::open(ledger.clone());
        tasks.spawn("cgroups", cgroups.clone().follow(tasks.token()));
        let context = Context {
            config: Arc::clone(&config),
            pods: Arc::clone(&pods),
            cgroups,
            peers,
            ledger: ledger.clone(),
            live: live.clone(),
            status: status.clone(),
        };
        let signals = Signals::start(&context).await;
        crate::probe_loader::give_memory_back();
        if config.require_signal && !status.ready() {
            let broken = status.signals().into_iter();
            let broken = broken.filter(|s| s.state() != SignalState::Disabled);
            let reasons: Vec<String> =
                broken.map(|s| format!("{}: {}", s.name, s.reason)).collect();
            signals.stop().await;
            tasks.drain(config.shutdown_deadline).await;
            return Err(StartError::NoSignal(reasons.join("\n")));
        }

        let api = Api::new(
            Arc::clone(&config),
            signals.clone(),
            ledger.clone(),
            live.clone(),
            status.clone(),
            pods,
        );
        let address = |listener: &Option<std::net::TcpListener>| {
            listener.as_ref().and_then(|l| l.local_addr().ok())
        };
        let (grpc_addr, metrics_addr) = (address(&grpc), address(&metrics));
        if let Some(listener) = grpc {
            let server = tcp_server::serve(api.clone(), listener, tls, tasks.token())
                .map_err(StartError::Listen)?;
            tasks.spawn("grpc", server);
        }
        let (pipes, incoming) = tokio::sync::mpsc::channel(4);
        tasks.spawn("grpc-pipe", api_server::serve_pipes(api.clone(), incoming, tasks.token()));
        if let Some(listener) = metrics {
            let server =
                prom_exporter::serve(api, listener, tasks.token()).map_err(StartError::Listen)?;
            tasks.spawn("metrics", server);
        }
        Ok(Self { config, grpc_addr, metrics_addr, signals, live, ledger, tasks, pipes })
    }

    /// Where gRPC is served.
    #[must_use]
    pub const fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc_addr
    }

    /// Where metrics are served.
    #[must_use]
    pub const fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// A client's channel over an in-memory pipe: standalone mode speaks the same protocol.
    pub async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let pipes = self.pipes.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let pipes = pipes.clone();
            async move {
                let (client, server) = tokio::io::duplex(PIPE);
                let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
                pipes.send(server).await.map_err(refused)?;
                Ok::<_, io::Error>(TokioIo::new(client))
            }
        });
        // The address is required by the protocol and never looked up.
        Endpoint::from_static("http://orb8.local").connect_with_connector(connector).await
    }

    /// Detaches, gives subscribers their last records and the final report, then ends every task.
    pub async fn stop(self) -> StopReport {
        let ending = self.signals.stop();
        let _late = tokio::time::timeout(self.config.shutdown_deadline, ending).await;
        self.live.remove_all();
        let unfinished = self.tasks.drain(self.config.shutdown_deadline).await;
        StopReport { unfinished, losses: self.ledger.losses() }
    }
}

/// Where names come from: a list or Kubernetes, and the container runtime. Any of them but the list
/// may be away: names come when they do.
fn pod_source(config: &Config, tasks: &Tasks) -> Result<Arc<dyn PodLookup>, StartError> {
    let first: Option<Arc<dyn PodLookup>> = if let Some(path) = &config.pods {
        Some(Arc::new(PodTable::read(path)?))
    } else if let Some(source) = &config.kubernetes {
        let watcher = PodWatcher::new(source.clone(), &config.node_name, Timing::default());
        let pods = watcher.pods();
        tasks.spawn("pods", watcher.run(tasks.token()));
        Some(pods)
    } else {
        None
    };
    Ok(match (first, runtime(config, tasks)) {
        (Some(first), Some(runtime)) => Arc::new(SecondOpinion::new(first, runtime)),
        (Some(first), None) => first,
        (None, Some(runtime)) => runtime,
        (None, None) => Arc::new(PodTable::default()),
    })
}

/// Whoever gives a list wants no other names, unless they say so.
fn runtime(config: &Config, tasks: &Tasks) -> Option<Arc<RuntimePods>> {
    let socket = match &config.runtime {
        RuntimeChoice::Off => return None,
        RuntimeChoice::Auto if config.pods.is_some() => return None,
        RuntimeChoice::Auto => None,
        RuntimeChoice::Socket(path) => Some(path.clone()),
    };
    let source = RuntimeSource::new(socket, Path::new("/"), runtime::Timing::default());
    let pods = source.pods();
    tasks.spawn("runtime", source.run(tasks.token()));
    Some(pods)
}

/// Where the names of peers beyond this node come from, if anybody wants them.
fn peer_source(config: &Config, tasks: &Tasks) -> Option<Arc<PeerStore>> {
    let source = config.kubernetes.as_ref().filter(|_| config.peers == PeerScope::Cluster)?;
    let peers = Arc::new(PeerStore::new(&config.node_name));
    let watch = Arc::clone(&peers).watch(source.clone(), Timing::default(), tasks.token());
    tasks.spawn("peers", watch);
    Some(peers)
}
