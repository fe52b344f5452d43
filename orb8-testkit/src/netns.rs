//! Network namespaces without a name: each is known by the process that holds it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::spawner;

/// How long a command run by `exec` may take.
const EXEC_LIMIT: Duration = Duration::from_secs(60);

/// The command line of a process in a network namespace of its own and in the cgroup `dir`, which is made.
pub(crate) fn new_netns(testpod: &Path, dir: &Path) -> Result<Command> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mut command = Command::new("unshare");
    command.arg("--net").arg(testpod).arg("run").arg("--cgroup").arg(dir);
    Ok(command)
}

/// A network namespace, known by the process that holds it. It does not keep the namespace alive.
#[derive(Clone, Debug)]
pub struct Netns {
    holder: u32,
    path: PathBuf,
    testpod: PathBuf,
}

impl Netns {
    pub(crate) fn of(holder: u32, testpod: PathBuf) -> Self {
        Self { holder, path: format!("/proc/{holder}/ns/net").into(), testpod }
    }

    /// `/proc/<pid of the holder>/ns/net`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread into this namespace, for good.
    ///
    /// # Errors
    /// When the holder is gone, or without CAP_SYS_ADMIN.
    pub fn enter(&self) -> Result<()> {
        let link = File::open(&self.path).with_context(|| self.path.display().to_string())?;
        move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter {}", self.path.display()))
    }

    pub(crate) fn holder(&self) -> u32 {
        self.holder
    }

    /// The start of a command line that performs a program in this namespace.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.testpod);
        command.arg("run").arg("--netns").arg(&self.path);
        command
    }

    pub(crate) fn exec(&self, command: &[&str], stdin: &[u8]) -> Result<Output> {
        let mut line = self.command();
        line.args(["exec", "--"]).args(command);
        spawner::output(line, stdin, EXEC_LIMIT)
    }

    /// Runs a batch of `ip` commands, one on each line, and returns what they print.
    pub(crate) fn ip(&self, flags: &[&str], batch: &str) -> Result<String> {
        let mut command = vec!["ip"];
        command.extend(flags);
        command.extend(["-batch", "-"]);
        let output = self.exec(&command, batch.as_bytes())?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("ip in {} failed: {}\nin:\n{batch}", self.path.display(), complaint.trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}
