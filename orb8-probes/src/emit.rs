//! Emitting event records, and counting those that could not be.

use core::arch::asm;

use aya_ebpf::{
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use orb8_common::{Record, drops::Drop};

/// `BPF_RB_NO_WAKEUP`: the reader comes by a timer. A wake-up would cost the traced task 5 µs and
/// more.
pub(crate) const BY_TIMER: u64 = 1;
/// The reader is woken up, unless it still has something to read.
pub(crate) const WAKE_UP: u64 = 0;

/// One counter per [`Drop`] slot.
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Drop::SLOTS, 0);

/// Has `fill` write a record in the ring itself, or counts that there was no room.
#[inline(always)]
pub(crate) fn emit<T: Record>(ring: &RingBuf, wake_up: u64, fill: impl FnOnce(&mut T)) {
    count(Drop::EventsSeen, 1);
    match ring.reserve::<T>(0) {
        Some(mut entry) => {
            // SAFETY: any bits are a `Record`, and `fill` overwrites what the ring held before.
            fill(unsafe { entry.assume_init_mut() });
            entry.submit(wake_up);
        }
        None => count(Drop::RingFull, 1),
    }
}

/// Adds `n` to a slot of this CPU, atomically: programs at sockets can be interrupted by others.
#[inline(always)]
pub(crate) fn count(slot: Drop, n: u64) {
    if let Some(counter) = DROPS.get_ptr_mut(slot as u32) {
        // SAFETY: a live map value.
        fetch_add(unsafe { &mut *counter }, n);
    }
}

/// The one atomic that every kernel with ring buffers has. Rust's atomics need compare-and-swap,
/// which the target does not promise.
#[inline(always)]
pub(crate) fn fetch_add(counter: &mut u64, n: u64) {
    // SAFETY: an aligned word of a live map value.
    unsafe {
        asm!("lock *(u64 *)({at} + 0) += {n}", at = in(reg) counter, n = in(reg) n);
    }
}
