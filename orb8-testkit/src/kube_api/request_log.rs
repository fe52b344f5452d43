//! What was asked, for tests that judge how a client behaves.

use std::time::Instant;

/// A request and the status of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    /// When it came.
    pub at: Instant,
    /// `GET`, …
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Decoded, in the request's order.
    pub query: Vec<(String, String)>,
    /// The `User-Agent` header; empty when there is none.
    pub user_agent: String,
    /// Status of the answer.
    pub status: u16,
}

impl LoggedRequest {
    /// A parameter of the query.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Whether it asks for a watch.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        matches!(self.parameter("watch"), Some("true" | "1"))
    }
}
