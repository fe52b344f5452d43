//! orb8's eBPF probes: the compiled objects, and the parts of them that can be tested on the host.
//!
//! The kernel side is the files beside this one, compiled by `build.rs` for the BPF target.

pub mod btf;
pub mod network;
mod objects;
pub mod tracepoint;

pub use objects::{
    CGROUP_MEMBERS, CGROUP_PROBE, Missing, NETWORK_PROBE, SYSCALL_MEMBERS, SYSCALL_PROBE,
};
