//! A Kubernetes node made of network namespaces, veths and cgroups: what tests, the demo and the benches run against.
//!
//! Everything in it is the kernel's own: [`Node`] is a network namespace with a bridge, a [`Pod`] is another one behind
//! a veth pair whose processes sit in the cgroups that a kubelet would have made. What runs in a pod is the
//! `orb8-testpod` binary, performing one [`Program`].
//!
//! Namespaces have no name: each is held by one process that dies with this one, so that even `kill -9` leaves no
//! namespace and no veth. Cgroup directories are the only thing that outlives a killed owner, and the next
//! [`Node::start`] removes them.
//!
//! Interface counters are left noisy on purpose (ARP, neighbour discovery, MLD): a real node has them too, and what
//! counts packets has to count these.
//!
//! Needs root, Linux with cgroup v2 mounted, and `ip` of iproute2.

mod binary;
mod cgroup;
pub mod cri_server;
mod docker_server;
mod identity;
pub mod known_calls;
pub mod kube_api;
pub mod kubelet;
mod lines;
mod link;
mod netns;
mod node;
pub mod pki;
mod pod;
mod pod_object;
mod pod_spec;
mod process;
pub mod program;
mod random;
mod route;
mod sim_agent;
mod spawner;
mod unix_server;

pub use binary::testpod_path;
pub use cgroup::{CgroupDriver, Qos, Runtime};
pub use cri_server::CriServer;
pub use docker_server::{DockerContainer, DockerServer};
pub use kube_api::KubeApi;
pub use kubelet::{Kubelet, KubeletPod, Workload};
pub use link::{LinkCounters, Veth};
pub use netns::Netns;
pub use node::{Node, NodeOptions};
pub use pod::Pod;
pub use pod_spec::{Owner, PodSpec, RestartPolicy};
pub use process::Process;
pub use program::{Program, Summary};
pub use sim_agent::{SimAgent, SimFaults, SimNode};
