//! The network slice: flows of every attached interface and of the node's own sockets, counted in
//! the kernel, named here.
//!
//! One task owns everything (`task.rs`); others send it a `Command` and get an answer. It reads
//! totals from maps on a tick and life-cycle events from a ring; either may tell of a packet first,
//! and `table.rs` makes sure that it is counted once.

mod attach;
mod attacher;
mod clock;
mod facing;
mod filter;
mod give;
mod harvest;
mod host_cgroups;
mod host_sockets;
mod interfaces;
mod maps;
mod opening;
mod peers;
mod pods;
mod query;
mod record;
mod survey;
mod table;
mod task;

use std::sync::Arc;

use orb8_proto::{
    FlowQuery, FlowResponse, InterfaceStatus, MapStatus, PodQuery, PodResponse, PodSource,
};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::{
    config::Config,
    enricher::PodLookup,
    k8s::{cgroups::Cgroups, peers::PeerStore},
    ledger::Ledger,
    live::{Live, SubscriberId},
    probe_loader::LoadError,
    status::StatusBoard,
};

pub use pods::PodTotals;

/// Name of the signal, on the wire and on the command line.
pub const NAME: &str = "network";

/// What the slice needs of the spine.
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

/// Why the slice could not start.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The probe could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An interface was named that is not there.
    #[error("interface {name:?} does not exist; there are: {}", .there.join(", "))]
    NoInterface {
        /// As written.
        name: String,
        /// What there is.
        there: Vec<String>,
    },
    /// The kernel could not be asked about interfaces.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::NetlinkError),
    /// Some other system call failed.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        error: std::io::Error,
    },
}

/// What the slice's task is asked.
pub(crate) enum Command {
    Flows(FlowQuery, oneshot::Sender<Result<FlowResponse, Status>>),
    Pods(PodQuery, oneshot::Sender<Result<PodResponse, Status>>),
    /// Settle what happened so far, then let the subscriber hear what comes. Fails for a filter
    /// that names nobody.
    Subscribe(SubscriberId, Filter, oneshot::Sender<Result<(), Status>>),
    /// Settle what happened so far as the subscriber's last records.
    Unsubscribe(SubscriberId, oneshot::Sender<()>),
    Snapshot(oneshot::Sender<Snapshot>),
    /// Detach, settle, end.
    Stop(oneshot::Sender<()>),
}

/// Whom a query or a trace is about. Empty: everybody.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) namespace: String,
    pub(crate) pod_prefix: String,
    pub(crate) interface: String,
}

/// The slice's state for status and metrics.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Interfaces, attached or not.
    pub interfaces: Vec<InterfaceStatus>,
    /// Kernel maps and their fill.
    pub maps: Vec<MapStatus>,
    /// Kernel memory of the maps, in bytes.
    pub map_bytes: u64,
    /// Totals since the start, per pod.
    pub pods: Vec<PodTotals>,
    /// Bytes waiting in `FLOW_EVENTS`, and its size.
    pub ring: (u64, u64),
    /// Events that the probe wanted to emit.
    pub events_seen: u64,
    /// Events that were not emitted because nobody wanted them.
    pub events_unwanted: u64,
    /// Events that arrived here.
    pub events_delivered: u64,
    /// Flows that are tracked.
    pub flows: u64,
    /// Where the names of peers come from, and what is missing.
    pub peer_source: PodSource,
    /// Flows whose first record went out before the kernel was asked who is behind their peer.
    pub peers_unasked: u64,
}

/// Speaks to the slice's task. Clones speak to the same one.
#[derive(Clone)]
pub struct Network {
    commands: mpsc::Sender<Command>,
}

impl Network {
    /// Loads, attaches and starts the task on a thread of its own, which ends with
    /// [`Network::stop`] or with the last clone of the answer.
    pub async fn start(context: Context) -> Result<Self, NetworkError> {
        let (commands, inbox) = mpsc::channel(64);
        let (ready, started) = oneshot::channel();
        // A thread, because reading maps blocks for milliseconds and the API must not wait for it.
        // It inherits the network namespace of the thread that starts it.
        let thread = std::thread::Builder::new().name(format!("orb8-{NAME}"));
        let spawned = thread.spawn(move || task::run(context, inbox, ready));
        spawned.map_err(|error| NetworkError::Io { what: "thread", error })?;
        match started.await {
            Ok(outcome) => outcome.map(|()| Self { commands }),
            Err(_gone) => Err(NetworkError::Io {
                what: "network task",
                error: std::io::Error::other("ended while it started"),
            }),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Flows of a window.
    pub async fn flows(&self, query: FlowQuery) -> Result<FlowResponse, Status> {
        self.ask(|reply| Command::Flows(query, reply)).await.unwrap_or_else(|| Err(stopped()))
    }

    /// Totals per pod of a window.
    pub async fn pods(&self, query: PodQuery) -> Result<PodResponse, Status> {
        self.ask(|reply| Command::Pods(query, reply)).await.unwrap_or_else(|| Err(stopped()))
    }

    /// Starts the subscriber's records at this moment.
    pub(crate) async fn subscribe(&self, id: SubscriberId, filter: Filter) -> Result<(), Status> {
        let answer = self.ask(|reply| Command::Subscribe(id, filter, reply)).await;
        answer.unwrap_or_else(|| Err(stopped()))
    }

    /// Ends the subscriber's records at this moment.
    pub(crate) async fn unsubscribe(&self, id: SubscriberId) {
        self.ask(|reply| Command::Unsubscribe(id, reply)).await;
    }

    /// State for status and metrics; `None` after the end.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        self.ask(Command::Snapshot).await
    }

    /// Detaches, hands out the last records and ends the task.
    pub async fn stop(&self) {
        self.ask(Command::Stop).await;
    }
}

fn stopped() -> Status {
    Status::unavailable("the network signal has stopped")
}
