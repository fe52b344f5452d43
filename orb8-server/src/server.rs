//! Putting the parts together: bind, follow the agents, serve, stop.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use orb8_transport::{ClientTls, FileError, ServerTls, incoming};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::{Access, Authority, Kubernetes},
    agents::{self, Agents},
    api::Api,
    cluster::Cluster,
    config::Config,
    discovery::Members,
    grpc, metrics,
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
    /// Certificates, keys or CAs cannot be used.
    #[error(transparent)]
    Tls(#[from] FileError),
    /// There is nothing to ask the Kubernetes API with.
    #[error("auth: the Kubernetes API is to decide who may see what, and cannot be asked: {0}")]
    Kubernetes(String),
    /// What is served beside orb8's own service.
    #[error("gRPC: {0}")]
    Services(io::Error),
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
        let tls = config.tls.clone().map(ServerTls::load).transpose()?;
        let agent_tls = config.agent_tls.clone().map(ClientTls::load).transpose()?;
        let access = access(&config).await?;
        let grpc = bind("gRPC", config.listen).await?;
        let metrics = bind("metrics", config.metrics_listen).await?;
        let address = |listener: &tokio::net::TcpListener, asked: SocketAddr| {
            listener.local_addr().unwrap_or(asked)
        };
        let (grpc_addr, metrics_addr) =
            (address(&grpc, config.listen), address(&metrics, config.metrics_listen));

        let (tracker, token) = (TaskTracker::new(), CancellationToken::new());
        let agents = Agents::new(agents::connector(agent_tls), config.timing);
        let (found, members) = watch::channel(Members::default());
        let cluster = config.knows_cluster.then(|| Cluster::new(config.agents_remember));
        let api =
            Api::new(agents.clone(), cluster.clone(), Arc::clone(&config), access, token.clone());
        let incoming = incoming(grpc, tls, &grpc::limits());
        let port = incoming.port();
        let serving =
            grpc::serve(api.clone(), incoming, token.clone()).map_err(StartError::Services)?;
        tracing::info!("agents: {}", config.agents);
        let source = config.agents.clone();
        let kubernetes = config.kubernetes.clone();
        tracker.spawn(source.follow(kubernetes.clone(), config.watch, found, token.clone()));
        if let Some(cluster) = cluster {
            tracker.spawn(cluster.follow(kubernetes, config.watch, token.clone()));
        }
        tracker.spawn(agents.clone().follow(members, token.clone()));
        tracker.spawn(metrics::serve(api, port, metrics, token.clone()));
        tracker.spawn(serving);
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

/// Whoever decides, as far as that takes no question to anybody.
async fn access(config: &Config) -> Result<Access, StartError> {
    let kubernetes = match config.authority {
        Authority::Kubernetes => {
            let asked = Kubernetes::new(config.kubernetes.clone(), &config.access).await;
            Some(asked.map_err(|error| StartError::Kubernetes(error.to_string()))?)
        }
        Authority::Nobody | Authority::Certificates => None,
    };
    Ok(Access::new(config.authority, config.access, kubernetes))
}
