//! How a watch of the Kubernetes API is doing, for those who rely on what it tells.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use orb8_proto::PodSourceState;

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
pub struct Contact(Mutex<WatchState>);

impl Default for Contact {
    fn default() -> Self {
        Self(Mutex::new(WatchState::Syncing))
    }
}

impl Contact {
    /// How it is.
    #[must_use]
    pub fn state(&self) -> WatchState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every change is told from now on.
    pub fn connected(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = WatchState::Connected;
    }

    /// What is known was true a moment ago, whether or not changes to it will be told.
    pub fn heard(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let WatchState::Away { since, .. } = &mut *state {
            *since = Instant::now();
        }
    }

    /// The API does not answer as it should. It stays away since when it first did not.
    pub fn away(&self, reason: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match &*state {
            WatchState::Away { since, .. } => *since,
            WatchState::Syncing | WatchState::Connected => Instant::now(),
        };
        *state = WatchState::Away { since, reason: reason.to_owned() };
    }
}
