//! A program under attack: where it serves, and what it holds.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_tests::binary;
use rustix::process::{Pid, Signal, kill_process};

/// A running program. Dropping it kills it.
pub(crate) struct Daemon {
    pub(crate) name: &'static str,
    pub(crate) grpc: SocketAddr,
    pub(crate) metrics: SocketAddr,
    process: Child,
    log: Arc<Mutex<String>>,
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) memory_kib: usize,
    pub(crate) descriptors: usize,
}

impl Daemon {
    /// Starts it; it logs where it serves.
    pub(crate) fn start(name: &'static str, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(binary(name)?);
        command.args(arguments).env_remove("RUST_LOG").env("NO_COLOR", "1").stderr(Stdio::piped());
        let mut process = command.spawn()?;
        let mut lines = BufReader::new(process.stderr.take().context("no log")?);
        let mut said = String::new();
        let (grpc, metrics) = loop {
            let from = said.len();
            if lines.read_line(&mut said)? == 0 {
                process.wait()?;
                anyhow::bail!("{name} ended; it said:\n{said}");
            }
            let line = plain(&said[from..]);
            if let (Some(grpc), Some(metrics)) = (address(&line, "grpc"), address(&line, "metrics"))
            {
                break (grpc, metrics);
            }
        };
        let log = Arc::new(Mutex::new(said));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push_str(&line);
                line.clear();
            }
        });
        Ok(Self { name, grpc, metrics, process, log })
    }

    /// What it holds now.
    fn held(&self) -> Result<Held> {
        let of = |file: &str| format!("/proc/{}/{file}", self.process.id());
        let status = fs::read_to_string(of("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = line.and_then(|line| line.split_whitespace().next());
        let memory_kib = memory.context("it has ended")?.parse()?;
        Ok(Held { memory_kib, descriptors: fs::read_dir(of("fd"))?.count() })
    }

    /// What it holds once that does not fall any more.
    pub(crate) fn settled(&self) -> Result<Held> {
        let mut last = self.held()?;
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(500));
            let now = self.held()?;
            let falls = now.descriptors < last.descriptors;
            last = now;
            if !falls {
                break;
            }
        }
        Ok(last)
    }

    /// SIGTERM; gives what it logged.
    pub(crate) fn terminate(mut self) -> Result<String> {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process id")?, Signal::TERM)?;
        let status = self.process.wait()?;
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(status.success(), "{}: {status}; it said:\n{log}", self.name);
        Ok(log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _waited = self.process.wait();
    }
}

/// Without the colours.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut parts = line.split('\u{1b}');
    text.extend(parts.next());
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}

/// `NAME=127.0.0.1:1`, or `NAME=Some(127.0.0.1:1)`.
fn address(line: &str, name: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(&format!("{name}="))?;
    let rest = rest.trim_start_matches("Some(");
    rest.split([' ', ')', '\n']).next()?.parse().ok()
}
