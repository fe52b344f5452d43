//! Asking for pods, whoever knows them.

use std::{net::IpAddr, sync::Arc};

use orb8_proto::PodSource;

use crate::{ContainerId, Pod, PodUid};

/// A source of pod names: the Kubernetes API, or a static list.
///
/// Pods that are gone still answer for a while, because records of them come late.
pub trait PodLookup: Send + Sync {
    /// The pod with this UID, or the mirror of the static pod with this hash. UIDs are never used
    /// again, so no time is asked for.
    fn by_uid(&self, uid: &PodUid) -> Option<Arc<Pod>>;
    /// The pod that runs this container, or ran it, and the container's name. Ids are never used
    /// again either.
    fn by_container(&self, id: &ContainerId) -> Option<(Arc<Pod>, Arc<str>)>;
    /// The one pod that owned this address at that time (Unix time in nanoseconds), if that is
    /// beyond doubt. Never a pod in the node's network namespace.
    fn by_ip(&self, ip: IpAddr, at_unix_ns: i64) -> Option<Arc<Pod>>;
    /// Changes whenever an answer may have changed, except that something was forgotten.
    fn generation(&self) -> u64;
    /// Every namespace that has a pod, sorted.
    fn namespaces(&self) -> Vec<Arc<str>>;
    /// Every pod.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// Where the names come from, and how current they are.
    fn source(&self) -> PodSource;
    /// The container runtime among the sources, if it is one.
    fn runtime_source(&self) -> Option<PodSource> {
        None
    }
}
