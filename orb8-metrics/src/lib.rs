//! What orb8's daemons say of themselves: `/metrics`, `/healthz`, `/readyz`, and what they cost.

mod families;
mod format;
mod http;
mod port;
pub mod process;

pub use families::{Families, Label, Scrape, encode, one};
pub use http::{Source, serve};
pub use port::serve_router;
pub use prometheus_client::registry::Unit;
