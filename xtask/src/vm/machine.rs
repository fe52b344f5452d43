//! One run of an emulated machine, from its start to the last word of its tests.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{binaries::Binaries, kernel::Kernel, tool};

/// A kernel with its tests takes five to eight minutes on two CPUs; this is for the slowest machine.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// How one test ended.
pub(super) struct Outcome {
    pub(super) test: &'static str,
    pub(super) passed: bool,
    pub(super) seconds: u64,
}

/// Boots `kernel`, shows what its tests print, and tells how each of them ended. One that never
/// came to its end has failed.
pub(super) fn boot(kernel: &Kernel, initrd: &Path, binaries: &Binaries) -> Result<Vec<Outcome>> {
    println!("booting {}", kernel.release);
    let console = kernel.folder.join("console.log");
    let mut emulator = emulator(kernel, initrd, &console)?;
    let output = emulator.0.stdout.take().context("no pipe for the serial port")?;
    let (sender, lines) = channel();
    thread::spawn(move || {
        // A port carries bytes; a line that is no text is shown as well as can be.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });

    let deadline = Instant::now() + LIMIT;
    let (mut ended, mut began) = (Vec::new(), Instant::now());
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => match end_of_test(&line) {
                Some((name, status)) => {
                    ended.push((name.to_owned(), status == "0", began.elapsed().as_secs()));
                    began = Instant::now();
                }
                None => println!("  {line}"),
            },
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!("  stopped: it did not end within {} minutes", LIMIT.as_secs() / 60);
                break;
            }
        }
    }
    drop(emulator);

    let seconds = began.elapsed().as_secs();
    let outcome = |test: &'static str| match ended.iter().find(|(name, ..)| name == test) {
        Some(&(_, passed, seconds)) => Outcome { test, passed, seconds },
        None => Outcome { test, passed: false, seconds },
    };
    let outcomes: Vec<_> = binaries.tests.iter().map(|test| outcome(test.name)).collect();
    if ended.len() < outcomes.len() {
        let said = fs::read(&console).unwrap_or_default();
        println!("the console:\n{}", String::from_utf8_lossy(&said).trim_end());
    }
    Ok(outcomes)
}

/// Name and exit status, from the line that init.sh writes after a test.
fn end_of_test(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("orb8-vm: ")?.split_once(" ended ")
}

/// Ends with this value.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only if it was reaped before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn emulator(kernel: &Kernel, initrd: &Path, console: &Path) -> Result<Emulator> {
    let qemu = tool::path("qemu-system-x86_64")?;
    // It is not to outlive this process, however that ends.
    let mut command = Command::new(tool::path("setpriv")?);
    command.args(["--pdeathsig", "KILL", "--"]).arg(qemu);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // Plain emulation runs everywhere. Newer CPU models have what QEMU 7.2 emulates wrongly.
    command.args(["-accel", "tcg", "-cpu", "qemu64", "-smp", "2", "-m", "2048"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initrd);
    command.args(["-append", "console=ttyS0 panic=-1 quiet"]);
    command.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    match child {
        Ok(child) => Ok(Emulator(child)),
        Err(error) => bail!("cannot start {command:?}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_test_is_told_from_what_it_prints() {
        assert_eq!(end_of_test("orb8-vm: exact ended 101"), Some(("exact", "101")));
        for other in ["test bulk ... ok", "exact ended 0", "orb8-vm: exact"] {
            assert_eq!(end_of_test(other), None);
        }
    }
}
