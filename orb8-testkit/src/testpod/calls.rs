//! System calls in known numbers, and programs that are started and end.

use std::fs::File;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orb8_testkit::Summary;
use orb8_testkit::known_calls;
use orb8_testkit::program::{Calls, Endings, Spawn};

use super::report;

/// Makes the calls and says how many.
pub(super) fn calls(calls: &Calls) -> Result<()> {
    let only = calls.only.as_deref();
    known_calls::make(calls.threads, calls.times, only, calls.per_second)?;
    let made = known_calls::expected(calls.threads, calls.times, only)?;
    let replies = made.iter().map(|(_, times)| times).sum();
    report::summary(&Summary { replies, ..Summary::default() })
}

/// Runs the command again and again, each time to its end.
pub(super) fn spawn(spawn: &Spawn) -> Result<()> {
    let (name, arguments) = spawn.command.split_first().context("no command")?;
    for n in 0..spawn.times {
        let n = n.to_string();
        let arguments = arguments.iter().map(|argument| argument.replace("{}", &n));
        let mut command = Command::new(name);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.status().with_context(|| format!("cannot run {name}"))?;
        ensure!(status.success(), "{name} has ended with {status}");
    }
    report::summary(&Summary { replies: spawn.times.into(), ..Summary::default() })
}

/// Makes calls that fail, and calls that take their time.
pub(super) fn endings(endings: &Endings) -> Result<()> {
    let nobody = rustix::process::Pid::from_raw(i32::MAX).context("a number")?;
    for _ in 0..endings.times {
        ensure!(rustix::process::getsid(Some(nobody)).is_err(), "there is a process {nobody:?}");
        ensure!(File::open(&endings.path).is_err(), "{} is there", endings.path);
        sleep(Duration::from_millis(endings.sleep_ms));
    }
    report::summary(&Summary { replies: endings.times.into(), ..Summary::default() })
}
