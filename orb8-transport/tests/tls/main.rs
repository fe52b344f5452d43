//! Servers and clients of this crate over real sockets, with certificates made for the occasion.

mod attacks;
mod pki;
mod refusals;
mod rotation;
mod served;
mod services;
