//! Waiting until the kernel knows where to send.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The kernel asks three times, a second apart; then it has failed, and a send says so.
const LIMIT: Duration = Duration::from_secs(10);

/// Waits until no ARP or neighbour discovery is under way in this namespace. To be called after the first datagram to
/// a peer: those after it would wait in a queue that drops what exceeds some hundred, and no counter of the interface
/// would show them.
pub(super) fn await_resolution() -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let pending = Command::new("ip")
            .args(["neighbour", "show", "nud", "incomplete"])
            .output()
            .context("cannot run ip")?;
        let complaint = String::from_utf8_lossy(&pending.stderr);
        ensure!(pending.status.success(), "ip neighbour: {}", complaint.trim());
        if pending.stdout.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("no neighbour after {LIMIT:?}: {}", String::from_utf8_lossy(&pending.stdout));
        }
        thread::sleep(Duration::from_millis(5));
    }
}
