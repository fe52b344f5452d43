//! What works and what does not, per signal, with the reason. A broken part is a state, not a crash.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use orb8_proto::{SignalState, SignalStatus};

/// The state of every signal. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StatusBoard(Arc<Mutex<BTreeMap<&'static str, State>>>);

/// How a signal is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// All of it works.
    Active,
    /// It works in part; the text says what is missing.
    Degraded(String),
    /// Switched off by configuration.
    Disabled(String),
    /// This kernel or machine cannot.
    Unsupported(String),
    /// It should work and does not.
    Failed(String),
}

impl StatusBoard {
    /// Notes how `signal` is doing, and logs a change.
    pub fn set(&self, signal: &'static str, state: State) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = board.insert(signal, state.clone());
        if before.as_ref() != Some(&state) {
            match state {
                State::Active => tracing::info!(signal, "active"),
                State::Degraded(reason) => tracing::warn!(signal, reason, "degraded"),
                State::Disabled(reason) => tracing::info!(signal, reason, "disabled"),
                State::Unsupported(reason) => tracing::warn!(signal, reason, "unsupported"),
                State::Failed(reason) => tracing::error!(signal, reason, "failed"),
            }
        }
    }

    /// Every signal, by name.
    #[must_use]
    pub fn signals(&self) -> Vec<SignalStatus> {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let status = board.iter().map(|(name, state)| {
            let (state, reason) = match state {
                State::Active => (SignalState::Active, String::new()),
                State::Degraded(reason) => (SignalState::Degraded, reason.clone()),
                State::Disabled(reason) => (SignalState::Disabled, reason.clone()),
                State::Unsupported(reason) => (SignalState::Unsupported, reason.clone()),
                State::Failed(reason) => (SignalState::Failed, reason.clone()),
            };
            SignalStatus { name: (*name).into(), state: state.into(), reason }
        });
        status.collect()
    }

    /// Whether at least one signal delivers. An agent with no probe attached is not ready.
    #[must_use]
    pub fn ready(&self) -> bool {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.values().any(|state| matches!(state, State::Active | State::Degraded(_)))
    }
}
