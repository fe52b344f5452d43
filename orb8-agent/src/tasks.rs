//! Named tasks that end together: told by one token, waited for until one deadline. And threads for
//! work that blocks.

use std::{
    collections::BTreeSet,
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The running tasks of an agent.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    running: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Tasks {
    /// Tells tasks to end.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs `task` until it ends by itself; it watches [`Tasks::token`].
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let running = Arc::clone(&self.running);
        running.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        self.tracker.spawn(async move {
            task.await;
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        });
    }

    /// Tells every task to end and waits; the names of those that did not in time are the answer.
    pub async fn drain(&self, deadline: Duration) -> Vec<&'static str> {
        self.token.cancel();
        self.tracker.close();
        let _late = tokio::time::timeout(deadline, self.tracker.wait()).await;
        self.running.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Runs what `work` gives on a thread of its own, until it ends by itself: what blocks there holds up
/// nobody else. The thread is in the network namespace of the one that starts it.
pub fn on_thread<F: Future<Output = ()>>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name(name.into());
    // Called within the runtime, so that it may open what needs one.
    thread.spawn(move || runtime.block_on(async { work().await }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_does_not_end_is_named_and_does_not_hold_up_the_others() {
        let tasks = Tasks::default();
        let token = tasks.token();
        tasks.spawn("obedient", async move { token.cancelled().await });
        tasks.spawn("stuck", std::future::pending());
        assert_eq!(tasks.drain(Duration::from_millis(50)).await, ["stuck"]);
    }
}
