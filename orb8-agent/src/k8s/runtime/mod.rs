//! Names from the container runtime of the node: on their own where there is no Kubernetes, else as
//! a [second opinion](super::second_opinion).
//!
//! Runtimes are found by their sockets. What a runtime is does not matter for reading cgroup paths:
//! all forms are always tried.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

mod client;
mod containers;
mod cri;
mod detect;
mod docker;
mod pods;
mod sandboxes;
mod wanted;
mod watch;

pub use pods::RuntimePods;

/// Longest path of a unix socket (`sun_path` of unix(7), with its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// Whether to ask a container runtime for names, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// Whichever is found.
    #[default]
    Auto,
    /// None.
    Off,
    /// The one at this socket.
    Socket(PathBuf),
}

impl RuntimeChoice {
    /// Reads `auto`, `off`, or the path of a socket, with or without `unix://` before it. The error
    /// says what was expected.
    pub fn parse(written: &str) -> Result<Self, String> {
        let path = match written {
            "auto" => return Ok(Self::Auto),
            "off" => return Ok(Self::Off),
            other => other.strip_prefix("unix://").unwrap_or(other),
        };
        if !path.starts_with('/') {
            return Err(format!(
                "runtime: {written:?} is unknown; expected auto, off, or the path of a socket such \
                 as /run/containerd/containerd.sock"
            ));
        }
        if path.len() > MAX_SOCKET_PATH {
            return Err(format!(
                "runtime: {path} is longer than the {MAX_SOCKET_PATH} bytes that the path of a \
                 socket can have"
            ));
        }
        Ok(Self::Socket(path.into()))
    }
}

/// How patient the source is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The first wait after a failure.
    pub first_wait: Duration,
    /// The longest wait.
    pub last_wait: Duration,
    /// How long the runtime may take for an answer.
    pub answer: Duration,
    /// No two lists are closer than this, whatever happens.
    pub gap: Duration,
    /// Between two lists while the runtime tells of no changes.
    pub poll: Duration,
    /// Between two lists while it does.
    pub resync: Duration,
    /// A runtime that was found and had containers is waited for so long before another is looked
    /// for.
    pub loyalty: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(100),
            last_wait: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            gap: Duration::from_secs(1),
            poll: Duration::from_secs(5),
            resync: Duration::from_secs(60),
            loyalty: Duration::from_secs(60),
        }
    }
}

/// Follows the container runtime of the node. It does nothing before it is [run](Self::run).
pub struct RuntimeSource {
    /// None: whichever is found.
    socket: Option<PathBuf>,
    /// Where sockets are looked for.
    root: PathBuf,
    timing: Timing,
    pods: Arc<RuntimePods>,
}

impl RuntimeSource {
    /// A source by the runtime at `socket`; without one, by whichever is found below `root`, which is
    /// `/` but in tests.
    #[must_use]
    pub fn new(socket: Option<PathBuf>, root: &Path, timing: Timing) -> Self {
        Self { socket, root: root.to_owned(), timing, pods: Arc::new(RuntimePods::new()) }
    }

    /// What it knows, now and later.
    #[must_use]
    pub fn pods(&self) -> Arc<RuntimePods> {
        Arc::clone(&self.pods)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_auto_off_or_a_socket() {
        let socket = |path: &str| Ok(RuntimeChoice::Socket(path.into()));
        assert_eq!(RuntimeChoice::parse("auto"), Ok(RuntimeChoice::Auto));
        assert_eq!(RuntimeChoice::parse("off"), Ok(RuntimeChoice::Off));
        assert_eq!(RuntimeChoice::parse("/run/a.sock"), socket("/run/a.sock"));
        assert_eq!(RuntimeChoice::parse("unix:///run/a.sock"), socket("/run/a.sock"));
        for wrong in ["", "on", "containerd", "run/a.sock", "tcp://127.0.0.1:2375", "unix://a"] {
            let why = RuntimeChoice::parse(wrong).unwrap_err();
            assert!(why.contains(&format!("{wrong:?}")) && why.contains("auto, off"), "{why}");
        }
        let long = format!("/{}", "a".repeat(107));
        assert!(RuntimeChoice::parse(&long).unwrap_err().contains("longer than the 107"));
        assert!(
            RuntimeChoice::parse(&long[1..]).is_err() && RuntimeChoice::parse(&long[..107]).is_ok()
        );
    }
}
