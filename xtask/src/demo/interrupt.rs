//! Ctrl-C and SIGTERM, noticed instead of obeyed, so that the node can be taken down first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

/// Whether the user asked to stop. Ctrl-C also ends the programs that the demo waits for, since a
/// terminal sends it to all of them; SIGTERM is noticed at the next check.
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Starts to listen, for as long as this process runs.
    pub(super) fn listen() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let (ready, installed) = mpsc::sync_channel(1);
        let flag = Arc::clone(&asked);
        thread::Builder::new().name("interrupt".into()).spawn(move || {
            let listened = wait(&ready);
            flag.store(true, Ordering::SeqCst);
            // The error of an installation that failed; nobody waits for it after a signal.
            let _ = ready.send(listened);
        })?;
        installed.recv().context("the signal thread ended")?.context("cannot handle signals")?;
        Ok(Self(asked))
    }

    pub(super) fn asked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// An error once the user has asked to stop.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.asked(), "interrupted");
        Ok(())
    }
}

/// Returns at the first signal; says on `ready` when the handlers stand.
fn wait(ready: &mpsc::SyncSender<std::io::Result<()>>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Whoever asked to listen waits for this.
        let _ = ready.send(Ok(()));
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}
