//! Holding a namespace.

use std::fs;

use anyhow::{Context, Result};
use orb8_testkit::program::Hold;

use super::report;
use super::run_time::RunTime;

/// Sets the kernel parameters, then waits for the end.
pub(super) fn hold(hold: &Hold, run_time: RunTime) -> Result<()> {
    for parameter in &hold.sysctl {
        let (name, value) = parameter.split_once('=').with_context(|| {
            format!("{parameter:?}: expected NAME=VALUE, such as net.ipv4.ip_forward=1")
        })?;
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))?;
    }
    report::ready(None)?;
    run_time.wait_for_the_end();
    Ok(())
}
