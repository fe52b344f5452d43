//! How others speak to the task of a slice, which has a thread of its own because what it reads
//! blocks, and the API must not wait for that.

use std::{future::Future, io};

use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::tasks::on_thread;

/// Commands that wait for the task.
const QUEUE: usize = 64;

/// Why a slice's task did not start.
#[derive(Debug, thiserror::Error)]
#[error("the task of the {signal} signal: {error}")]
pub struct TaskError {
    signal: &'static str,
    error: io::Error,
}

/// Sends a task commands `C`. Clones speak to the same task; it ends when it is told to, or with the
/// last of them.
#[derive(Debug)]
pub(super) struct TaskHandle<C> {
    signal: &'static str,
    commands: mpsc::Sender<C>,
}

impl<C> Clone for TaskHandle<C> {
    fn clone(&self) -> Self {
        Self { signal: self.signal, commands: self.commands.clone() }
    }
}

impl<C: Send + 'static> TaskHandle<C> {
    /// Starts the task, which says when it is ready, or why it never will be.
    pub(super) async fn start<E, F>(
        signal: &'static str,
        run: impl FnOnce(mpsc::Receiver<C>, oneshot::Sender<Result<(), E>>) -> F + Send + 'static,
    ) -> Result<Self, E>
    where
        E: From<TaskError> + Send + 'static,
        F: Future<Output = ()>,
    {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (ready, started) = oneshot::channel();
        on_thread(&format!("orb8-{signal}"), move || run(inbox, ready))
            .map_err(|error| TaskError { signal, error })?;
        let ended = |_| TaskError { signal, error: io::Error::other("ended while it started") };
        started.await.map_err(ended)??;
        Ok(Self { signal, commands })
    }

    /// Gives the task a command, and its answer back.
    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> C,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let stopped = || Status::unavailable(format!("the {} signal has stopped", self.signal));
        self.commands.send(command(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}
