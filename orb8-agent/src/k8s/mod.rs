//! What Kubernetes calls things: pod UIDs, container ids, QoS classes, and the pod as orb8 keeps it.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, sync::Arc};

pub mod cgroup;
pub mod cgroup_tree;
pub mod pods;

/// The UID of a pod as the kubelet uses it in cgroup names.
///
/// A UUID for every pod that the API server made. Static pods carry the 32-digit hash of their
/// manifest instead; their mirror in the API server has another UID and repeats the hash in an
/// annotation (see [`Pod::config_hash`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid {
    value: u128,
    dashed: bool,
}

/// Where a UUID has its four dashes.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl PodUid {
    /// Parses a UID whose UUID form is separated by `separator`: `-` in cgroupfs names and in the
    /// API, `_` in systemd unit names.
    pub(crate) fn parse_separated(text: &str, separator: u8) -> Option<Self> {
        let bytes = text.as_bytes();
        let dashed = match bytes.len() {
            32 => false,
            36 => true,
            _ => return None,
        };
        let mut value = 0u128;
        for (at, &byte) in bytes.iter().enumerate() {
            if dashed && DASHES.contains(&at) {
                if byte != separator {
                    return None;
                }
                continue;
            }
            value = value << 4 | u128::from(hex_digit(byte)?);
        }
        Some(Self { value, dashed })
    }
}

impl FromStr for PodUid {
    type Err = InvalidPodUid;

    fn from_str(text: &str) -> Result<Self, InvalidPodUid> {
        Self::parse_separated(text, b'-').ok_or_else(|| InvalidPodUid(text.to_owned()))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.value);
        if self.dashed {
            let (a, rest) = hex.split_at(8);
            let (b, rest) = rest.split_at(4);
            let (c, rest) = rest.split_at(4);
            let (d, e) = rest.split_at(4);
            write!(f, "{a}-{b}-{c}-{d}-{e}")
        } else {
            f.write_str(&hex)
        }
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodUid({self})")
    }
}

/// A text that is not a pod UID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a pod UID: expected a UUID such as 8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a, or the \
     32 hexadecimal digits of a static pod"
)]
pub struct InvalidPodUid(String);

/// The id that a container runtime gives a container: 256 bits, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId([u8; 32]);

impl ContainerId {
    /// The first 12 digits, as container tools print ids.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl FromStr for ContainerId {
    type Err = InvalidContainerId;

    fn from_str(text: &str) -> Result<Self, InvalidContainerId> {
        let invalid = || InvalidContainerId(text.to_owned());
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(invalid()) };
        if pairs.len() != 32 {
            return Err(invalid());
        }
        let mut id = [0; 32];
        for (byte, &[high, low]) in id.iter_mut().zip(pairs) {
            let digits = hex_digit(high).zip(hex_digit(low));
            let (high, low) = digits.ok_or_else(invalid)?;
            *byte = high << 4 | low;
        }
        Ok(Self(id))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContainerId({self})")
    }
}

/// A text that is not a container id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a container id: expected 64 hexadecimal digits")]
pub struct InvalidContainerId(String);

/// Lower-case digits only: that is how every runtime and the kubelet write them.
fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pod_uid_is_a_uuid_or_a_config_hash() {
        for good in ["8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a", "0f5d7cbb6ed9ea8e6ba0f1d9d2c8d1ff"] {
            assert_eq!(good.parse::<PodUid>().unwrap().to_string(), good);
        }
        for bad in ["", "pod-1", "8d5f24b5_3f56_4f60_a7a8_0c2f8b5e6f3a", "8D5F24B5-3F56"] {
            assert!(bad.parse::<PodUid>().unwrap_err().to_string().contains("expected a UUID"));
        }
    }

    #[test]
    fn a_uuid_and_the_same_digits_without_dashes_are_two_uids() {
        let uuid: PodUid = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a".parse().unwrap();
        let hash: PodUid = "8d5f24b53f564f60a7a80c2f8b5e6f3a".parse().unwrap();
        assert_ne!(uuid, hash);
    }

    #[test]
    fn a_container_id_has_a_short_form_of_twelve_digits() {
        let id: ContainerId = "0123456789abcdef".repeat(4).parse().unwrap();
        assert_eq!(id.short(), "0123456789ab");
    }

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

    proptest! {
        #[test]
        fn arbitrary_text_never_panics_and_what_parses_prints_the_same(text in ".{0,70}") {
            if let Ok(uid) = text.parse::<PodUid>() {
                prop_assert_eq!(uid.to_string(), text.clone());
            }
            if let Ok(id) = text.parse::<ContainerId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn container_ids_round_trip(text in "[0-9a-f]{64}") {
            prop_assert_eq!(text.parse::<ContainerId>().unwrap().to_string(), text);
        }
    }
}
