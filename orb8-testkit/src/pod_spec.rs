//! How a pod is to be, as a manifest would say it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cgroup::{CgroupDriver, Qos, Runtime};

/// What owns a pod, as its `ownerReferences` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `ReplicaSet`, `DaemonSet`, `StatefulSet`, `Job`, …
    pub kind: String,
    /// Name of the owning object.
    pub name: String,
}

/// Which containers are started again when they have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// All.
    #[default]
    Always,
    /// Those that failed.
    OnFailure,
    /// None.
    Never,
}

impl RestartPolicy {
    /// As the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::OnFailure => "OnFailure",
            Self::Never => "Never",
        }
    }
}

/// How a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Quality of service.
    pub qos: Qos,
    /// Names of the containers, at least one.
    pub containers: Vec<String>,
    /// Names of the init containers, in the order in which they run.
    pub init_containers: Vec<String>,
    /// Those of them that stay: sidecars.
    pub sidecars: Vec<String>,
    /// Which containers a kubelet starts again.
    pub restart_policy: RestartPolicy,
    /// How long its containers may take to end after SIGTERM.
    pub grace: Duration,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Owner; a bare pod has none.
    pub owner: Option<Owner>,
    /// Cgroup driver, when not the node's.
    pub driver: Option<CgroupDriver>,
    /// Container runtime, when not the node's.
    pub runtime: Option<Runtime>,
    /// Its place in the node's network, 2 to 1022: for tests of reused addresses. Otherwise the node chooses.
    pub host_number: Option<u16>,
    /// Name of the host side of its veth: for tests of reused names. Otherwise a random one.
    pub veth: Option<String>,
    /// Whether it comes from a file of the node, so that the API has a mirror of it, with a UID of its own.
    pub static_pod: bool,
    /// Whether it and the node know each other's link-layer addresses from the start, and the bridge keeps from it what
    /// is for everybody, which hundreds of pods would otherwise hear from each other. Other pods cannot reach it then.
    /// The kernel learns at most 1,024 neighbours by itself, in all network namespaces together.
    pub static_neighbours: bool,
    /// Whether its containers share the node's network namespace and addresses; it has no veth then.
    pub host_network: bool,
}

impl PodSpec {
    /// A burstable pod with one container, `app`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            qos: Qos::default(),
            containers: vec!["app".to_owned()],
            init_containers: Vec::new(),
            sidecars: Vec::new(),
            static_pod: false,
            restart_policy: RestartPolicy::default(),
            grace: Duration::from_secs(30),
            labels: BTreeMap::new(),
            owner: None,
            driver: None,
            runtime: None,
            host_number: None,
            veth: None,
            static_neighbours: false,
            host_network: false,
        }
    }

    /// With this quality of service.
    #[must_use]
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// With these containers instead of `app`.
    #[must_use]
    pub fn containers(mut self, names: &[&str]) -> Self {
        self.containers = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// With one more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With an owner.
    #[must_use]
    pub fn owner(mut self, kind: &str, name: &str) -> Self {
        self.owner = Some(Owner { kind: kind.to_owned(), name: name.to_owned() });
        self
    }

    /// On the node's own network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// With cgroups in this form.
    #[must_use]
    pub fn driver(mut self, driver: CgroupDriver) -> Self {
        self.driver = Some(driver);
        self
    }

    /// With container directories named by this runtime.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = Some(runtime);
        self
    }
}
