//! What a program says on standard output: that it is in its place, when a server is ready, and what it did as one line
//! of JSON.

use std::io::{Write, stdout};
use std::net::SocketAddr;

use anyhow::Result;
use orb8_testkit::Summary;

/// In its cgroup and namespace; before that, whoever looks at the process would attribute it wrongly.
pub(super) fn entered() -> Result<()> {
    say("entered")
}

/// `ready ADDRESS`, or `ready -` for a server that listens nowhere.
pub(super) fn ready(listening: Option<SocketAddr>) -> Result<()> {
    match listening {
        Some(addr) => say(&format!("ready {addr}")),
        None => say("ready -"),
    }
}

/// The last line.
pub(super) fn summary(summary: &Summary) -> Result<()> {
    say(&serde_json::to_string(summary)?)
}

fn say(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
