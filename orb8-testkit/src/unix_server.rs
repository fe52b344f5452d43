//! A server on a unix socket, on a thread of its own, that can be ended and started again.

use std::fmt;
use std::future::Future;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

pub(crate) type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What listens at a socket. Dropping it ends it, and removes the socket.
pub(crate) struct UnixServer {
    path: PathBuf,
    serve: Box<dyn Fn(UnixListener) -> Serving + Send + Sync>,
    running: Option<(JoinHandle<()>, CancellationToken)>,
}

impl UnixServer {
    /// Serves at `path` by what `serve` returns.
    pub(crate) fn start(
        path: &Path,
        serve: impl Fn(UnixListener) -> Serving + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut server = Self { path: path.to_owned(), serve: Box::new(serve), running: None };
        server.resume()?;
        Ok(server)
    }

    /// Listens again, at a new socket in the same place.
    pub(crate) fn resume(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        self.remove_socket()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&self.path).with_context(|| self.path.display().to_string())?
        };
        let stop = CancellationToken::new();
        let (stopped, serving) = (stop.clone(), (self.serve)(listener));
        let thread = thread::Builder::new().name("orb8-unix".into()).spawn(move || {
            // Connections end with the runtime.
            runtime.block_on(async {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = serving => {}
                }
            });
        })?;
        self.running = Some((thread, stop));
        Ok(())
    }

    /// Closes every connection, and listens no more. The socket stays, as that of a killed process.
    pub(crate) fn stop(&mut self) {
        if let Some((thread, stop)) = self.running.take() {
            stop.cancel();
            // A panic of the thread was printed by the thread.
            let _ended = thread.join();
        }
    }

    /// Removes the socket, as a process does that ends in order.
    pub(crate) fn remove_socket(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| self.path.display().to_string())
            }
            _ => Ok(()),
        }
    }
}

impl Drop for UnixServer {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = self.remove_socket() {
            eprintln!("orb8-testkit: {error:#}");
        }
    }
}

impl fmt::Debug for UnixServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixServer").field("path", &self.path).finish_non_exhaustive()
    }
}
