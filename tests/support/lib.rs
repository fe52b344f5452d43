//! What the end-to-end tests share: agents on a node of the testkit, asked over the protocol that
//! everybody uses.

mod agent_container;
mod agent_process;
mod classifier;
mod client;
mod containerd;
mod heard;
pub mod hooks;
mod image;
pub mod manifests;
mod scene;
mod traced;

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use orb8_testkit::Pod;

pub use agent_container::{AgentContainer, SERVICE_ACCOUNT_TOKEN};
pub use agent_process::{AgentProcess, binary};
pub use classifier::{Classifier, DROPPER, Place};
pub use client::Client;
pub use containerd::{Containerd, OldGroups, RealPod};
pub use heard::{Heard, Quiet, Sum, Trace};
pub use scene::Scene;
pub use traced::Traced;

/// Fails with the numbers unless the agent and the kernel agree on `interface`.
pub fn assert_exact(now: &Quiet) -> Result<()> {
    let ours = (now.ingress_packets, now.ingress_bytes, now.egress_packets, now.egress_bytes);
    let kernel = (
        now.kernel_ingress_packets,
        now.kernel_ingress_bytes,
        now.kernel_egress_packets,
        now.kernel_egress_bytes,
    );
    ensure!(
        ours == kernel,
        "{}: orb8 {ours:?}, kernel {kernel:?} (ingress packets, bytes, egress packets, bytes)",
        now.name
    );
    Ok(())
}

/// The `orb8` that was built: beside the running test, or one directory above.
pub fn command_line() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let mut places = exe.ancestors().skip(1).take(2).map(|dir| dir.join("orb8"));
    places.find(|path| path.is_file()).context("no orb8: build it with `cargo build --bins`")
}

/// The address of a server in `pod`, IPv4 or IPv6.
#[must_use]
pub fn address(pod: &Pod, ipv6: bool, port: u16) -> SocketAddr {
    if ipv6 { (pod.ipv6(), port).into() } else { (pod.ipv4(), port).into() }
}
