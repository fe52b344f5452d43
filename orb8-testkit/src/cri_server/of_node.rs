//! The pods of a node as its container runtime knows them.

use std::net::IpAddr;

use super::sandbox::{Sandbox, SandboxContainer};
use super::state::State;
use crate::pod::Identity;
use crate::pod_object::Phase;

impl State {
    /// Learns how far a pod has come.
    pub(crate) fn report(&self, pod: &Identity, phase: Phase) {
        match phase {
            // A runtime lists a sandbox when it has its network.
            Phase::Pending => {}
            Phase::Running | Phase::Terminating { .. } => self.put(sandbox(pod, true)),
            Phase::Ended { .. } => self.put(sandbox(pod, false)),
        }
    }

    /// Learns that a pod is gone.
    pub(crate) fn report_gone(&self, pod: &Identity) {
        self.remove(&pod.sandbox.id);
    }
}

fn sandbox(pod: &Identity, runs: bool) -> Sandbox {
    let containers = pod.containers.iter().map(|container| SandboxContainer {
        id: container.id.clone(),
        name: container.name.clone(),
        running: runs,
        created: pod.started,
    });
    Sandbox {
        id: pod.sandbox.id.clone(),
        uid: pod.uid.clone(),
        namespace: pod.spec.namespace.clone(),
        name: pod.spec.name.clone(),
        labels: pod.spec.labels.clone(),
        ips: vec![IpAddr::V4(pod.ipv4), IpAddr::V6(pod.ipv6)],
        host_network: pod.spec.host_network,
        ready: runs,
        created: pod.started,
        containers: containers.collect(),
    }
}
