//! What departs from what a workload usually calls.
//!
//! A [`Detector`] is fed with what containers call and with single calls that are told of; it knows
//! no kernel and no clock. Per *workload*, which is an owner's container with its image, it learns
//! the set of calls and how often they are made, and reports:
//!
//! - a call that the workload was never seen to make while it was learnt,
//! - a sensitive call, at any time,
//! - a rate far above everything in the workload's own history,
//! - errors at such a rate.
//!
//! A container's life has two parts. In the first, its *start*, it does what it never does again:
//! its runtime prepares it, its program loads. What is called then is learnt apart, from several
//! starts, and rates are not judged. What comes after is compared with what came after in others.
//!
//! Rates are those of one container, not of a workload, so that more replicas are no departure: a
//! workload's history has, per window, the rate of the busiest of its containers.
//!
//! A new image is a new workload: it may do other things, and is learnt anew.

mod baseline;
mod board;
mod callset;
mod container;
mod detector;
mod finding;
mod history;
mod judge;
mod metrics;
mod names;
mod runtime;
mod saved;
mod sensitive;
mod settings;
mod wire;
mod workload;

pub(crate) use detector::{Detector, Moment};
pub(crate) use finding::Finding;
pub(crate) use metrics::AnomalyMetrics;
pub(crate) use names::Names;
pub(crate) use runtime::Told;
pub(crate) use saved::{Saved, StateFile};
pub(crate) use settings::Settings;
pub(crate) use workload::Who;

#[cfg(test)]
mod replay;
#[cfg(test)]
mod tests;
