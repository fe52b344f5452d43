//! A container runtime over the real protocol, gRPC on a unix socket, and ways in which one can fail.
//!
//! State is driven by calls: [`CriServer::put`] and [`CriServer::remove`] are what a kubelet would have had done, and a
//! [node](crate::Node::serve_cri) makes them for its pods. Clients only read.

mod faults;
mod of_node;
mod sandbox;
mod service;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

pub use faults::{Faults, Tells};
pub use sandbox::{Sandbox, SandboxContainer};
pub(crate) use state::State;

use crate::unix_server::UnixServer;

/// A running runtime. Dropping it closes its socket and every connection.
#[derive(Debug)]
pub struct CriServer {
    state: Arc<State>,
    path: PathBuf,
    server: UnixServer,
}

impl CriServer {
    /// Starts a runtime without sandboxes at `path`. It says that it is containerd 2.0.0.
    ///
    /// # Errors
    /// When there can be no socket.
    pub fn start(path: &Path) -> Result<Self> {
        let state = Arc::new(State::default());
        let of_server = Arc::clone(&state);
        let server = UnixServer::start(path, move |listener| {
            Box::pin(service::serve(Arc::clone(&of_server), listener))
        })?;
        Ok(Self { state, path: path.to_owned(), server })
    }

    /// Where its socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a sandbox with its containers, or replaces the one with the same id. Listeners are told of what is new.
    pub fn put(&self, sandbox: Sandbox) {
        self.state.put(sandbox);
    }

    /// Removes a sandbox; nothing happens when there is none with this id.
    pub fn remove(&self, sandbox_id: &str) {
        self.state.remove(sandbox_id);
    }

    /// Changes how it fails, from now on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        self.state.change_faults(change);
    }

    /// Ends it as `kill -9` would: connections break, and its socket refuses. Its containers run on.
    pub fn kill(&mut self) {
        self.server.stop();
    }

    /// Ends it in order: its socket is gone, too.
    ///
    /// # Errors
    /// When the socket cannot be removed.
    pub fn shut_down(&mut self) -> Result<()> {
        self.server.stop();
        self.server.remove_socket()
    }

    /// Starts it again.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> Result<()> {
        self.server.resume()
    }

    /// How often each call was made so far, by its name in the protocol.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<&'static str, usize> {
        self.state.calls()
    }

    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }
}
