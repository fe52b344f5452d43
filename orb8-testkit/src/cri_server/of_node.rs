//! The pods of a node as its container runtime knows them.

use std::net::IpAddr;

use super::sandbox::{Sandbox, SandboxContainer};
use super::state::State;
use crate::identity::{Container, ContainerState, Identity};
use crate::pod_object::Phase;

impl State {
    /// Learns how far a pod has come.
    pub(crate) fn report(&self, pod: &Identity, phase: Phase) {
        match phase {
            // A runtime lists a sandbox when it has its network.
            Phase::Pending if pod.containers.iter().all(is_waiting) => {}
            Phase::Pending | Phase::Running | Phase::Finished | Phase::Terminating { .. } => {
                self.put(sandbox(pod, true));
            }
            Phase::Ended { .. } => self.put(sandbox(pod, false)),
        }
    }

    /// Learns that a pod is gone.
    pub(crate) fn report_gone(&self, pod: &Identity) {
        self.remove(&pod.sandbox.id);
    }
}

fn is_waiting(container: &Container) -> bool {
    container.state == ContainerState::Waiting
}

fn sandbox(pod: &Identity, ready: bool) -> Sandbox {
    let begun = pod.containers.iter().filter(|container| !is_waiting(container));
    let containers = begun.flat_map(|container| {
        let present = SandboxContainer {
            id: container.id.clone(),
            name: container.name.clone(),
            running: container.is_running(),
            created: container.started().unwrap_or(pod.started),
        };
        // A kubelet keeps the instance before this one.
        let last = container.last.as_ref().map(|(id, ended)| SandboxContainer {
            id: id.clone(),
            name: container.name.clone(),
            running: false,
            created: ended.started,
        });
        last.into_iter().chain([present])
    });
    Sandbox {
        id: pod.sandbox.id.clone(),
        uid: pod.uid.clone(),
        namespace: pod.spec.namespace.clone(),
        name: pod.spec.name.clone(),
        labels: pod.spec.labels.clone(),
        ips: vec![IpAddr::V4(pod.ipv4), IpAddr::V6(pod.ipv6)],
        host_network: pod.spec.host_network,
        ready,
        created: pod.started,
        containers: containers.collect(),
    }
}
