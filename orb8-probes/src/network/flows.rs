//! The maps of the network signal, each behind the functions that use it.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use orb8_common::{
    drops::Drop,
    network::{
        Counts, FlowKey4, FlowKey6, FlowStats, HOST_SOCKETS, NetworkFlowEvent, OverflowKey, Pulse,
        family, tcp_flags,
    },
};

use super::{
    key::{Key, Key4, Key6},
    slot::{LAST_V4, LAST_V6, Slot},
};
use crate::{
    emit::{self, fetch_add},
    filter::{self, Whose},
};

/// Entries per family unless the loader says otherwise. A full table costs detail, never a total.
const FLOW_TABLE_SIZE: u32 = 65_536;
/// Two per interface, which the agent creates before it attaches, and up to two per account of
/// sockets, which are made when they are needed.
const OVERFLOW_SIZE: u32 = 8_192;
/// Bytes unless the loader says otherwise.
const RING_SIZE: u32 = 1 << 20;
#[map]
static FLOWS_V4: HashMap<FlowKey4, FlowStats> = HashMap::with_max_entries(FLOW_TABLE_SIZE, 0);
#[map]
static FLOWS_V6: HashMap<FlowKey6, FlowStats> = HashMap::with_max_entries(FLOW_TABLE_SIZE, 0);
#[map]
static OVERFLOW: HashMap<OverflowKey, Counts> = HashMap::with_max_entries(OVERFLOW_SIZE, 0);
/// Per family: the jiffy in which this CPU last found the table full.
#[map]
static FULL_AT: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);
#[map]
static FLOW_EVENTS: RingBuf = RingBuf::with_byte_size(RING_SIZE, 0);
/// Whose cgroup an interface is, where it is a pod's: written by the agent.
#[map]
static INTERFACE_PODS: HashMap<u32, u64> = HashMap::with_max_entries(OVERFLOW_SIZE, 0);
#[map]
static PULSE: Array<Pulse> = Array::with_max_entries(1, 0);

/// Where a new entry is put together: the stack has no room for it.
#[map]
static NEW_ENTRY: PerCpuArray<FlowStats> = PerCpuArray::with_max_entries(1, 0);

/// What differs between IPv4 and IPv6.
pub(super) trait Family: Key + AsRef<Self::Record> {
    /// The key of the table.
    type Record: 'static;
    const FAMILY: u8;
    const FULL_SLOT: u32;

    fn table() -> &'static HashMap<Self::Record, FlowStats>;
    fn slots() -> &'static PerCpuArray<Slot<Self>>;
    fn widen(&self) -> FlowKey6;

    /// The flow's entry.
    #[inline(always)]
    fn entry(&self) -> Option<*mut FlowStats> {
        Self::table().get_ptr_mut(self.as_ref())
    }
}

macro_rules! family {
    ($key:ty, $record:ty, $table:ident, $slots:ident, $family:expr, $full:literal, $widen:expr) => {
        impl Family for $key {
            type Record = $record;
            const FAMILY: u8 = $family;
            const FULL_SLOT: u32 = $full;

            #[inline(always)]
            fn table() -> &'static HashMap<$record, FlowStats> {
                &$table
            }
            #[inline(always)]
            fn slots() -> &'static PerCpuArray<Slot<Self>> {
                &$slots
            }
            #[inline(always)]
            fn widen(&self) -> FlowKey6 {
                $widen(self.as_ref())
            }
        }
    };
}

family!(Key4, FlowKey4, FLOWS_V4, LAST_V4, family::V4, 0, FlowKey4::widen);
family!(Key6, FlowKey6, FLOWS_V6, LAST_V6, family::V6, 1, |key: &FlowKey6| *key);

/// `bpf_jiffies64`; the kernel's compiler makes it a load.
#[inline(always)]
pub(super) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() }
}

/// Nanoseconds since boot, suspend included.
#[inline(always)]
pub(super) fn boot_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// This CPU's scratch entry.
#[inline(always)]
pub(super) fn new_entry() -> Option<&'static mut FlowStats> {
    // SAFETY: this CPU's value of a live map, used by one run of the program at a time.
    NEW_ENTRY.get_ptr_mut(0).map(|entry| unsafe { &mut *entry })
}

/// Tells two lives of one key apart.
#[inline(always)]
pub(super) fn life(entry: *const FlowStats) -> u64 {
    // SAFETY: `entry` is a value of the flow table, which stays mapped while the program runs.
    unsafe { (*entry).first_ns }
}

/// Adds to a flow's entry; other CPUs may do the same at this moment.
#[inline(always)]
pub(super) fn add(entry: *mut FlowStats, counts: &Counts, now: u64) {
    // SAFETY: `entry` is a value of the flow table, which stays mapped while the program runs.
    let stats = unsafe { &mut *entry };
    atomic_add(&mut stats.counts, counts);
    stats.last_jiffies = now;
}

/// Notes in a flow's entry what a packet's TCP flags say about its life.
#[inline(always)]
pub(super) fn note_life(entry: *mut FlowStats, flags: u8) {
    // SAFETY: `entry` is a value of the flow table, which stays mapped while the program runs.
    let stats = unsafe { &mut *entry };
    if flags & tcp_flags::SYN != 0 {
        if flags & tcp_flags::ACK == 0 {
            stats.syn = 1;
        } else {
            stats.syn_ack = 1;
        }
    }
    if flags & tcp_flags::FIN != 0 {
        stats.fin = 1;
    }
    if flags & tcp_flags::RST != 0 {
        stats.rst = 1;
    }
}

/// Adds; other CPUs may do the same at this moment.
#[inline(always)]
pub(super) fn atomic_add(to: &mut Counts, counts: &Counts) {
    fetch_add(&mut to.packets, counts.packets);
    fetch_add(&mut to.bytes, counts.bytes);
    if counts.extra_segments != 0 {
        fetch_add(&mut to.extra_segments, counts.extra_segments);
    }
}

/// Whether this CPU found the table of `K` full in this very jiffy. Asking a full table again for
/// every packet would make overload dearer than the load.
#[inline(always)]
pub(super) fn known_full<K: Family>(now: u64) -> bool {
    // SAFETY: a live value of this CPU.
    FULL_AT.get_ptr(K::FULL_SLOT).is_some_and(|at| unsafe { *at } == now)
}

/// Remembers that the table of `K` was found full.
#[inline(always)]
pub(super) fn note_full<K: Family>(now: u64) {
    if let Some(at) = FULL_AT.get_ptr_mut(K::FULL_SLOT) {
        // SAFETY: a live value of this CPU.
        unsafe { *at = now };
    }
}

/// Counts packets that have no entry of their own, so that the interface's total stays whole.
#[inline(always)]
pub(super) fn overflow<K: Key>(key: &K, counts: &Counts) {
    emit::count(Drop::FlowTableFull, counts.packets);
    let (ifindex, direction) = (key.ifindex(), key.direction());
    match OVERFLOW.get_ptr_mut(OverflowKey { ifindex, direction }) {
        // SAFETY: a live map value.
        Some(total) => atomic_add(unsafe { &mut *total }, counts),
        None => emit::count(Drop::Uncounted, counts.packets),
    }
}

/// As [`overflow`], where nobody made the counter before. If there is no room for it, the packets
/// are counted as such.
#[inline(always)]
pub(super) fn overflow_on_demand<K: Key>(key: &K, counts: &Counts) {
    let (ifindex, direction) = (key.ifindex(), key.direction());
    let overflow = OverflowKey { ifindex, direction };
    if OVERFLOW.get_ptr(overflow).is_none() {
        // Another CPU may be first; what comes next finds out.
        let zero = Counts { packets: 0, bytes: 0, extra_segments: 0 };
        let _first = OVERFLOW.insert(overflow, zero, u64::from(BPF_NOEXIST));
    }
    self::overflow(key, counts);
}

/// Whom what an interface carries is about.
#[inline(always)]
fn whose(ifindex: u32) -> Whose {
    // SAFETY: the agent replaces values and does not change them.
    match unsafe { INTERFACE_PODS.get(ifindex) } {
        Some(cgroup) => Whose::Cgroup(*cgroup),
        // The agent lists the cgroups of pods on the host network here as soon as it counts their
        // sockets: any other socket is the node's own.
        None if ifindex & HOST_SOCKETS != 0 => Whose::Node,
        None => Whose::Unknown,
    }
}

/// Reports a moment of a flow's life, with its counters as they are now, if somebody wants it.
#[inline(always)]
pub(super) fn report<K: Family>(key: &K, entry: *const FlowStats, reasons: u8, tcp_flags: u8) {
    let ifindex = key.ifindex();
    if !filter::wants(|| whose(ifindex)) {
        return;
    }
    emit::emit(&FLOW_EVENTS, emit::BY_TIMER, |event: &mut NetworkFlowEvent| {
        event.key = key.widen();
        event.family = K::FAMILY;
        event.reasons = reasons;
        event.tcp_flags = tcp_flags;
        event.reserved = 0;
        // SAFETY: a live map value; its counters only grow, so a torn copy is merely early.
        event.stats = unsafe { *entry };
        event.timestamp_ns = boot_ns();
    });
}

/// Writes the kernel's clocks and the ring's fill where the agent reads them.
#[inline(always)]
pub(crate) fn pulse() {
    const BPF_RB_AVAIL_DATA: u64 = 0;
    let Some(pulse) = PULSE.get_ptr_mut(0) else { return };
    let now = Pulse {
        jiffies: self::now(),
        boot_ns: boot_ns(),
        ring_pending: FLOW_EVENTS.query(BPF_RB_AVAIL_DATA),
    };
    // SAFETY: a live map value; only the agent runs this program, one run at a time.
    unsafe { *pulse = now };
}
