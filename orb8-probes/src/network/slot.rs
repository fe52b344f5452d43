//! The run of packets of one flow that a CPU is combining.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{macros::map, maps::PerCpuArray};
use orb8_common::network::{Counts, FlowStats, LastFlow4, LastFlow6};

use super::{
    flows::{self, Family},
    key::{Key, Key4, Key6},
};

/// A slot is reused for this long at most, so that an idle flow's entry can be removed without a
/// packet that still counts on it.
const SLOT_LIFE_JIFFIES: u64 = 4;

/// Per direction: data and acknowledgements alternate, and would push each other out.
#[map]
pub(super) static LAST_V4: PerCpuArray<Slot<Key4>> = PerCpuArray::with_max_entries(2, 0);
#[map]
pub(super) static LAST_V6: PerCpuArray<Slot<Key6>> = PerCpuArray::with_max_entries(2, 0);

/// [`LastFlow4`] or [`LastFlow6`], with the key in words.
#[repr(C)]
pub(super) struct Slot<K> {
    settled: u64,
    key: K,
    pending: Counts,
    life: u64,
    last_jiffies: u64,
    loaded_jiffies: u64,
    opened: u64,
}

macro_rules! same_layout {
    ($slot:ty, $record:ty, $($field:ident),+) => {
        const _: () = assert!(size_of::<$slot>() == size_of::<$record>());
        $(const _: () = assert!(offset_of!($slot, $field) == offset_of!($record, $field));)+
    };
}

same_layout!(
    Slot<Key4>,
    LastFlow4,
    settled,
    key,
    pending,
    life,
    last_jiffies,
    loaded_jiffies,
    opened
);
same_layout!(
    Slot<Key6>,
    LastFlow6,
    settled,
    key,
    pending,
    life,
    last_jiffies,
    loaded_jiffies,
    opened
);

/// This CPU's slot for packets of `key`'s direction.
#[inline(always)]
pub(super) fn slot_of<K: Family>(key: &K) -> Option<&'static mut Slot<K>> {
    // SAFETY: this CPU's value of a live map. Classifiers run with bottom halves off, so no other
    // run of this program comes between.
    K::slots().get_ptr_mut(key.direction()).map(|slot| unsafe { &mut *slot })
}

impl<K: Family> Slot<K> {
    /// Whether a packet of `key` continues the run.
    #[inline(always)]
    pub(super) fn continues(&self, key: &K, now: u64) -> bool {
        now - self.loaded_jiffies < SLOT_LIFE_JIFFIES && self.key.same(key)
    }

    /// One more packet of the run.
    #[inline(always)]
    pub(super) fn count(&mut self, packet: &Counts, now: u64) {
        self.pending.packets += packet.packets;
        self.pending.bytes += packet.bytes;
        self.pending.extra_segments += packet.extra_segments;
        self.last_jiffies = now;
    }

    /// Ends the run: what waits here moves to its flow. The slot is open until it is handed on or
    /// released.
    #[inline(always)]
    pub(super) fn settle(&mut self, now: u64) {
        // A reader on another CPU trusts the slot only while both numbers agree. That must end
        // before the flow's entry gets what the slot still shows, or the reader has it twice.
        self.opened = self.settled + 1;
        barrier();
        if self.pending.packets != 0 {
            // No entry, or one of a later life: its owner is gone, and the agent took what
            // waited when it removed the flow.
            if let Some(entry) = self.key.entry()
                && flows::life(entry) == self.life
            {
                flows::add(entry, &self.pending, now);
            }
            self.pending = Counts { packets: 0, bytes: 0, extra_segments: 0 };
        }
    }

    /// Starts a run of `key`, whose entry is `entry`, in a settled slot.
    #[inline(always)]
    pub(super) fn hand_to(&mut self, key: &K, entry: *const FlowStats, now: u64) {
        self.key = *key;
        self.life = flows::life(entry);
        self.last_jiffies = now;
        self.loaded_jiffies = now;
        barrier();
        self.settled = self.opened;
    }

    /// Nothing waits in this settled slot, and nothing may until it is handed to a flow.
    #[inline(always)]
    pub(super) fn release(&mut self) {
        self.loaded_jiffies = 0;
        barrier();
        self.settled = self.opened;
    }
}

/// Keeps the compiler from moving a write to the other side. Volatile writes would not do: only
/// among themselves are they kept in order.
#[inline(always)]
fn barrier() {
    // SAFETY: no instruction at all.
    unsafe { asm!("") };
}
