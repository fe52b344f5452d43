//! A program that runs in a pod, as seen from the test.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};

use crate::lines::{Line, Lines};
use crate::program::{Program, Summary};
use crate::spawner;

/// How long a program may take to enter its place, and a server then to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long [`Process::wait`] waits. Longer than any transfer of the tests, shorter than a patience.
const WAIT_LIMIT: Duration = Duration::from_secs(120);

/// How a program ended.
pub(crate) struct Outcome {
    /// 128 and the signal's number, if a signal ended it.
    pub(crate) exit_code: i32,
    /// The last that it said about itself.
    pub(crate) summary: Summary,
    /// What it wrote to standard error.
    pub(crate) complaint: String,
}

/// A running [`Program`]. Dropping it kills and reaps the process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Closing it asks the program to end.
    stdin: Option<ChildStdin>,
    /// `None` when it became another command, whose output is nobody's.
    lines: Option<Lines>,
    /// What it writes to standard error, in memory.
    stderr: File,
    addr: Option<SocketAddr>,
}

impl Process {
    /// Starts `orb8-testpod` with `command` and waits until it is in its place, and until a server is ready.
    pub(crate) fn start(mut command: Command, program: &Program) -> Result<Self> {
        let arguments = program.arguments()?;
        let name = arguments.join(" ");
        let stderr = File::from(memfd_create("stderr", MemfdFlags::CLOEXEC)?);
        command.args(["--parent", &std::process::id().to_string()]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr.try_clone()?);
        let mut child = spawner::spawn(command)?;

        let stdout = child.stdout.take().context("no pipe for standard output")?;
        let stdin = child.stdin.take();
        let lines = Some(Lines::new(stdout));
        let mut process = Self { name, child, stdin, lines, stderr, addr: None };
        process.expect("entered")?;
        if program.is_server() {
            process.addr = process.expect("ready ")?.parse().ok();
        }
        if matches!(program, Program::Exec(_))
            && let Some(lines) = process.lines.take()
        {
            // It may write more than a pipe holds while nobody waits for it.
            spawner::drain(lines.into_pipe());
        }
        Ok(process)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where a server listens (its first port), with the port that the kernel chose if 0 was asked for.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// Waits up to two minutes for the program to end by itself.
    ///
    /// # Errors
    /// When it takes longer (it is killed then), or fails; the error carries what it wrote to stderr.
    pub fn wait(&mut self) -> Result<Summary> {
        self.wait_for(WAIT_LIMIT)
    }

    /// [`wait`](Self::wait) with a limit of one's own.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_for(&mut self, limit: Duration) -> Result<Summary> {
        let deadline = Instant::now() + limit;
        let mut summary = Summary::default();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(lines) = &mut self.lines else { break };
            match lines.next(left)? {
                Line::Text(line) => summary = serde_json::from_str(&line).unwrap_or(summary),
                Line::End => break,
                Line::Late => return self.is_late(limit),
            }
        }
        let Some(status) = self.status_by(deadline)? else { return self.is_late(limit) };
        if !status.success() {
            bail!("`{}` ended with {status}: {}", self.name, self.complaint());
        }
        Ok(summary)
    }

    /// Asks the program to end and waits for its summary: what a sink has received, for instance.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn stop(&mut self) -> Result<Summary> {
        self.stdin = None;
        self.wait_for(START_LIMIT)
    }

    /// Sends it a signal; nothing happens when it has ended.
    ///
    /// # Errors
    /// When it may not be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Not reaped yet, so that the number is nobody else's.
        if self.child.try_wait()?.is_none()
            && let Some(pid) = Pid::from_raw(i32::try_from(self.child.id())?)
        {
            kill_process(pid, signal).with_context(|| format!("{signal:?} to `{}`", self.name))?;
        }
        Ok(())
    }

    /// What became of a program that has ended.
    pub(crate) fn outcome(&mut self) -> Result<Outcome> {
        let status = self.child.wait().with_context(|| format!("`{}`", self.name))?;
        let mut summary = Summary::default();
        // A process that it left behind may hold the other end.
        while let Some(lines) = &mut self.lines
            && let Line::Text(line) = lines.next(Duration::ZERO)?
        {
            summary = serde_json::from_str(&line).unwrap_or(summary);
        }
        let exit_code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        let complaint = self.complaint();
        Ok(Outcome { exit_code: exit_code.unwrap_or_default(), summary, complaint })
    }

    /// Kills the program at once and reaps it.
    pub fn kill(&mut self) {
        spawner::end(&mut self.child);
    }

    /// The rest of the next line, which begins with `start`.
    fn expect(&mut self, start: &str) -> Result<String> {
        let lines = self.lines.as_mut().context("nobody reads what it writes")?;
        match lines.next(START_LIMIT)? {
            Line::Text(line) => match line.strip_prefix(start) {
                Some(rest) => Ok(rest.to_owned()),
                None => bail!("`{}` said {line:?}, expected {start:?}", self.name),
            },
            other => {
                self.kill();
                let complaint = self.complaint();
                bail!("`{}` did not say {start:?} ({other:?}): {complaint}", self.name);
            }
        }
    }

    fn is_late<T>(&mut self, limit: Duration) -> Result<T> {
        self.kill();
        bail!("`{}` did not end within {limit:?}", self.name)
    }

    /// How it ended, if it does before the deadline.
    fn status_by(&mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        let mut pause = Duration::from_micros(100);
        loop {
            let status = self.child.try_wait().with_context(|| format!("`{}`", self.name))?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }

    /// What it wrote to stderr.
    fn complaint(&self) -> String {
        let length = self.stderr.metadata().map_or(0, |file| file.len());
        let mut text = vec![0; usize::try_from(length).unwrap_or_default()];
        // A complaint that cannot be read leaves the error without it.
        let _ = self.stderr.read_exact_at(&mut text, 0);
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
