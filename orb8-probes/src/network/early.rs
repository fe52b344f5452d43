//! What pods send, counted at their sockets, by cgroup: for the time until the classifiers are
//! attached to their interfaces.
//!
//! It costs more than leaving such packets alone, so the agent says when it wants to know: while
//! pods start.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    helpers::generated::bpf_skb_cgroup_id,
    macros::map,
    maps::{Array, LruHashMap},
    programs::TcContext,
};
use orb8_common::network::{Counts, SOCKET_SENT_SIZE, SocketSent};

use super::{flows, skb};

/// By cgroup. Who is forgotten when it is full begins anew, and is then counted too low.
#[map]
static SOCKET_SENT: LruHashMap<u64, SocketSent> = LruHashMap::with_max_entries(SOCKET_SENT_SIZE, 0);
/// Not 0: the agent wants to know.
#[map]
static WATCH_SOCKETS: Array<u32> = Array::with_max_entries(1, 0);

/// The loopback's index in every network namespace. What goes there reaches no interface of ours.
const LOOPBACK: u32 = 1;

/// Counts what a socket outside the agent's network namespace sends.
#[inline(always)]
pub(super) fn note_sent(skb: *mut __sk_buff) {
    if WATCH_SOCKETS.get(0).is_none_or(|watch| *watch == 0) {
        return;
    }
    count(skb);
}

#[inline(never)]
fn count(skb: *mut __sk_buff) {
    // SAFETY: the context pointer is valid for the whole program.
    if unsafe { (*skb).ifindex } == LOOPBACK {
        return;
    }
    // SAFETY: the context is a valid skb.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    let counts = skb::weight(&TcContext::new(skb));
    let now = flows::now();
    if let Some(sent) = SOCKET_SENT.get_ptr_mut(cgroup) {
        return add(sent, &counts, now);
    }
    let first = SocketSent { counts, first_ns: flows::boot_ns(), last_jiffies: now };
    if SOCKET_SENT.insert(cgroup, first, u64::from(BPF_NOEXIST)).is_err() {
        // Another CPU was first; that entry lacks this packet.
        if let Some(sent) = SOCKET_SENT.get_ptr_mut(cgroup) {
            add(sent, &counts, now);
        }
    }
}

#[inline(always)]
fn add(sent: *mut SocketSent, counts: &Counts, now: u64) {
    // SAFETY: a value of the map, which stays mapped while the program runs.
    let sent = unsafe { &mut *sent };
    flows::atomic_add(&mut sent.counts, counts);
    sent.last_jiffies = now;
}
