//! What a program says on standard output: servers one ready line, all of them one line of JSON at the end.

use std::io::{Write, stdout};
use std::net::SocketAddr;

use anyhow::Result;
use orb8_testkit::Summary;

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
