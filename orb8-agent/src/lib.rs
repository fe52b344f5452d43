//! orb8's node agent: loads the probes, names what they see, serves it.
//!
//! The stages are small tools that know no signal (load, collect, enrich, aggregate, serve); each
//! signal is a folder below [`signals`] that uses them.

mod agent;
pub mod aggregator;
mod api_server;
pub mod clock;
pub mod collector;
pub mod config;
pub mod enricher;
pub mod k8s;
pub mod ledger;
pub mod live;
pub mod netlink;
pub mod probe_loader;
mod prom_exporter;
mod query;
pub mod signals;
pub mod status;
pub mod tasks;
mod tcp_server;
mod totals;

pub use agent::{Agent, StartError, StopReport};
