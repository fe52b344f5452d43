//! What crosses the kernel border, and nothing else.
//!
//! Every type here is plain bytes with one layout in the BPF object and in the agent: fixed-width
//! integers, `repr(C)`, no implicit padding (derived and checked by `zerocopy`), and a size that is
//! asserted at compile time. Both halves of a signal import the same module under the same name.
#![no_std]

pub mod cgroup;
pub mod drops;
pub mod network;
pub mod pods;
pub mod record;
pub mod syscall;

pub use record::Record;
