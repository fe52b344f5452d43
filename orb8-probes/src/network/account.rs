//! Counting a packet: combine a run of packets of one flow per CPU, else write through.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    helpers::generated::bpf_skb_cgroup_id,
    programs::TcContext,
};
use orb8_common::network::{
    Counts, FlowKey4, FlowKey6, FlowStats, event_reasons,
    key_flags::{HOOK_EGRESS, MALFORMED},
    tcp_flags::{FIN, RST, SYN},
};

use super::{
    flows::{self, Family, Last},
    parse::{Visitor, parse, unreadable},
    skb::{self, Copied, Device, Linear},
};

/// Counts the packet in `ctx`.
#[inline(always)]
pub(crate) fn account(ctx: &TcContext, device: Device, direction: u8) {
    let at = skb::sighting(ctx, device, direction);
    parse(&Linear::of(ctx), at, FirstLook { ctx, device, direction });
}

/// Headers are read where they lie. Most packets end here.
struct FirstLook<'a> {
    ctx: &'a TcContext,
    device: Device,
    direction: u8,
}

impl Visitor for FirstLook<'_> {
    #[inline(always)]
    fn ipv4(self, key: FlowKey4, tcp_flags: u8) {
        if key.flags & MALFORMED != 0 {
            return look_again(self.ctx, self.device, self.direction);
        }
        combine(self.ctx, &key, tcp_flags);
    }

    #[inline(always)]
    fn ipv6(self, key: FlowKey6, tcp_flags: u8) {
        if key.flags & MALFORMED != 0 {
            return look_again(self.ctx, self.device, self.direction);
        }
        combine(self.ctx, &key, tcp_flags);
    }

    #[inline(always)]
    fn other(self, _key: FlowKey4) {
        look_again(self.ctx, self.device, self.direction);
    }
}

/// Headers outside the linear area, VLAN tags, extension headers, and what is really malformed.
#[inline(never)]
fn look_again(ctx: &TcContext, device: Device, direction: u8) {
    let at = skb::sighting(ctx, device, direction);
    match Copied::of(ctx) {
        Some(packet) => parse(&packet, at, SecondLook { ctx }),
        None => SecondLook { ctx }.other(unreadable(at)),
    }
}

struct SecondLook<'a> {
    ctx: &'a TcContext,
}

impl Visitor for SecondLook<'_> {
    #[inline(always)]
    fn ipv4(self, key: FlowKey4, tcp_flags: u8) {
        combine(self.ctx, &key, tcp_flags);
    }

    #[inline(always)]
    fn ipv6(self, key: FlowKey6, tcp_flags: u8) {
        combine(self.ctx, &key, tcp_flags);
    }

    #[inline(always)]
    fn other(self, key: FlowKey4) {
        combine(self.ctx, &key, 0);
    }
}

/// This CPU's slot for packets of `key`'s direction.
#[inline(always)]
fn last_of<K: Family>(key: &K) -> Option<&'static mut K::Last> {
    let slot = u32::from(key.key_flags() & HOOK_EGRESS);
    // SAFETY: this CPU's value of a live map. Classifiers run with bottom halves off, so no other
    // run of this program comes between.
    K::slots().get_ptr_mut(slot).map(|last| unsafe { &mut *last })
}

#[inline(always)]
fn combine<K: Family>(ctx: &TcContext, key: &K, tcp_flags: u8) {
    let Some(last) = last_of(key) else { return };
    let now = flows::now();
    if tcp_flags & (SYN | FIN | RST) == 0 && last.fresh(now) && last.key().same(key) {
        let weight = skb::weight(ctx);
        let pending = last.pending();
        pending.packets += weight.packets;
        pending.bytes += weight.bytes;
        pending.extra_segments += weight.extra_segments;
        last.touch(now);
    } else {
        write_through(ctx.skb.skb, key, tcp_flags, last);
    }
}

/// Settles the run before, counts this packet in its own entry, and starts a run with it.
///
/// Takes few arguments and asks for the rest again: what it is given would lie on its caller's
/// stack, and all frames together have 512 bytes.
#[inline(never)]
fn write_through<K: Family>(skb: *mut __sk_buff, key: &K, tcp_flags: u8, last: &mut K::Last) {
    let ctx = TcContext::new(skb);
    let packet = Sample { counts: skb::weight(&ctx), now: flows::now(), tcp_flags };
    if last.pending().packets != 0 {
        settle::<K>(last, packet.now);
    }
    let (entry, new) = match K::table().get_ptr_mut(key) {
        Some(entry) => {
            flows::add(entry, &packet.counts, packet.now, tcp_flags);
            (Some(entry), 0)
        }
        None => (first_packet(&ctx, key, &packet), event_reasons::NEW),
    };
    let Some(entry) = entry else {
        flows::overflow(key, &packet.counts);
        last.release();
        return;
    };
    last.hand_to(key, packet.now);
    let reasons = new | reasons_of(tcp_flags);
    if reasons != 0 {
        flows::report(key, entry, reasons, tcp_flags);
    }
}

/// One packet as far as its flow's counters care.
struct Sample {
    counts: Counts,
    now: u64,
    tcp_flags: u8,
}

#[inline(always)]
const fn reasons_of(tcp_flags: u8) -> u8 {
    let mut reasons = 0;
    if tcp_flags & SYN != 0 {
        reasons |= event_reasons::SYN;
    }
    if tcp_flags & FIN != 0 {
        reasons |= event_reasons::FIN;
    }
    if tcp_flags & RST != 0 {
        reasons |= event_reasons::RST;
    }
    reasons
}

/// Moves what waits in the slot to its flow.
#[inline(always)]
fn settle<K: Family>(last: &mut K::Last, now: u64) {
    let waiting = *last.pending();
    // No entry: the interface is gone, and the agent took what waited when it removed the flow.
    if let Some(entry) = K::table().get_ptr_mut(last.key()) {
        flows::add(entry, &waiting, now, 0);
    }
}

/// Makes the entry of a flow that has none. `None`: there is no room.
#[inline(always)]
fn first_packet<K: Family>(ctx: &TcContext, key: &K, packet: &Sample) -> Option<*mut FlowStats> {
    if flows::known_full::<K>(packet.now) {
        return None;
    }
    let stats = flows::new_entry()?;
    stats.counts = packet.counts;
    stats.last_jiffies = packet.now;
    stats.first_ns = flows::boot_ns();
    // SAFETY: the context is a valid skb.
    stats.cgroup_id = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    stats.syn = u8::from(packet.tcp_flags & SYN != 0);
    stats.fin = u8::from(packet.tcp_flags & FIN != 0);
    stats.rst = u8::from(packet.tcp_flags & RST != 0);
    let inserted = K::table().insert(key, &*stats, u64::from(BPF_NOEXIST)).is_ok();
    let entry = K::table().get_ptr_mut(key);
    match (inserted, entry) {
        (true, _) => entry,
        // Another CPU was first: its entry lacks this packet.
        (false, Some(other)) => {
            flows::add(other, &packet.counts, packet.now, packet.tcp_flags);
            entry
        }
        (false, None) => {
            flows::note_full::<K>(packet.now);
            None
        }
    }
}
