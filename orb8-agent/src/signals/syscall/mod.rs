//! The syscall slice: every system call counted in the kernel per container, and those that are worth
//! it told one by one.
//!
//! One task owns everything (`task.rs`); others send it a `Command` and get an answer. Counts are read
//! from maps on a tick, calls from a ring; a full ring costs records of calls and never a count.

mod anomalies;
mod anomaly;
pub mod classes;
mod ends;
mod errno;
mod events;
mod execs;
mod follow;
mod harvest;
mod hooks;
mod metrics;
pub mod names;
mod probe;
mod query;
mod record;
mod slots;
mod table;
mod task;
mod telling;
mod watcher;

use orb8_proto::{
    AnomalyQuery, AnomalyResponse, StreamRequest, SyscallProfileQuery, SyscallProfileResponse,
    SyscallQuery, SyscallResponse, WorkloadTotals,
};
use tokio::sync::oneshot;
use tonic::Status;

pub use telling::SENSITIVE;

use super::{
    Context, Signal, Snapshot,
    task_handle::{TaskError, TaskHandle},
};
use crate::{live::SubscriberId, probe_loader::LoadError, status::State};

/// Name of the signal, on the wire and on the command line.
pub const NAME: &str = "syscall";

/// Why the slice could not start.
#[derive(Debug, thiserror::Error)]
pub enum SyscallError {
    /// The probe could not be loaded or attached.
    #[error(transparent)]
    Load(#[from] LoadError),
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

impl SyscallError {
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
    Calls(SyscallQuery, oneshot::Sender<Result<SyscallResponse, Status>>),
    Anomalies(AnomalyQuery, oneshot::Sender<Result<AnomalyResponse, Status>>),
    Profiles(SyscallProfileQuery, oneshot::Sender<Result<SyscallProfileResponse, Status>>),
    /// Settle what happened so far, then let the subscriber hear what comes. Fails for a request that
    /// names nobody, or no call.
    Subscribe(SubscriberId, StreamRequest, oneshot::Sender<Result<(), Status>>),
    /// Give the subscriber what happened so far.
    Unsubscribe(SubscriberId, oneshot::Sender<()>),
    Snapshot(oneshot::Sender<Snapshot>),
    Totals(oneshot::Sender<Vec<WorkloadTotals>>),
    /// Detach, settle, end.
    Stop(oneshot::Sender<()>),
}

/// Speaks to the slice's task. Clones speak to the same one.
#[derive(Clone)]
pub struct Syscall {
    task: TaskHandle<Command>,
}

impl Syscall {
    /// Loads, attaches and starts the task on a thread of its own, which ends with [`Signal::stop`] or
    /// with the last clone of the answer.
    pub async fn start(context: Context) -> Result<Self, SyscallError> {
        let run = |inbox, ready| task::run(context, inbox, ready);
        Ok(Self { task: TaskHandle::start(NAME, run).await? })
    }

    /// Calls of a window, per container and call.
    pub async fn calls(&self, query: SyscallQuery) -> Result<SyscallResponse, Status> {
        self.task.ask(|reply| Command::Calls(query, reply)).await?
    }

    /// What departs from normal, and what has been learnt.
    pub async fn anomalies(&self, query: AnomalyQuery) -> Result<AnomalyResponse, Status> {
        self.task.ask(|reply| Command::Anomalies(query, reply)).await?
    }

    /// What containers were seen to call since they are watched.
    pub async fn profiles(
        &self,
        query: SyscallProfileQuery,
    ) -> Result<SyscallProfileResponse, Status> {
        self.task.ask(|reply| Command::Profiles(query, reply)).await?
    }
}

#[tonic::async_trait]
impl Signal for Syscall {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn subscribe(&self, id: SubscriberId, request: &StreamRequest) -> Result<(), Status> {
        let request = request.clone();
        self.task.ask(|reply| Command::Subscribe(id, request, reply)).await?
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
