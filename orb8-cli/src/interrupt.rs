//! Ctrl-C, SIGTERM and SIGHUP: the first asks for an orderly end, the second ends at once.

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Tells whether the user asked to stop.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(watch::Receiver<bool>);

/// Starts to listen. From here on, signals no longer end the process by themselves.
///
/// # Errors
/// When the handlers cannot be installed.
pub(crate) fn listen() -> anyhow::Result<Interrupt> {
    let install = |kind| signal(kind).context("cannot install signal handlers");
    let mut interrupt = install(SignalKind::interrupt())?;
    let mut terminate = install(SignalKind::terminate())?;
    let mut hangup = install(SignalKind::hangup())?;
    let (asked, receiver) = watch::channel(false);
    // On a worker thread, so that the second signal works while the main thread is held up by a
    // terminal that does not read.
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
                _ = hangup.recv() => (),
            }
            if asked.send_replace(true) {
                std::process::exit(1);
            }
        }
    });
    Ok(Interrupt(receiver))
}

impl Interrupt {
    /// Waits for the first signal; returns at once if it came already.
    pub(crate) async fn requested(&mut self) {
        if self.0.wait_for(|asked| *asked).await.is_err() {
            // The listener is gone, so no signal will come.
            std::future::pending::<()>().await;
        }
    }
}
