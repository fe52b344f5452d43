//! Running the real command line inside the node's network namespace, as one would on a node.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{cast::Cast, interrupt::Interrupt};

/// How long orb8 may take to attach, and to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(20);

/// The binary, and how to run it.
pub(super) struct Orb8<'a> {
    path: PathBuf,
    interrupt: &'a Interrupt,
}

impl<'a> Orb8<'a> {
    pub(super) fn new(path: PathBuf, interrupt: &'a Interrupt) -> Self {
        Self { path, interrupt }
    }

    /// Runs `orb8` to its end and shows what it prints, at most `lines` of its standard output.
    pub(super) fn show(&self, cast: &Cast, args: &[&str], lines: usize) -> Result<()> {
        let mut child = self.command(cast, args).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no pipe for standard output")?;
        for (number, line) in BufReader::new(stdout).lines().enumerate() {
            let line = line?;
            match number {
                n if n < lines => println!("  {line}"),
                n if n == lines => println!("  … more follow, until the time is over"),
                _ => {}
            }
        }
        let status = child.wait()?;
        self.interrupt.check()?;
        ensure!(status.success(), "orb8 failed: {status}");
        Ok(())
    }

    /// Starts `orb8` with its records going to `records`; returns when it has attached.
    pub(super) fn start(&self, cast: &Cast, args: &[&str], records: File) -> Result<Running> {
        let mut child = self.command(cast, args).stdout(records).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().context("no pipe for standard error")?;
        let (sender, attached) = mpsc::channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                println!("  {line}");
                if line.starts_with("attached ") {
                    // Nobody listens after the first.
                    let _ = sender.send(());
                }
            }
        });
        let running = Running { child, reader: Some(reader) };
        attached
            .recv_timeout(PATIENCE)
            .with_context(|| format!("orb8 did not attach within {PATIENCE:?}"))?;
        Ok(running)
    }

    fn command(&self, cast: &Cast, args: &[&str]) -> Command {
        println!("$ orb8 --mode standalone {}", args.join(" "));
        // With this process killed, orb8 must not go on; neither wrapper forks.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "nsenter"]);
        command.arg(format!("--net={}", cast.node.netns_path().display()));
        command.arg(&self.path).args(["--mode", "standalone"]).args(args);
        command.current_dir(cast.folder()).stdin(Stdio::null());
        command
    }
}

/// An `orb8` that runs beside us. Dropping it kills it.
pub(super) struct Running {
    child: Child,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    /// Asks it to end in order, and waits.
    pub(super) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                bail!("orb8 did not end within {PATIENCE:?} of being asked to");
            }
            thread::sleep(Duration::from_millis(5));
        };
        if let Some(reader) = self.reader.take() {
            // It only prints: a panic in there is a closed terminal.
            let _ = reader.join();
        }
        ensure!(status.success(), "orb8 failed: {status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
