//! Two sources of names as one: Kubernetes, or a list, and the container runtime for what it does
//! not know (yet).

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use orb8_k8s::PodLookup;
use orb8_proto::PodSource;

use super::runtime::RuntimePods;
use orb8_k8s::{ContainerId, Pod, PodUid};

/// Asks the first, and the container runtime where the first does not know.
pub struct SecondOpinion {
    first: Arc<dyn PodLookup>,
    runtime: Arc<RuntimePods>,
}

impl SecondOpinion {
    /// `first` knows more about a pod (its owner, its class), `runtime` knows it earlier.
    #[must_use]
    pub fn new(first: Arc<dyn PodLookup>, runtime: Arc<RuntimePods>) -> Self {
        Self { first, runtime }
    }

    /// Pods that the two call by different names; both belong to a cluster that is in order.
    fn disagreements(&self) -> Vec<(Arc<Pod>, Arc<Pod>)> {
        let same =
            |one: &Pod, other: &Pod| (&one.namespace, &one.name) == (&other.namespace, &other.name);
        let others = self.runtime.pods().into_iter().filter_map(|pod| {
            let by_container = |id| self.first.by_container(id).map(|(pod, _)| pod);
            let by_uid = std::iter::once_with(|| self.first.by_uid(&pod.uid));
            let by_ids = pod.containers.iter().map(|container| by_container(&container.id));
            let other = by_uid.chain(by_ids).flatten().find(|other| !same(other, &pod))?;
            Some((other, pod))
        });
        others.collect()
    }
}

impl PodLookup for SecondOpinion {
    fn by_uid(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.first.by_uid(uid).or_else(|| self.runtime.by_uid(uid))
    }

    fn by_container(&self, id: &ContainerId) -> Option<(Arc<Pod>, Arc<str>)> {
        self.first.by_container(id).or_else(|| {
            let (pod, name) = self.runtime.by_container(id)?;
            // The kubelet tells of a pod before it tells of its containers.
            Some((self.first.by_uid(&pod.uid).unwrap_or(pod), name))
        })
    }

    /// Where the first knows a pod and does not say that it has the address, it doubts it for a
    /// reason.
    fn by_ip(&self, ip: IpAddr, at_unix_ns: i64) -> Option<Arc<Pod>> {
        self.first.by_ip(ip, at_unix_ns).or_else(|| {
            let found = self.runtime.by_ip(ip, at_unix_ns)?;
            self.first.by_uid(&found.uid).is_none().then_some(found)
        })
    }

    /// Both only grow, so that their sum does.
    fn generation(&self) -> u64 {
        self.first.generation().wrapping_add(self.runtime.generation())
    }

    fn namespaces(&self) -> Vec<Arc<str>> {
        let names = self.first.namespaces().into_iter().chain(self.runtime.namespaces());
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.first.pods();
        let mut others = self.runtime.pods();
        others.retain(|pod| self.first.by_uid(&pod.uid).is_none());
        pods.append(&mut others);
        pods
    }

    fn source(&self) -> PodSource {
        let mut source = self.first.source();
        let others = self.disagreements();
        if let Some((one, other)) = others.first() {
            let separator = if source.reason.is_empty() { "" } else { "; " };
            source.reason += &format!(
                "{separator}{} pods have another name in the container runtime, such as {}/{}, \
                 which is {}/{} there",
                others.len(),
                one.namespace,
                one.name,
                other.namespace,
                other.name
            );
        }
        source
    }

    fn runtime_source(&self) -> Option<PodSource> {
        self.runtime.runtime_source()
    }
}
