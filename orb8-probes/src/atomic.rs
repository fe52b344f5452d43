//! The one atomic that every kernel with ring buffers has. Rust's atomics need compare-and-swap,
//! which the target does not promise.

use core::arch::asm;

/// Adds to a word of a map value that other CPUs may add to at the same moment.
#[inline(always)]
pub(crate) fn fetch_add(counter: &mut u64, n: u64) {
    // SAFETY: an aligned word of a live map value.
    unsafe {
        asm!("lock *(u64 *)({at} + 0) += {n}", at = in(reg) counter, n = in(reg) n);
    }
}
