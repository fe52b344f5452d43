//! What Kubernetes calls things, and the pod as orb8 keeps it.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, sync::Arc};

pub mod cgroup;
pub mod cgroup_tree;
mod ids;
mod manifest;
pub mod pods;

pub use ids::{ContainerId, InvalidContainerId, InvalidPodUid, PodUid};

/// The quality-of-service class of a pod. It decides where the kubelet puts the pod's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Qos {
    /// Every container has limits equal to its requests.
    Guaranteed,
    /// Some container has a request or a limit.
    Burstable,
    /// No container has any.
    BestEffort,
}

impl Qos {
    /// The name in the Kubernetes API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

impl fmt::Display for Qos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Qos {
    type Err = InvalidQos;

    fn from_str(text: &str) -> Result<Self, InvalidQos> {
        match text {
            "Guaranteed" => Ok(Self::Guaranteed),
            "Burstable" => Ok(Self::Burstable),
            "BestEffort" => Ok(Self::BestEffort),
            _ => Err(InvalidQos(text.to_owned())),
        }
    }
}

/// A text that is not a QoS class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a QoS class: expected Guaranteed, Burstable or BestEffort")]
pub struct InvalidQos(String);

/// The container runtime that named a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// containerd, by its CRI plugin.
    Containerd,
    /// CRI-O.
    CriO,
    /// Docker Engine.
    Docker,
    /// Podman.
    Podman,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Docker => "docker",
            Self::Podman => "podman",
        })
    }
}

/// A pod, trimmed to what orb8 needs to name traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`.
    pub uid: PodUid,
    /// The UID by which the kubelet knows a static pod, where this is its mirror.
    pub config_hash: Option<PodUid>,
    /// `spec.nodeName`; empty while the pod is not scheduled.
    pub node: Arc<str>,
    /// The pod lives in the node's network namespace, so its addresses are the node's.
    pub host_network: bool,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// `status.phase` is Succeeded or Failed: its addresses may already belong to another pod.
    pub finished: bool,
    /// `status.qosClass`.
    pub qos: Option<Qos>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// The owner that manages the pod.
    pub owner: Option<Owner>,
    /// Containers of every kind (init, regular, ephemeral) that have an id.
    pub containers: Vec<Container>,
}

impl Pod {
    /// What the pod's owner is for a person: `Deployment/web` rather than `ReplicaSet/web-5d9c7`.
    #[must_use]
    pub fn workload(&self) -> Option<String> {
        let Owner { kind, name } = self.owner.as_ref()?;
        // A Deployment names its ReplicaSets after the hash that it also puts on their pods.
        if &**kind == "ReplicaSet"
            && let Some(hash) = self.labels.get("pod-template-hash")
            && let Some(deployment) =
                name.strip_suffix(hash.as_str()).and_then(|rest| rest.strip_suffix('-'))
        {
            return Some(format!("Deployment/{deployment}"));
        }
        Some(format!("{kind}/{name}"))
    }
}

/// An entry of `metadata.ownerReferences`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// For example `ReplicaSet`.
    pub kind: Arc<str>,
    /// Its name in the pod's namespace.
    pub name: Arc<str>,
}

/// A container that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name in the pod.
    pub name: Arc<str>,
    /// The runtime's id.
    pub id: ContainerId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_of_a_deployment_pod_is_the_deployment() {
        let mut pod = Pod {
            namespace: "shop".into(),
            name: "web-5d9c7bb4f8-x2x7k".into(),
            uid: "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a".parse().unwrap(),
            config_hash: None,
            node: "".into(),
            host_network: false,
            ips: vec![],
            finished: false,
            qos: None,
            labels: BTreeMap::new(),
            owner: Some(Owner { kind: "ReplicaSet".into(), name: "web-5d9c7bb4f8".into() }),
            containers: vec![],
        };
        assert_eq!(pod.workload().unwrap(), "ReplicaSet/web-5d9c7bb4f8");
        pod.labels.insert("pod-template-hash".into(), "5d9c7bb4f8".into());
        assert_eq!(pod.workload().unwrap(), "Deployment/web");
    }
}
