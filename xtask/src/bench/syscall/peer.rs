//! `bpftrace` that counts calls per cgroup, for comparison.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::step;

/// The second probe says when the first one is attached, and does next to nothing.
const SCRIPT: &str = "tracepoint:raw_syscalls:sys_enter { @[cgroup] = count(); } \
                      interval:ms:200 { printf(\"attached\\n\"); }";

/// An installed one.
pub(super) struct Peer {
    pub(super) version: String,
}

impl Peer {
    /// None where there is none, which is said.
    pub(super) fn find() -> Option<Self> {
        if !step::installed("bpftrace") {
            eprintln!("bench: there is no bpftrace to compare with (Debian: apt install bpftrace)");
            return None;
        }
        let out = Command::new("bpftrace").arg("--version").output().ok()?;
        Some(Self { version: String::from_utf8_lossy(&out.stdout).trim().to_owned() })
    }

    /// Starts it and waits until it counts.
    pub(super) fn start(&self) -> Result<Running> {
        let mut child = Command::new("bpftrace")
            .args(["-B", "line", "-e", SCRIPT])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start bpftrace")?;
        let out = BufReader::new(child.stdout.take().context("no output of bpftrace")?);
        let mut running = Running { child, out };
        let mut line = String::new();
        while line.trim() != "attached" {
            line.clear();
            ensure!(running.out.read_line(&mut line)? > 0, "bpftrace ended before it counted");
        }
        Ok(running)
    }
}

/// One that counts.
pub(super) struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    /// Ends it and waits until its program is gone.
    pub(super) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        let mut rest = String::new();
        self.out.read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "bpftrace: {status}");
        ensure!(rest.contains("@["), "bpftrace counted nothing: {rest}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, unless an error came before; then its output is of no use.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
