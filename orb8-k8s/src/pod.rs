//! A pod, as orb8 keeps it.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use crate::{ContainerId, Labels, PodUid};

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
    /// `metadata.deletionTimestamp` is there: it was told to end.
    pub ending: bool,
    /// `status.qosClass`.
    pub qos: Option<Qos>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The owner that manages the pod.
    pub owner: Option<Owner>,
    /// Containers of every kind (init, sidecar, regular, ephemeral) that have an id. One that was
    /// restarted is here under its last id too.
    pub containers: Vec<Container>,
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
    /// Its image, `name@digest` as far as the source knows them; empty where it does not.
    pub image: Arc<str>,
}
