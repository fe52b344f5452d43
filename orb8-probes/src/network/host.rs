//! Packets at the sockets of the node itself: host processes and pods in the node's network
//! namespace.
//!
//! Unlike a classifier, a program at a cgroup runs with bottom halves on: another packet may come
//! between any two of its instructions. So nothing here uses what a CPU has only one of, and every
//! addition is atomic.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    helpers::generated::{bpf_get_netns_cookie, bpf_skb_cgroup_id, bpf_skb_load_bytes},
    macros::map,
    maps::{Array, HashMap},
    programs::{SkBuffContext, TcContext},
};
use orb8_common::network::{
    FlowKey4, FlowKey6, FlowStats, HOST_CGROUPS_SIZE, HOST_SOCKETS, UNLISTED, event_reasons,
    key_flags::{HOOK_EGRESS, MALFORMED},
    tcp_flags::{ACK, FIN, RST, SYN},
};

use super::{
    account::reasons_of,
    early,
    flows::{self, Family},
    key::{Key4, Key6},
    parse::{Header, Layer, Packet, Sighting, Visitor, parse},
    skb::{self, Linear},
};

/// Accounts of the cgroups whose sockets are the node's own, by cgroup id: written by the agent.
#[map]
static HOST_CGROUPS: HashMap<u64, u32> = HashMap::with_max_entries(HOST_CGROUPS_SIZE, 0);
/// The cookie of the agent's network namespace, which [`note_netns`] writes before the others run.
#[map]
static OWN_NETNS: Array<u64> = Array::with_max_entries(1, 0);

/// Takes the network namespace of the socket in `ctx` for the agent's.
#[inline(always)]
pub(crate) fn note_netns(ctx: &SkBuffContext) {
    if let Some(own) = OWN_NETNS.get_ptr_mut(0) {
        // SAFETY: the context is a valid skb, and `own` a live map value that only the agent's one run
        // of this program writes.
        unsafe { *own = bpf_get_netns_cookie(ctx.skb.skb.cast()) };
    }
}

/// In which network namespace a socket has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Netns {
    /// In the agent's. Then it is the node's own, whether its cgroup is listed or not.
    Own,
    /// In any: the list has to be right.
    Any,
}

/// Counts the packet in `ctx` if its socket is the node's own.
#[inline(always)]
pub(crate) fn account(ctx: &SkBuffContext, netns: Netns, direction: u8) {
    let skb = ctx.skb.skb;
    // Most sockets of a node are its pods', and leave here.
    if netns == Netns::Own && !is_own(skb) {
        if direction == HOOK_EGRESS {
            early::note_sent(skb);
        }
        return;
    }
    // SAFETY: the context is a valid skb.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    // SAFETY: the agent replaces values and does not change them.
    let account = match (unsafe { HOST_CGROUPS.get(cgroup) }, netns) {
        (Some(account), _) => *account,
        (None, Netns::Own) => UNLISTED,
        (None, Netns::Any) if direction == HOOK_EGRESS => return early::note_sent(skb),
        (None, Netns::Any) => return,
    };
    let packet = TcContext::new(skb);
    let ifindex = HOST_SOCKETS | account;
    parse(
        &Linear::of(&packet),
        sighting(skb, ifindex, direction),
        FirstLook { skb, ifindex, direction },
    );
}

#[inline(always)]
fn is_own(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is a valid skb.
    let cookie = unsafe { bpf_get_netns_cookie(skb.cast()) };
    OWN_NETNS.get(0).is_some_and(|own| *own == cookie)
}

/// Packets begin with the network header, and VLAN tags are the interface's.
#[inline(always)]
fn sighting(skb: *mut __sk_buff, ifindex: u32, direction: u8) -> Sighting {
    // SAFETY: the context pointer is valid for the whole program.
    let protocol = unsafe { (*skb).protocol };
    Sighting { layer: Layer::Network(u16::from_be(protocol as u16)), ifindex, direction, vlan: 0 }
}

/// Headers are read where they lie.
struct FirstLook {
    skb: *mut __sk_buff,
    ifindex: u32,
    direction: u8,
}

impl Visitor for FirstLook {
    #[inline(always)]
    fn ipv4(self, key: FlowKey4, tcp_flags: u8) {
        if key.flags & MALFORMED != 0 {
            return look_again(self.skb, self.ifindex, self.direction);
        }
        count(self.skb, &Key4::from(key), tcp_flags);
    }

    #[inline(always)]
    fn ipv6(self, key: FlowKey6, tcp_flags: u8) {
        if key.flags & MALFORMED != 0 {
            return look_again(self.skb, self.ifindex, self.direction);
        }
        count(self.skb, &Key6::from(key), tcp_flags);
    }

    #[inline(always)]
    fn other(self, _key: FlowKey4) {
        look_again(self.skb, self.ifindex, self.direction);
    }
}

/// Headers outside the linear area, extension headers, and what is really malformed.
#[inline(never)]
fn look_again(skb: *mut __sk_buff, ifindex: u32, direction: u8) {
    parse(&Loaded { skb }, sighting(skb, ifindex, direction), SecondLook { skb });
}

struct SecondLook {
    skb: *mut __sk_buff,
}

impl Visitor for SecondLook {
    #[inline(always)]
    fn ipv4(self, key: FlowKey4, tcp_flags: u8) {
        count(self.skb, &Key4::from(key), tcp_flags);
    }

    #[inline(always)]
    fn ipv6(self, key: FlowKey6, tcp_flags: u8) {
        count(self.skb, &Key6::from(key), tcp_flags);
    }

    #[inline(always)]
    fn other(self, key: FlowKey4) {
        count(self.skb, &Key4::from(key), 0);
    }
}

/// Furthest byte that is looked at, as where packets are copied.
const FURTHEST: usize = 256;

/// A packet whose headers are copied one by one: a copy of all of them has no place but the stack,
/// which is too small.
struct Loaded {
    skb: *mut __sk_buff,
}

impl Packet for Loaded {
    const FIRST_LOOK: bool = false;
    const BY_CALLS: bool = true;

    #[inline(always)]
    fn header<T: Header>(&self, offset: usize) -> Option<T> {
        if offset > FURTHEST - size_of::<T>() {
            return None;
        }
        let mut header = MaybeUninit::<T>::uninit();
        // SAFETY: `header` has as many bytes as are asked for. The kernel checks that the packet has.
        let copied = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                offset as u32,
                header.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        // SAFETY: all of it was written, and any bytes are a header.
        (copied == 0).then(|| unsafe { header.assume_init() })
    }
}

/// Counts a packet in its flow's entry.
#[inline(never)]
fn count<K: Family>(skb: *mut __sk_buff, key: &K, tcp_flags: u8) {
    let now = flows::now();
    let counts = skb::weight(&TcContext::new(skb));
    let (entry, new) = match key.entry() {
        Some(entry) => {
            flows::add(entry, &counts, now);
            if tcp_flags & (SYN | FIN | RST) == 0 {
                return;
            }
            flows::note_life(entry, tcp_flags);
            (entry, 0)
        }
        None if flows::known_full::<K>(now) => return flows::overflow_on_demand(key, &counts),
        None => {
            // On the stack, because another packet may come in between.
            let first = FlowStats {
                counts,
                last_jiffies: now,
                first_ns: flows::boot_ns(),
                // SAFETY: the context is a valid skb.
                cgroup_id: unsafe { bpf_skb_cgroup_id(skb) },
                syn: u8::from(tcp_flags & (SYN | ACK) == SYN),
                fin: u8::from(tcp_flags & FIN != 0),
                rst: u8::from(tcp_flags & RST != 0),
                syn_ack: u8::from(tcp_flags & (SYN | ACK) == SYN | ACK),
                reserved: [0; 4],
            };
            let inserted = K::table().insert(key.as_ref(), &first, u64::from(BPF_NOEXIST)).is_ok();
            let Some(entry) = key.entry() else {
                flows::note_full::<K>(now);
                return flows::overflow_on_demand(key, &counts);
            };
            if !inserted {
                // Somebody else was first: that entry lacks this packet.
                flows::add(entry, &counts, now);
                flows::note_life(entry, tcp_flags);
            }
            (entry, event_reasons::NEW)
        }
    };
    flows::report(key, entry, new | reasons_of(tcp_flags), tcp_flags);
}
