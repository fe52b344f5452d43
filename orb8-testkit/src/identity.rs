//! Who a pod is, and how far each of its containers has come: a snapshot, which a change replaces.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Result;

use crate::cgroup::{Layout, Runtime};
use crate::node::{NODE_NUMBER, Shared};
use crate::pod_spec::PodSpec;
use crate::random;

/// All that is to be said of a pod, but for its phase.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) spec: PodSpec,
    /// As in its cgroups: for a static pod the hash of its configuration.
    pub(crate) uid: String,
    /// What the API calls a static pod.
    pub(crate) mirror_uid: Option<String>,
    pub(crate) owner_uid: String,
    pub(crate) layout: Layout,
    /// Its place in the node's network; none on the node's own.
    pub(crate) host_number: Option<u16>,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
    pub(crate) started: SystemTime,
    pub(crate) sandbox: Container,
    /// In the order in which they start.
    pub(crate) containers: Vec<Container>,
    /// The pod's cgroup, absolute.
    pub(crate) dir: PathBuf,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerKind {
    /// Ends before the next one starts.
    Init,
    /// Starts among those, and stays.
    Sidecar,
    App,
    /// Came later, to look at the others.
    Ephemeral,
}

/// A container, with its present instance.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) kind: ContainerKind,
    /// Of this instance: another one after every restart.
    pub(crate) id: String,
    /// Absolute path of the directory that holds its processes.
    pub(crate) dir: PathBuf,
    pub(crate) state: ContainerState,
    pub(crate) restarts: u32,
    /// The instance before this one.
    pub(crate) last: Option<(String, Ended)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// Not started yet.
    Waiting,
    Running {
        since: SystemTime,
    },
    Ended(Ended),
}

/// How an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) started: SystemTime,
    pub(crate) finished: SystemTime,
    /// 128 and the signal's number where a signal ended it.
    pub(crate) exit_code: i32,
}

impl Identity {
    pub(crate) fn new(node: &Shared, mut spec: PodSpec, host_number: Option<u16>) -> Result<Self> {
        let layout = Layout {
            driver: spec.driver.unwrap_or(node.layout.driver),
            runtime: spec.runtime.unwrap_or(node.layout.runtime),
            root: node.layout.root.clone(),
        };
        let (uid, mirror_uid) = match spec.static_pod {
            true => (random::hex::<16>()?, Some(random::uuid()?)),
            false => (random::uuid()?, None),
        };
        if spec.static_pod {
            spec.name = format!("{}-{}", spec.name, node.name());
        }
        let dir = node.cgroup.join(layout.pod(spec.qos, &uid));
        let mut identity = Self {
            sandbox: Container::new(&layout, &dir, "POD", ContainerKind::App)?,
            containers: Vec::new(),
            owner_uid: random::uuid()?,
            layout,
            host_number,
            ipv4: node.ipv4(host_number.unwrap_or(NODE_NUMBER)),
            ipv6: node.ipv6(host_number.unwrap_or(NODE_NUMBER)),
            started: SystemTime::now(),
            dir,
            uid,
            mirror_uid,
            spec,
        };
        let spec = identity.spec.clone();
        for name in &spec.init_containers {
            let kind = match spec.sidecars.contains(name) {
                true => ContainerKind::Sidecar,
                false => ContainerKind::Init,
            };
            identity.add(name, kind)?;
        }
        for name in &spec.containers {
            identity.add(name, ContainerKind::App)?;
        }
        Ok(identity)
    }

    /// Adds a container that waits to be started.
    pub(crate) fn add(&mut self, name: &str, kind: ContainerKind) -> Result<()> {
        self.containers.push(Container::new(&self.layout, &self.dir, name, kind)?);
        Ok(())
    }

    /// Gives the container that is at this place another id and directory.
    pub(crate) fn renew(&mut self, at: usize) -> Result<()> {
        let old = &self.containers[at];
        let mut new = Container::new(&self.layout, &self.dir, &old.name, old.kind)?;
        new.restarts = old.restarts + 1;
        if let ContainerState::Ended(ended) = old.state {
            new.last = Some((old.id.clone(), ended));
        }
        self.containers[at] = new;
        Ok(())
    }

    pub(crate) fn runtime(&self) -> Runtime {
        self.layout.runtime
    }
}

impl Container {
    fn new(
        layout: &Layout,
        pod: &std::path::Path,
        name: &str,
        kind: ContainerKind,
    ) -> Result<Self> {
        let id = random::hex::<32>()?;
        Ok(Self {
            name: name.to_owned(),
            kind,
            dir: pod.join(layout.container(&id)),
            id,
            state: ContainerState::Waiting,
            restarts: 0,
            last: None,
        })
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Ended> {
        match self.state {
            ContainerState::Ended(ended) => Some(ended),
            ContainerState::Waiting | ContainerState::Running { .. } => None,
        }
    }

    /// When this instance began.
    pub(crate) fn started(&self) -> Option<SystemTime> {
        match self.state {
            ContainerState::Waiting => None,
            ContainerState::Running { since } => Some(since),
            ContainerState::Ended(ended) => Some(ended.started),
        }
    }

    /// It runs from now on.
    pub(crate) fn begin(&mut self) {
        self.state = ContainerState::Running { since: SystemTime::now() };
    }

    /// It ran until now; nothing happens when it did not run.
    pub(crate) fn end(&mut self, exit_code: i32) {
        if let ContainerState::Running { since } = self.state {
            let finished = SystemTime::now();
            self.state = ContainerState::Ended(Ended { started: since, finished, exit_code });
        }
    }
}
