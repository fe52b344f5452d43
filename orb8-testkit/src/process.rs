//! A program that runs in a pod, as seen from the test.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::program::{Program, Summary};
use crate::spawner;

/// How long a program may take to enter its place, and a server then to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long [`Process::wait`] waits. Longer than any transfer of the tests, shorter than a patience.
const WAIT_LIMIT: Duration = Duration::from_secs(120);

/// A running [`Program`]. Dropping it kills and reaps the process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Closing it asks the program to end.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    addr: Option<SocketAddr>,
}

impl Process {
    /// Starts `orb8-testpod` with `command` and waits until it is in its place, and until a server is ready.
    pub(crate) fn start(mut command: Command, program: &Program) -> Result<Self> {
        let arguments = program.arguments()?;
        let name = arguments.join(" ");
        command.args(["--parent", &std::process::id().to_string()]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawner::spawn(command)?;

        let stdout = child.stdout.take().context("no pipe for standard output")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut process = Self {
            name,
            stdin: child.stdin.take(),
            stderr: child.stderr.take().map(spawner::drain),
            child,
            lines,
            addr: None,
        };
        process.expect("entered")?;
        if program.is_server() {
            process.addr = process.expect("ready ")?.parse().ok();
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
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => summary = serde_json::from_str(&line).unwrap_or(summary),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.kill();
                    bail!("`{}` did not end within {limit:?}", self.name);
                }
            }
        }
        let status = self.child.wait().with_context(|| format!("`{}`", self.name))?;
        if !status.success() {
            let complaint = self.complaint();
            bail!("`{}` ended with {status}: {complaint}", self.name);
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

    /// Kills the program at once and reaps it.
    pub fn kill(&mut self) {
        spawner::end(&mut self.child);
    }

    /// The rest of the next line, which begins with `start`.
    fn expect(&mut self, start: &str) -> Result<String> {
        match self.lines.recv_timeout(START_LIMIT) {
            Ok(line) => match line.strip_prefix(start) {
                Some(rest) => Ok(rest.to_owned()),
                None => bail!("`{}` said {line:?}, expected {start:?}", self.name),
            },
            Err(error) => {
                self.kill();
                let complaint = self.complaint();
                bail!("`{}` did not say {start:?} ({error}): {complaint}", self.name);
            }
        }
    }

    /// What the ended program wrote to stderr.
    fn complaint(&mut self) -> String {
        String::from_utf8_lossy(&spawner::collected(self.stderr.take())).trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
