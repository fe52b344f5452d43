//! The thread that looks after one pod.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::requests::{Request, Requests};
use super::state::{ContainerView, Life, Shown, Stage};
use super::workload::Workload;
use crate::identity::{Container, ContainerKind, ContainerState};
use crate::lines::any_readable;
use crate::node::Shared;
use crate::pod::Pod;
use crate::pod_object::Phase;
use crate::{Process, RestartPolicy};

/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

pub(super) struct Worker {
    node: Arc<Shared>,
    workload: Workload,
    requests: Arc<Requests>,
    shown: Arc<Shown>,
}

/// A worker whose pod has a sandbox.
struct Running {
    pod: Pod,
    workload: Workload,
    requests: Arc<Requests>,
    shown: Arc<Shown>,
    /// By their containers' places.
    processes: BTreeMap<usize, (Process, OwnedFd)>,
    ended_at: BTreeMap<usize, Instant>,
    lives: Vec<Life>,
    /// Something has happened that nobody was told of.
    untold: bool,
}

impl Worker {
    pub(super) fn new(
        node: Arc<Shared>,
        workload: Workload,
        requests: &Arc<Requests>,
        shown: &Arc<Shown>,
    ) -> Self {
        Self { node, workload, requests: Arc::clone(requests), shown: Arc::clone(shown) }
    }

    /// Runs the pod to its end.
    pub(super) fn run(self) -> Result<()> {
        let pod = Pod::sandbox(self.node, self.workload.spec.clone())?;
        let mut running = Running {
            pod,
            workload: self.workload,
            requests: self.requests,
            shown: self.shown,
            processes: BTreeMap::new(),
            ended_at: BTreeMap::new(),
            lives: Vec::new(),
            untold: true,
        };
        loop {
            running.reap()?;
            if let Some((asked, grace)) = running.heed()? {
                return running.terminate(asked, grace);
            }
            while let Some(at) = running.due() {
                running.start(at)?;
            }
            running.tell()?;
            if running.is_finished() {
                running.stop(running.pod.identity().spec.grace)?;
                running.tell()?;
                if running.workload.deleted_when_done {
                    return running.terminate(SystemTime::now(), Duration::ZERO);
                }
            }
            running.wait()?;
        }
    }
}

impl Running {
    /// Notes whoever has ended.
    fn reap(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        for (at, (_, pidfd)) in &self.processes {
            if any_readable(&[pidfd.as_fd()], Some(Instant::now()))? {
                ended.push(*at);
            }
        }
        ended.into_iter().try_for_each(|at| self.bury(at))
    }

    /// Removes what is left of a container whose process has ended.
    fn bury(&mut self, at: usize) -> Result<()> {
        let Some((mut process, _)) = self.processes.remove(&at) else { return Ok(()) };
        let outcome = process.outcome()?;
        self.pod.end(at, outcome.exit_code)?;
        let container = &self.pod.identity().containers[at];
        let ended = container.ended().context("it has not ended")?;
        self.lives.push(Life::new(&container.name, &container.id, ended, outcome));
        self.ended_at.insert(at, Instant::now());
        self.untold = true;
        Ok(())
    }

    /// Does what it is asked. Gives when it was asked to go, and how long that may take.
    fn heed(&mut self) -> Result<Option<(SystemTime, Duration)>> {
        for request in self.requests.take() {
            match request {
                Request::Kill { asked, now } => {
                    let grace = self.workload.spec.grace;
                    return Ok(Some((asked, if now { Duration::ZERO } else { grace })));
                }
                Request::Debug(name, program) => {
                    let mut added = Ok(());
                    self.pod.change(|pod| added = pod.add(&name, ContainerKind::Ephemeral));
                    added?;
                    self.workload.programs.insert(name, program);
                }
                Request::Crash(name) => {
                    let containers = self.pod.identity().containers.iter();
                    let at = containers.enumerate().find(|(_, found)| found.name == name);
                    // It may have ended by itself meanwhile.
                    if let Some((process, _)) = at.and_then(|(at, _)| self.processes.get_mut(&at)) {
                        process.signal(Signal::KILL)?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// The place of the container that is to be started now.
    fn due(&self) -> Option<usize> {
        for (at, container) in self.pod.identity().containers.iter().enumerate() {
            match container.state {
                ContainerState::Waiting => return Some(at),
                ContainerState::Ended(_) if self.restarts(container) => {
                    let backoff = self.workload.backoff;
                    let rested = self.ended_at.get(&at).is_none_or(|end| end.elapsed() >= backoff);
                    match container.kind {
                        _ if rested => return Some(at),
                        ContainerKind::Init => return None,
                        _ => {}
                    }
                }
                ContainerState::Ended(end) if end.exit_code != 0 => {
                    if container.kind == ContainerKind::Init {
                        return None;
                    }
                }
                // The next one waits for its end.
                ContainerState::Running { .. } if container.kind == ContainerKind::Init => {
                    return None;
                }
                ContainerState::Ended(_) | ContainerState::Running { .. } => {}
            }
        }
        None
    }

    /// Whether a container that has ended is started again.
    fn restarts(&self, container: &Container) -> bool {
        let failed = container.ended().is_some_and(|end| end.exit_code != 0);
        let policy = self.workload.spec.restart_policy;
        match container.kind {
            ContainerKind::Sidecar => !self.is_finished(),
            ContainerKind::Ephemeral => false,
            ContainerKind::Init => failed && policy != RestartPolicy::Never,
            ContainerKind::App => match policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => failed,
                RestartPolicy::Never => false,
            },
        }
    }

    /// Whether its containers have ended for good, or one that the others wait for has.
    fn is_finished(&self) -> bool {
        let containers = &self.pod.identity().containers;
        let of_kind = |kind| containers.iter().filter(move |container| container.kind == kind);
        let is_over =
            |container: &Container| container.ended().is_some() && !self.restarts(container);
        let is_hopeless = |container: &Container| {
            is_over(container) && container.ended().is_some_and(|end| end.exit_code != 0)
        };
        of_kind(ContainerKind::App).all(is_over) || of_kind(ContainerKind::Init).any(is_hopeless)
    }

    fn start(&mut self, at: usize) -> Result<()> {
        self.pod.begin(at)?;
        self.ended_at.remove(&at);
        let name = self.pod.identity().containers[at].name.clone();
        let program = self.workload.programs.get(&name).context("a container without a program")?;
        let process = self.pod.spawn(&name, program)?;
        let pid = Pid::from_raw(i32::try_from(process.pid())?).context("process 0")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        self.processes.insert(at, (process, pidfd));
        self.untold = true;
        // Others see it while the next one is being started.
        self.show(self.stage());
        Ok(())
    }

    /// Tells the API and whoever looks.
    fn tell(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.untold) {
            return Ok(());
        }
        let stage = self.stage();
        self.pod.report(match stage {
            Stage::Pending => Phase::Pending,
            Stage::Running => Phase::Running,
            Stage::Finished | Stage::Gone => Phase::Finished,
        })?;
        self.show(stage);
        Ok(())
    }

    fn stage(&self) -> Stage {
        let containers = &self.pod.identity().containers;
        if self.is_finished() {
            Stage::Finished
        } else if containers.iter().any(|container| container.state == ContainerState::Waiting) {
            Stage::Pending
        } else {
            Stage::Running
        }
    }

    fn show(&self, stage: Stage) {
        let identity = self.pod.identity();
        self.shown.change(|view| {
            view.stage = stage;
            view.uid.clone_from(&identity.uid);
            view.name.clone_from(&identity.spec.name);
            (view.ipv4, view.ipv6) = (identity.ipv4, identity.ipv6);
            self.pod.veth().clone_into(&mut view.veth);
            view.ifindex = self.pod.ifindex();
            let containers = identity.containers.iter().map(|container| ContainerView {
                name: container.name.clone(),
                id: container.id.clone(),
                restarts: container.restarts,
                running: container.is_running(),
            });
            view.containers = containers.collect();
            view.lives.clone_from(&self.lives);
        });
    }

    /// Until a process ends, something is asked, or a container has rested.
    fn wait(&self) -> Result<()> {
        let mut fds = vec![self.requests.bell()];
        fds.extend(self.processes.values().map(|(_, pidfd)| pidfd.as_fd()));
        let containers = &self.pod.identity().containers;
        let resting = self.ended_at.iter().filter(|(at, _)| self.restarts(&containers[**at]));
        let until = resting.map(|(_, end)| *end + self.workload.backoff).min();
        any_readable(&fds, until).map(drop)
    }

    /// Ends its processes: SIGTERM, and SIGKILL after the grace.
    fn stop(&mut self, grace: Duration) -> Result<()> {
        let signals = [(Signal::TERM, grace), (Signal::KILL, KILL_LIMIT)];
        for (signal, limit) in signals {
            if limit.is_zero() {
                continue;
            }
            for (process, _) in self.processes.values_mut() {
                process.signal(signal)?;
            }
            let deadline = Instant::now() + limit;
            while !self.processes.is_empty() && Instant::now() < deadline {
                let fds: Vec<_> = self.processes.values().map(|(_, pidfd)| pidfd.as_fd()).collect();
                any_readable(&fds, Some(deadline))?;
                self.reap()?;
            }
        }
        Ok(())
    }

    fn terminate(mut self, asked: SystemTime, grace: Duration) -> Result<()> {
        self.pod.report(Phase::Terminating { asked })?;
        self.stop(grace)?;
        let counters = match self.pod.veth() {
            "" => None,
            _ => Some(self.pod.link_counters()?),
        };
        self.pod.take_apart(asked)?;
        self.shown.change(|view| view.last_counters = counters);
        self.show(Stage::Gone);
        Ok(())
    }
}
