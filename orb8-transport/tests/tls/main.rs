//! Servers and clients of this crate over real sockets, with certificates made for the occasion.

#![expect(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod attacks;
mod pki;
mod refusals;
mod rotation;
mod served;
mod services;
