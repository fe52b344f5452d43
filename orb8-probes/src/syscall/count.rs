//! Counting calls per cgroup and number, exactly.
//!
//! A cgroup that the agent gave a slot is counted in a per-CPU array, which costs a tenth of a hash
//! table; any other one in a hash table, from its first call.
//!
//! A slot changes hands while calls are made. Programs run in a read section of RCU, in microseconds
//! unless a hypervisor or the scheduler holds them, so whoever takes a slot back removes it from
//! `SYSCALL_SLOTS`, waits for the programs that run (a grace period of RCU: `membarrier(2)`, or far more
//! time than a run takes), changes the generation, and waits again. From then on the slot stands still:
//! what it shows is its old owner's, and the next owner's calls are what comes on top. So it is with an
//! entry of `SYSCALL_UNSLOTTED`: it is removed only when its cgroup has had a slot, or has been gone, for
//! as long.
//!
//! Of one program, a CPU runs one at a time; what that costs depends on the kind, see `tracepoint.rs`.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use orb8_common::{
    drops::Drop,
    syscall::{Current, NO_SLOT, NOBODY, NUMBERS, SyscallCounts, SyscallSettings, UnslottedKey},
};

use super::task::Cgroup;
use crate::emit::{self, fetch_add};

/// Slots unless the loader says otherwise: 2 KiB each per CPU.
const SLOTS: u32 = 256;
/// Entries of cgroups without a slot. When it is full their calls are nobody's, which is counted.
const UNSLOTTED: u32 = 8_192;

#[map]
static SYSCALL_COUNTS: PerCpuArray<SyscallCounts> = PerCpuArray::with_max_entries(SLOTS, 0);
/// Slot by cgroup: written by the agent.
#[map]
static SYSCALL_SLOTS: HashMap<u64, u32> = HashMap::with_max_entries(SLOTS, 0);
#[map]
static SYSCALL_UNSLOTTED: HashMap<UnslottedKey, u64> = HashMap::with_max_entries(UNSLOTTED, 0);
/// The cgroup that called last on this CPU.
#[map]
static SYSCALL_CURRENT: PerCpuArray<Current> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SYSCALL_SETTINGS: Array<SyscallSettings> = Array::with_max_entries(1, 0);

/// What the agent set.
#[inline(always)]
pub(super) fn settings() -> Option<&'static SyscallSettings> {
    SYSCALL_SETTINGS.get(0)
}

/// Counts a call; gives what this CPU remembers of the caller's cgroup.
#[inline(always)]
pub(super) fn count(cgroup: Cgroup, number: u32, generation: u32) -> Option<&'static mut Current> {
    // SAFETY: this CPU's value of a live map, used by one run of the program at a time.
    let current = SYSCALL_CURRENT.get_ptr_mut(0).map(|current| unsafe { &mut *current })?;
    if current.key != cgroup.key || current.generation != generation {
        look_up(current, cgroup.key, cgroup.id(), generation);
    }
    if current.slot == NO_SLOT {
        count_unslotted(current.cgroup_id, number);
    } else {
        count_in(current.slot, number);
    }
    Some(current)
}

#[inline(never)]
fn look_up(current: &mut Current, key: u64, cgroup_id: u64, generation: u32) {
    current.key = key;
    current.cgroup_id = cgroup_id;
    current.generation = generation;
    // SAFETY: the agent replaces values and does not change them.
    current.slot = unsafe { SYSCALL_SLOTS.get(cgroup_id) }.copied().unwrap_or(NO_SLOT);
}

#[inline(always)]
fn count_in(slot: u32, number: u32) {
    match SYSCALL_COUNTS.get_ptr_mut(slot) {
        // SAFETY: this CPU's value of a live map; the index is masked to its length.
        Some(counts) => unsafe { (*counts).calls[number as usize & (NUMBERS - 1)] += 1 },
        None => emit::count(Drop::Uncounted, 1),
    }
}

#[inline(never)]
fn count_unslotted(cgroup_id: u64, number: u32) {
    let key = UnslottedKey { cgroup_id, number, reserved: 0 };
    if let Some(calls) = SYSCALL_UNSLOTTED.get_ptr_mut(key) {
        // SAFETY: a live map value.
        return fetch_add(unsafe { &mut *calls }, 1);
    }
    if SYSCALL_UNSLOTTED.insert(key, 1, u64::from(BPF_NOEXIST)).is_ok() {
        return;
    }
    match SYSCALL_UNSLOTTED.get_ptr_mut(key) {
        // Another CPU was first. SAFETY: a live map value.
        Some(calls) => fetch_add(unsafe { &mut *calls }, 1),
        None => count_in(NOBODY, number),
    }
}
