//! orb8's server: knows every agent of a cluster and answers for all of them.
//!
//! It keeps no data of its own. A question goes to the agents that may know, with its filter and
//! its limit, and what they answer by the deadline is merged; the answer names those that did not.

pub mod access;
pub mod agents;
mod aggregator;
mod api;
mod cluster;
pub mod config;
pub mod discovery;
mod grpc;
mod losses;
mod metrics;
mod query;
mod server;
mod stream;

pub use server::{Server, StartError, StopReport};
