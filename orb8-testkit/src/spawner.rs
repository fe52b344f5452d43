//! Starting child processes that die with this process, and running short commands to their end.
//!
//! The parent-death signal fires when the *thread* that started a child ends, and tests start pods on threads that come
//! and go. So one thread, which lives as long as the process, starts them all.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

type Job = (Command, SyncSender<std::io::Result<Child>>);

static SPAWNER: Mutex<Option<Sender<Job>>> = Mutex::new(None);

/// Starts `command` on the thread that outlives all others.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    let what = format!("{command:?}");
    let (reply, answer) = sync_channel(1);
    sender()?.send((command, reply)).map_err(|_| anyhow!("the spawner thread is gone"))?;
    answer
        .recv()
        .context("the spawner thread is gone")?
        .with_context(|| format!("cannot start {what}"))
}

/// Runs `command` with `stdin` until it ends; it is killed after `limit`, which is an error. The exit status is the
/// caller's to judge.
pub(crate) fn output(mut command: Command, stdin: &[u8], limit: Duration) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let what = format!("{command:?}");
    let mut child = spawn(command)?;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    if let Some(mut pipe) = child.stdin.take() {
        // A command that ends before it has read its input says why on stderr; that is the error worth showing.
        let _ = pipe.write_all(stdin);
    }
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            end(&mut child);
            bail!("{what} did not end within {limit:?}");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    };
    Ok(Output { status, stdout: collected(stdout), stderr: collected(stderr) })
}

/// Kills and reaps `child`; nothing happens when it has ended already.
pub(crate) fn end(child: &mut Child) {
    // Both fail only for a child that was reaped before.
    let _ = child.kill();
    let _ = child.wait();
}

/// Reads `pipe` to its end on a thread of its own, so that the writer never blocks.
pub(crate) fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What arrived before a read error is still worth having.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// What a [`drain`] thread read.
pub(crate) fn collected(reader: Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    reader.and_then(|thread| thread.join().ok()).unwrap_or_default()
}

fn sender() -> Result<Sender<Job>> {
    let mut slot = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sender) = &*slot {
        return Ok(sender.clone());
    }
    let (sender, jobs) = channel::<Job>();
    thread::Builder::new()
        .name("orb8-spawner".into())
        .spawn(move || {
            for (mut command, reply) in jobs {
                if let Err(unwanted) = reply.send(command.spawn())
                    && let Ok(mut child) = unwanted.0
                {
                    end(&mut child);
                }
            }
        })
        .context("cannot start the spawner thread")?;
    *slot = Some(sender.clone());
    Ok(sender)
}
