//! A kubelet: it runs pods from their specifications, starts containers again, and tells the API how far they are.
//!
//! One thread looks after one pod, as a kubelet's pod worker does. What the API is told is what has happened already:
//! the container runtime's side (cgroups, namespaces, processes) is always ahead of it.

mod requests;
mod state;
mod worker;
mod workload;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::Program;
use crate::node::Node;
use requests::{Request, Requests};
use state::Shown;
pub use state::{ContainerView, Life, PodView, Stage};
use worker::Worker;
pub use workload::Workload;

/// Runs pods on a node.
#[derive(Debug)]
pub struct Kubelet<'a> {
    node: &'a Node,
}

/// A pod that a kubelet looks after. Dropping it kills the pod without grace.
#[derive(Debug)]
pub struct KubeletPod {
    requests: Arc<Requests>,
    shown: Arc<Shown>,
    worker: Option<JoinHandle<()>>,
}

impl<'a> Kubelet<'a> {
    /// The kubelet of this node.
    #[must_use]
    pub fn of(node: &'a Node) -> Self {
        Self { node }
    }

    /// Begins to run a pod, and does not wait for it.
    ///
    /// # Errors
    /// When a container has no program, or a program no container.
    pub fn run(&self, workload: Workload) -> Result<KubeletPod> {
        workload.check()?;
        let (requests, shown) = (Arc::new(Requests::new()?), Arc::new(Shown::default()));
        let worker = Worker::new(self.node.shared(), workload, &requests, &shown);
        let for_worker = Arc::clone(&shown);
        let worker = thread::Builder::new()
            .name("orb8-kubelet".into())
            .spawn(move || for_worker.end(worker.run()))
            .context("cannot start a pod's worker")?;
        Ok(KubeletPod { requests, shown, worker: Some(worker) })
    }
}

impl KubeletPod {
    /// How it is now.
    #[must_use]
    pub fn view(&self) -> PodView {
        self.shown.view()
    }

    /// Waits until it is as wanted.
    ///
    /// # Errors
    /// When it takes longer than `limit`, or the kubelet has failed; the error shows how it is.
    pub fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&PodView) -> bool,
    ) -> Result<PodView> {
        self.shown.wait_until(what, limit, wanted)
    }

    /// Waits until all of its containers have been started.
    ///
    /// # Errors
    /// As [`wait_until`](Self::wait_until).
    pub fn wait_running(&self, limit: Duration) -> Result<PodView> {
        self.wait_until("running", limit, |view| view.stage >= Stage::Running)
    }

    /// Kills a container's process, as a crash does.
    ///
    /// # Errors
    /// When no such container runs.
    pub fn crash(&self, container: &str) -> Result<()> {
        let view = self.view();
        let found = view.containers.iter().find(|found| found.name == container && found.running);
        ensure!(found.is_some(), "no container {container:?} runs in {view:?}");
        self.requests.push(Request::Crash(container.to_owned()))
    }

    /// Starts an ephemeral container, as `kubectl debug` does.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn debug(&self, container: &str, program: Program) -> Result<()> {
        if self.view().stage == Stage::Gone {
            bail!("the pod is gone, expected one that runs");
        }
        self.requests.push(Request::Debug(container.to_owned(), program))
    }

    /// Asks for its end, as somebody who deletes it does: SIGTERM, and SIGKILL after its grace.
    ///
    /// # Errors
    /// When the worker cannot be told.
    pub fn kill(&self) -> Result<()> {
        self.requests.push(Request::Kill { asked: SystemTime::now(), now: false })
    }

    /// Waits until it is gone, and gives what it was.
    ///
    /// # Errors
    /// When it takes longer, or the kubelet has failed.
    pub fn wait_gone(&self, limit: Duration) -> Result<PodView> {
        self.wait_until("gone", limit, |view| view.stage == Stage::Gone)
    }

    /// Whether its worker has nothing more to do.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.worker.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for KubeletPod {
    fn drop(&mut self) {
        let told = self.requests.push(Request::Kill { asked: SystemTime::now(), now: true });
        let Some(worker) = self.worker.take() else { return };
        if told.is_ok() && worker.join().is_err() {
            eprintln!("orb8-testkit: a pod's worker panicked");
        }
    }
}

/// Where a pod is that has no addresses yet.
const NOWHERE: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
