//! What a node has of Kubernetes: cgroups of pods, their births, and the container runtime.

pub mod births;
pub mod cgroup;
pub mod cgroup_tree;
pub mod cgroups;
pub mod pod_metadata;
pub mod runtime;
pub mod second_opinion;
pub mod unit;
