//! How a pod is, as its worker shows it to others.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::NOWHERE;
use crate::identity::Ended;
use crate::process::Outcome;
use crate::{LinkCounters, Summary};

/// How far a pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not all of its containers have been started.
    #[default]
    Pending,
    /// They have.
    Running,
    /// They have ended for good.
    Finished,
    /// It is gone, and everything of it.
    Gone,
}

/// A pod at one moment.
#[derive(Clone, Debug)]
pub struct PodView {
    /// How far it is.
    pub stage: Stage,
    /// As in its cgroups. Empty until it has a sandbox, as all that follows is.
    pub uid: String,
    /// With the node's name behind it, if it is a static pod.
    pub name: String,
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Name of the host side of its veth; empty on the node's network.
    pub veth: String,
    /// Index of that.
    pub ifindex: u32,
    /// Its containers, in the order in which they start.
    pub containers: Vec<ContainerView>,
    /// Instances of containers that have ended.
    pub lives: Vec<Life>,
    /// Its veth's counters after its last container had ended, and before the veth was removed.
    pub last_counters: Option<LinkCounters>,
}

/// A container at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// Container name.
    pub name: String,
    /// Id of its present instance, 64 hexadecimal characters.
    pub id: String,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether it runs.
    pub running: bool,
}

/// One instance of a container, from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Container name.
    pub container: String,
    /// Its id, 64 hexadecimal characters.
    pub id: String,
    /// How long it lived.
    pub lived: Duration,
    /// 128 and the signal's number where a signal ended it.
    pub exit_code: i32,
    /// The last that its program said about itself.
    pub summary: Summary,
    /// What its program wrote to standard error.
    pub complaint: String,
}

impl Default for PodView {
    fn default() -> Self {
        Self {
            stage: Stage::default(),
            uid: String::new(),
            name: String::new(),
            ipv4: NOWHERE.0,
            ipv6: NOWHERE.1,
            veth: String::new(),
            ifindex: 0,
            containers: Vec::new(),
            lives: Vec::new(),
            last_counters: None,
        }
    }
}

impl Life {
    pub(super) fn new(container: &str, id: &str, ended: Ended, outcome: Outcome) -> Self {
        Self {
            container: container.to_owned(),
            id: id.to_owned(),
            lived: ended.finished.duration_since(ended.started).unwrap_or_default(),
            exit_code: ended.exit_code,
            summary: outcome.summary,
            complaint: outcome.complaint,
        }
    }
}

/// The view, and whoever waits for a change of it.
#[derive(Debug, Default)]
pub(super) struct Shown {
    view: Mutex<PodView>,
    failure: Mutex<Option<String>>,
    changed: Condvar,
}

impl Shown {
    pub(super) fn view(&self) -> PodView {
        self.lock().clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut PodView)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// The worker is done, or has failed.
    pub(super) fn end(&self, result: Result<()>) {
        if let Err(error) = result {
            let failure = format!("{error:#}");
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        }
        self.change(|view| view.stage = Stage::Gone);
    }

    pub(super) fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&PodView) -> bool,
    ) -> Result<PodView> {
        let deadline = Instant::now() + limit;
        let mut view = self.lock();
        loop {
            let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(failure) = failure {
                bail!("the kubelet failed: {failure}");
            }
            if wanted(&view) {
                return Ok(view.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("not {what} within {limit:?}: {view:?}");
            }
            let waited = self.changed.wait_timeout(view, left);
            view = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, PodView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
