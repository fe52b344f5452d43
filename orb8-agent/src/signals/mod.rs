//! The signals that an agent can run, in order. Adding one is a folder here and a line in each of the
//! two lists.

pub mod network;
pub mod syscall;
mod task_handle;

use std::sync::Arc;

use orb8_k8s::{PodLookup, peers::PeerStore};
use orb8_metrics::Scrape;
use orb8_proto::{InterfaceStatus, Loss, MapStatus, PodSource, StreamRequest, WorkloadTotals};
use tonic::Status;

use self::{network::Network, syscall::Syscall};
use crate::{
    config::Config,
    k8s::cgroups::Cgroups,
    ledger::Ledger,
    live::{Live, SubscriberId},
    status::{State, StatusBoard},
};

/// Names of the signals, on the wire and on the command line.
pub const NAMES: [&str; 2] = [network::NAME, syscall::NAME];

/// Whether a loss is one of these signals' or, as of cgroups, everybody's.
pub(crate) fn concerns(loss: &Loss, signals: &[&str]) -> bool {
    signals.contains(&&*loss.signal) || !NAMES.contains(&&*loss.signal)
}

/// What a slice needs of the spine.
#[derive(Clone)]
pub struct Context {
    /// Resolved configuration.
    pub config: Arc<Config>,
    /// Names.
    pub pods: Arc<dyn PodLookup>,
    /// Whose a cgroup id is.
    pub cgroups: Cgroups,
    /// Names of peers that are not on this node.
    pub peers: Option<Arc<PeerStore>>,
    /// Where losses go.
    pub ledger: Ledger,
    /// Where records go.
    pub live: Live,
    /// Where the state goes.
    pub status: StatusBoard,
}

/// A running slice, as the spine sees it. What can be asked of one alone is its own affair.
#[tonic::async_trait]
pub trait Signal: Send + Sync {
    /// One of [`NAMES`].
    fn name(&self) -> &'static str;
    /// Starts the subscriber's records at this moment. Fails for a request that names nobody, or
    /// something that is not known.
    async fn subscribe(&self, id: SubscriberId, request: &StreamRequest) -> Result<(), Status>;
    /// Ends the subscriber's records at this moment: what happened so far is delivered.
    async fn unsubscribe(&self, id: SubscriberId);
    /// State for status and metrics; empty after the end.
    async fn snapshot(&self) -> Snapshot;
    /// What it counted since the start, by workload. None of it falls from one answer to the next.
    /// Fails after the end.
    async fn totals(&self) -> Result<Vec<WorkloadTotals>, Status>;
    /// Detaches, hands out the last records and ends.
    async fn stop(&self);
}

/// A slice's state for status and metrics.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Kernel maps and their fill.
    pub maps: Vec<MapStatus>,
    /// Kernel memory of the maps, in bytes.
    pub map_bytes: u64,
    /// The event ring's name, bytes that wait in it, and its size.
    pub ring: Option<(&'static str, u64, u64)>,
    /// Events that the probe wanted to emit.
    pub events_seen: u64,
    /// Events that were not emitted because nobody wanted them.
    pub events_unwanted: u64,
    /// Events that arrived here.
    pub events_delivered: u64,
    /// Interfaces, attached or not.
    pub interfaces: Vec<InterfaceStatus>,
    /// Where the names of peers come from, and what is missing.
    pub peer_source: Option<PodSource>,
    /// Metrics that only this signal has.
    pub metrics: Option<Box<dyn Scrape>>,
}

/// The slices that run. Clones speak to the same ones.
#[derive(Clone, Default)]
pub struct Signals {
    /// Network flows.
    pub network: Option<Network>,
    /// System calls.
    pub syscall: Option<Syscall>,
}

impl Signals {
    /// Starts those that the configuration wants. One that cannot is a state and no obstacle to the
    /// others.
    pub async fn start(context: &Context) -> Self {
        let wants = |name: &'static str| {
            let wanted = context.config.signals.contains(&name);
            if !wanted {
                context.status.set(name, State::Disabled("not asked for".into()));
            }
            wanted
        };
        let (network, syscall) = (wants(network::NAME), wants(syscall::NAME));
        let network = async {
            if !network {
                return None;
            }
            let started = Network::start(context.clone()).await;
            started.map_err(|error| context.status.set(network::NAME, error.state())).ok()
        };
        let syscall = async {
            if !syscall {
                return None;
            }
            let started = Syscall::start(context.clone()).await;
            started.map_err(|error| context.status.set(syscall::NAME, error.state())).ok()
        };
        let (network, syscall) = tokio::join!(network, syscall);
        Self { network, syscall }
    }

    /// Those that run, in order.
    #[must_use]
    pub fn running(&self) -> Vec<&dyn Signal> {
        let network = self.network.as_ref().map(|signal| signal as &dyn Signal);
        let syscall = self.syscall.as_ref().map(|signal| signal as &dyn Signal);
        [network, syscall].into_iter().flatten().collect()
    }

    /// Ends them, each with its last records.
    pub async fn stop(&self) {
        futures_util::future::join_all(self.running().into_iter().map(Signal::stop)).await;
    }

    /// The state of each, by name.
    pub async fn snapshots(&self) -> Vec<(&'static str, Snapshot)> {
        let all = self.running().into_iter().map(|s| async { (s.name(), s.snapshot().await) });
        futures_util::future::join_all(all).await
    }

    /// What each counted since the start, by workload: a workload may be there more than once.
    pub async fn totals(&self) -> Result<Vec<WorkloadTotals>, Status> {
        let all = self.running().into_iter().map(Signal::totals);
        Ok(futures_util::future::try_join_all(all).await?.concat())
    }
}
