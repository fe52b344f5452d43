//! Putting the parts together: bind, follow the agents, serve, stop.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use orb8_proto::orbit_service_server::OrbitServiceServer;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    agents::{self, Agents},
    api::Api,
    cluster::Cluster,
    config::Config,
    discovery::Members,
    metrics,
};

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be bound.
    #[error("{what} on {address}: {error}")]
    Listen {
        /// Which one.
        what: &'static str,
        /// As it was asked for.
        address: SocketAddr,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// How a server ended.
#[derive(Debug, Default)]
pub struct StopReport {
    /// What did not end by the deadline.
    pub unfinished: Vec<&'static str>,
}

/// A running server.
pub struct Server {
    grpc: SocketAddr,
    metrics: SocketAddr,
    agents: Agents,
    tracker: TaskTracker,
    token: CancellationToken,
    deadline: Duration,
}

impl Server {
    /// Binds and serves. Agents are looked for meanwhile: a server without any says so in each
    /// answer.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        // A connection for each agent: a thousand are more than the usual soft limit.
        orb8_metrics::process::raise_descriptor_limit();
        let config = Arc::new(config);
        let grpc = bind("gRPC", config.listen).await?;
        let metrics = bind("metrics", config.metrics_listen).await?;
        let address = |listener: &tokio::net::TcpListener, asked: SocketAddr| {
            listener.local_addr().unwrap_or(asked)
        };
        let (grpc_addr, metrics_addr) =
            (address(&grpc, config.listen), address(&metrics, config.metrics_listen));

        let (tracker, token) = (TaskTracker::new(), CancellationToken::new());
        let agents = Agents::new(agents::plain(), config.timing);
        let (found, members) = watch::channel(Members::default());
        tracing::info!("agents: {}", config.agents);
        let source = config.agents.clone();
        let kubernetes = config.kubernetes.clone();
        tracker.spawn(source.follow(kubernetes.clone(), config.watch, found, token.clone()));
        let cluster = config.knows_cluster.then(|| Cluster::new(config.agents_remember));
        if let Some(cluster) = cluster.clone() {
            tracker.spawn(cluster.follow(kubernetes, config.watch, token.clone()));
        }
        tracker.spawn(agents.clone().follow(members, token.clone()));
        let api = Api::new(agents.clone(), cluster, Arc::clone(&config), token.clone());
        tracker.spawn(metrics::serve(api.clone(), metrics, token.clone()));
        tracker.spawn(serve(api, grpc, token.clone()));
        let deadline = config.shutdown_deadline;
        Ok(Self { grpc: grpc_addr, metrics: metrics_addr, agents, tracker, token, deadline })
    }

    /// Where gRPC is served.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc
    }

    /// Where metrics are served.
    #[must_use]
    pub fn metrics_addr(&self) -> SocketAddr {
        self.metrics
    }

    /// The agents that it knows.
    #[must_use]
    pub fn agents(&self) -> &Agents {
        &self.agents
    }

    /// Ends streams with their last report, lets answers leave, and ends.
    pub async fn stop(self) -> StopReport {
        self.token.cancel();
        self.tracker.close();
        let ended = tokio::time::timeout(self.deadline, self.tracker.wait()).await;
        StopReport { unfinished: if ended.is_ok() { Vec::new() } else { vec!["serving"] } }
    }
}

async fn bind(
    what: &'static str,
    address: SocketAddr,
) -> Result<tokio::net::TcpListener, StartError> {
    tokio::net::TcpListener::bind(address).await.map_err(|error| StartError::Listen {
        what,
        address,
        error,
    })
}

fn serve(
    api: Api,
    listener: tokio::net::TcpListener,
    token: CancellationToken,
) -> impl Future<Output = ()> {
    let server = tonic::transport::Server::builder()
        .concurrency_limit_per_connection(256)
        .max_concurrent_streams(256)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(OrbitServiceServer::new(api));
    async move {
        let incoming = TcpListenerStream::new(listener);
        let served = server.serve_with_incoming_shutdown(incoming, token.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!("gRPC: {error}");
        }
    }
}
