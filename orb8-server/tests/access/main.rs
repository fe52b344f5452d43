//! Who is let in by a server, who is not, and what they are told: over real sockets, with
//! certificates made for the occasion and an API that knows tokens and rights.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

mod agents;
mod certificates;
mod scene;
mod streams;
mod tokens;
