//! A sandbox with its containers, and what the protocol says of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use orb8_proto::cri;

use crate::random;

/// A sandbox with its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id, usually 64 hexadecimal characters.
    pub id: String,
    /// UID of the pod.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Labels of the pod; those of the kubelet are added.
    pub labels: BTreeMap<String, String>,
    /// Its addresses, the first one first.
    pub ips: Vec<IpAddr>,
    /// Whether it is in the node's network namespace.
    pub host_network: bool,
    /// Whether it runs.
    pub ready: bool,
    /// When it was made.
    pub created: SystemTime,
    /// Its containers.
    pub containers: Vec<SandboxContainer>,
}

/// A container of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxContainer {
    /// Its id, usually 64 hexadecimal characters.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Whether it runs; otherwise it has ended.
    pub running: bool,
    /// When it was made.
    pub created: SystemTime,
}

impl Sandbox {
    /// A running pod without an address, with running containers of these names.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn new(namespace: &str, name: &str, containers: &[&str]) -> Result<Self> {
        let created = SystemTime::now();
        let container = |name: &&str| -> Result<SandboxContainer> {
            let id = random::hex::<32>()?;
            Ok(SandboxContainer { id, name: (*name).to_owned(), running: true, created })
        };
        Ok(Self {
            id: random::hex::<32>()?,
            uid: random::uuid()?,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            ips: Vec::new(),
            host_network: false,
            ready: true,
            created,
            containers: containers.iter().map(container).collect::<Result<_>>()?,
        })
    }

    fn state(&self) -> cri::PodSandboxState {
        match self.ready {
            true => cri::PodSandboxState::SandboxReady,
            false => cri::PodSandboxState::SandboxNotready,
        }
    }

    fn metadata(&self) -> cri::PodSandboxMetadata {
        cri::PodSandboxMetadata {
            name: self.name.clone(),
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            attempt: 0,
        }
    }

    /// As a kubelet sets them.
    fn all_labels(&self) -> std::collections::HashMap<String, String> {
        let kubelets = [
            ("io.kubernetes.pod.name", &self.name),
            ("io.kubernetes.pod.namespace", &self.namespace),
            ("io.kubernetes.pod.uid", &self.uid),
        ];
        let kubelets = kubelets.map(|(name, value)| (name.to_owned(), value.clone()));
        self.labels.clone().into_iter().chain(kubelets).collect()
    }

    pub(super) fn listed(&self) -> cri::PodSandbox {
        cri::PodSandbox {
            id: self.id.clone(),
            metadata: Some(self.metadata()),
            state: self.state().into(),
            created_at: unix_ns(self.created),
            labels: self.all_labels(),
        }
    }

    pub(super) fn status(&self) -> cri::PodSandboxStatus {
        let mut ips = self.ips.iter().map(ToString::to_string);
        let network = match self.host_network {
            true => cri::NamespaceMode::Node,
            false => cri::NamespaceMode::Pod,
        };
        let options = cri::NamespaceOption { network: network.into(), ..Default::default() };
        cri::PodSandboxStatus {
            id: self.id.clone(),
            metadata: Some(self.metadata()),
            state: self.state().into(),
            created_at: unix_ns(self.created),
            network: Some(cri::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
            }),
            linux: Some(cri::LinuxPodSandboxStatus {
                namespaces: Some(cri::Namespace { options: Some(options) }),
            }),
            labels: self.all_labels(),
        }
    }
}

impl SandboxContainer {
    fn state(&self) -> cri::ContainerState {
        match self.running {
            true => cri::ContainerState::ContainerRunning,
            false => cri::ContainerState::ContainerExited,
        }
    }

    fn metadata(&self) -> cri::ContainerMetadata {
        cri::ContainerMetadata { name: self.name.clone(), attempt: 0 }
    }

    pub(super) fn listed(&self, sandbox: &Sandbox) -> cri::Container {
        cri::Container {
            id: self.id.clone(),
            pod_sandbox_id: sandbox.id.clone(),
            metadata: Some(self.metadata()),
            state: self.state().into(),
            created_at: unix_ns(self.created),
        }
    }

    pub(super) fn status(&self) -> cri::ContainerStatus {
        cri::ContainerStatus {
            id: self.id.clone(),
            metadata: Some(self.metadata()),
            state: self.state().into(),
            created_at: unix_ns(self.created),
            finished_at: 0,
        }
    }
}

pub(super) fn unix_ns(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
