//! The built binary, run as a user runs it: its output, its exit codes, its last words.

#![expect(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod cluster;
mod fake_agent;
mod history;
mod port_forward;
mod query;
mod syscalls;
mod trace;
mod usage;
