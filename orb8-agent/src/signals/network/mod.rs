//! The network slice: flows of every attached interface and of the node's own sockets, counted in
//! the kernel, named here.
//!
//! One task owns everything (`task.rs`); others send it a `Command` and get an answer. It reads
//! totals from maps on a tick and life-cycle events from a ring; either may tell of a packet first,
//! and `table.rs` makes sure that it is counted once.

mod attach;
mod attacher;
mod baseline;
mod clock;
mod early;
mod facing;
mod filter;
mod give;
mod harvest;
mod host_cgroups;
mod host_sockets;
mod interfaces;
mod leftovers;
mod maps;
mod metrics;
mod opening;
mod peers;
mod pods;
mod query;
mod record;
mod survey;
mod table;
mod task;

use orb8_proto::{FlowQuery, FlowResponse, PodQuery, PodResponse, StreamRequest, WorkloadTotals};
use tokio::sync::oneshot;
use tonic::Status;

use super::{
    Context, Signal, Snapshot,
    task_handle::{TaskError, TaskHandle},
};
use crate::{live::SubscriberId, probe_loader::LoadError, query::PodFilter, status::State};

/// Name of the signal, on the wire and on the command line.
pub const NAME: &str = "network";

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
    /// The task did not start.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Some other system call failed.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        error: std::io::Error,
    },
}

impl NetworkError {
    /// What it makes of the signal.
    pub(super) fn state(&self) -> State {
        match self {
            Self::Load(LoadError::Missing(_)) => State::Unsupported(self.to_string()),
            _ => State::Failed(self.to_string()),
        }
    }
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
    Totals(oneshot::Sender<Vec<WorkloadTotals>>),
    /// Detach, settle, end.
    Stop(oneshot::Sender<()>),
}

/// Whom a query or a trace is about. Empty: everybody.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) pods: PodFilter,
    pub(crate) interface: String,
}

/// Speaks to the slice's task. Clones speak to the same one.
#[derive(Clone)]
pub struct Network {
    task: TaskHandle<Command>,
}

impl Network {
    /// Loads, attaches and starts the task on a thread of its own, which ends with
    /// [`Network::stop`] or with the last clone of the answer.
    pub async fn start(context: Context) -> Result<Self, NetworkError> {
        let run = |inbox, ready| task::run(context, inbox, ready);
        Ok(Self { task: TaskHandle::start(NAME, run).await? })
    }

    /// Flows of a window.
    pub async fn flows(&self, query: FlowQuery) -> Result<FlowResponse, Status> {
        self.task.ask(|reply| Command::Flows(query, reply)).await?
    }

    /// Totals per pod of a window.
    pub async fn pods(&self, query: PodQuery) -> Result<PodResponse, Status> {
        self.task.ask(|reply| Command::Pods(query, reply)).await?
    }
}

#[tonic::async_trait]
impl Signal for Network {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn subscribe(&self, id: SubscriberId, request: &StreamRequest) -> Result<(), Status> {
        let filter = Filter {
            pods: PodFilter::new(&request.namespace, &request.pod_name),
            interface: request.interface.clone(),
        };
        self.task.ask(|reply| Command::Subscribe(id, filter, reply)).await?
    }

    async fn unsubscribe(&self, id: SubscriberId) {
        let _stopped = self.task.ask(|reply| Command::Unsubscribe(id, reply)).await;
    }

    async fn snapshot(&self) -> Snapshot {
        self.task.ask(Command::Snapshot).await.unwrap_or_default()
    }

    async fn totals(&self) -> Result<Vec<WorkloadTotals>, Status> {
        self.task.ask(Command::Totals).await
    }

    async fn stop(&self) {
        let _stopped = self.task.ask(Command::Stop).await;
    }
}
