//! Entering the pod: cgroup first, then the network namespace.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where a program runs.
#[derive(Args)]
pub(super) struct Place {
    /// Network namespace to enter, such as /proc/PID/ns/net
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Cgroup directory to enter
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Process that has started this one, and whose standard input asks it to end
    #[arg(long)]
    pub(super) parent: Option<i32>,
}

impl Place {
    /// Enters it, and asks to be killed when the parent dies.
    ///
    /// To be called while the process has one thread: threads inherit the namespace. A socket belongs to the cgroup that
    /// its creator is in at that moment, so no socket may exist yet either.
    pub(super) fn enter(&self) -> Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have died before the line above, and then no signal comes.
        if let Some(parent) = self.parent
            && Pid::as_raw(getppid()) != parent
        {
            bail!("the parent, process {parent}, is gone");
        }
        if let Some(dir) = &self.cgroup {
            let procs = dir.join("cgroup.procs");
            fs::write(&procs, std::process::id().to_string())
                .with_context(|| format!("cannot enter the cgroup: {}", procs.display()))?;
        }
        if let Some(path) = &self.netns {
            let link = File::open(path).with_context(|| path.display().to_string())?;
            move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| {
                    format!("cannot enter the network namespace {}", path.display())
                })?;
        }
        Ok(())
    }
}
