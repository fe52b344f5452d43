//! How a watch of the Kubernetes API is doing, for those who rely on what it tells.

use std::time::{Duration, Instant};

use orb8_proto::PodSourceState;
use tokio::sync::watch;

/// Whether what is known is kept current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchState {
    /// The API is being asked for the first time.
    Syncing,
    /// Every change is told at once.
    Connected,
    /// The API does not answer as it should. What was known stays known.
    Away {
        /// How old what is known is.
        since: Instant,
        /// What went wrong the last time.
        reason: String,
    },
}

impl WatchState {
    /// As the wire has it: state, age, reason.
    #[must_use]
    pub fn told(self) -> (PodSourceState, Duration, String) {
        match self {
            Self::Syncing => {
                (PodSourceState::Syncing, Duration::ZERO, "the API was not heard yet".into())
            }
            Self::Connected => (PodSourceState::Connected, Duration::ZERO, String::new()),
            Self::Away { since, reason } => (PodSourceState::Away, since.elapsed(), reason),
        }
    }
}

/// The state of a watch. The watcher writes it, everybody else reads.
#[derive(Debug)]
pub struct Contact(watch::Sender<WatchState>);

impl Default for Contact {
    fn default() -> Self {
        Self(watch::Sender::new(WatchState::Syncing))
    }
}

impl Contact {
    /// How it is.
    #[must_use]
    pub fn state(&self) -> WatchState {
        self.0.borrow().clone()
    }

    /// How it is, now and later.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<WatchState> {
        self.0.subscribe()
    }

    /// Every change is told from now on.
    pub fn connected(&self) {
        self.set(|_| WatchState::Connected);
    }

    /// What is known was true a moment ago, whether or not changes to it will be told.
    pub fn heard(&self) {
        self.set(|state| match state {
            WatchState::Away { reason, .. } => {
                WatchState::Away { since: Instant::now(), reason: reason.clone() }
            }
            state => state.clone(),
        });
    }

    /// The API does not answer as it should. It stays away since when it first did not.
    pub fn away(&self, reason: &str) {
        self.set(|state| {
            let since = match state {
                WatchState::Away { since, .. } => *since,
                WatchState::Syncing | WatchState::Connected => Instant::now(),
            };
            WatchState::Away { since, reason: reason.to_owned() }
        });
    }

    fn set(&self, next: impl FnOnce(&WatchState) -> WatchState) {
        self.0.send_if_modified(|state| {
            let next = next(state);
            let changed = *state != next;
            *state = next;
            changed
        });
    }
}
