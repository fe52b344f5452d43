//! Requests that were refused: counted, and logged so that nobody can fill the log.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tonic::{Code, Status};

use super::Want;

/// Between two lines of the log about one reason.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Every reason, as metrics have them.
const REASONS: [&str; 4] = ["unauthenticated", "permission_denied", "unavailable", "invalid"];

/// What was refused so far.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    inner: Mutex<[Reason; REASONS.len()]>,
}

#[derive(Debug, Default)]
struct Reason {
    count: u64,
    logged: Option<Instant>,
    /// Without a line of their own, since then.
    since: u64,
}

impl Refusals {
    pub(super) fn counts(&self) -> Vec<(&'static str, u64)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        REASONS.into_iter().zip(inner.iter().map(|reason| reason.count)).collect()
    }

    /// Counts a refusal, and logs it unless one for the same reason was logged just now.
    pub(super) fn note(&self, from: &str, want: &Want, status: &Status) {
        let index = match status.code() {
            Code::Unauthenticated => 0,
            Code::PermissionDenied => 1,
            Code::Unavailable => 2,
            _ => 3,
        };
        let more = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let reason = &mut inner[index];
            reason.count += 1;
            let now = Instant::now();
            if reason.logged.is_some_and(|at| now.duration_since(at) < LOG_INTERVAL) {
                reason.since += 1;
                return;
            }
            reason.logged = Some(now);
            std::mem::take(&mut reason.since)
        };
        let (kind, why) = (REASONS[index], status.message());
        // Escaped: both may say what a client wrote.
        let from = if from.is_empty() { "a client" } else { from };
        tracing::warn!(reason = kind, unlogged = more, "{from}: refused {want}: {why:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted() {
        let refusals = Refusals::default();
        let statuses = [
            Status::unauthenticated("a"),
            Status::permission_denied("b"),
            Status::unauthenticated("c"),
            Status::unavailable("d"),
        ];
        for status in &statuses {
            refusals.note("", &Want::Nodes, status);
        }
        let expected =
            [("unauthenticated", 2), ("permission_denied", 1), ("unavailable", 1), ("invalid", 0)];
        assert_eq!(refusals.counts(), expected);
    }
}
