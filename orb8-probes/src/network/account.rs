//! Counting a packet: combine a run of packets of one flow per CPU, else write through.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    helpers::generated::bpf_skb_cgroup_id,
    programs::TcContext,
};
use orb8_common::network::{
    Counts, FlowKey4, FlowKey6, FlowStats, event_reasons,
    key_flags::MALFORMED,
    tcp_flags::{ACK, FIN, RST, SYN},
};

use super::{
    flows::{self, Family},
    key::{Key4, Key6},
    parse::{Visitor, parse, unreadable},
    skb::{self, Copied, Device, Linear},
    slot::{Slot, slot_of},
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
        combine(self.ctx, Key4::from(key), tcp_flags);
    }

    #[inline(always)]
    fn ipv6(self, key: FlowKey6, tcp_flags: u8) {
        if key.flags & MALFORMED != 0 {
            return look_again(self.ctx, self.device, self.direction);
        }
        combine(self.ctx, Key6::from(key), tcp_flags);
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
        combine(self.ctx, Key4::from(key), tcp_flags);
    }

    #[inline(always)]
    fn ipv6(self, key: FlowKey6, tcp_flags: u8) {
        combine(self.ctx, Key6::from(key), tcp_flags);
    }

    #[inline(always)]
    fn other(self, key: FlowKey4) {
        combine(self.ctx, Key4::from(key), 0);
    }
}

/// Counts a packet on its run, if it continues one, else in its flow's entry.
///
/// A call costs as much as a run's packet, so what most packets need is all in here.
#[inline(always)]
fn combine<K: Family>(ctx: &TcContext, key: K, tcp_flags: u8) {
    let Some(slot) = slot_of(&key) else { return };
    if tcp_flags & (SYN | FIN | RST) == 0 {
        let (now, counts) = (flows::now(), skb::weight(ctx));
        if slot.continues(&key, now) {
            return slot.count(&counts, now);
        }
        slot.settle(now);
        if let Some(entry) = key.entry() {
            flows::add(entry, &counts, now);
            return slot.hand_to(&key, entry, now);
        }
    }
    turn(ctx.skb.skb, &key, tcp_flags, slot);
}

/// Counts a packet that is a turn in its flow's life: the first one, a SYN, a FIN, a RST.
///
/// Takes few arguments and asks for the rest again: what it is given would lie on its caller's
/// stack, and all frames together have 512 bytes.
#[inline(never)]
fn turn<K: Family>(skb: *mut __sk_buff, key: &K, tcp_flags: u8, slot: &mut Slot<K>) {
    let ctx = TcContext::new(skb);
    let packet = Sample { counts: skb::weight(&ctx), now: flows::now(), tcp_flags };
    slot.settle(packet.now);
    let (entry, new) = match key.entry() {
        Some(entry) => {
            flows::add(entry, &packet.counts, packet.now);
            flows::note_life(entry, tcp_flags);
            (Some(entry), 0)
        }
        None => (first_packet(&ctx, key, &packet), event_reasons::NEW),
    };
    let Some(entry) = entry else {
        flows::overflow(key, &packet.counts);
        return slot.release();
    };
    slot.hand_to(key, entry, packet.now);
    flows::report(key, entry, new | reasons_of(tcp_flags), tcp_flags);
}

/// One packet as far as its flow's counters care.
struct Sample {
    counts: Counts,
    now: u64,
    tcp_flags: u8,
}

#[inline(always)]
pub(super) const fn reasons_of(tcp_flags: u8) -> u8 {
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
    stats.syn = u8::from(packet.tcp_flags & (SYN | ACK) == SYN);
    stats.fin = u8::from(packet.tcp_flags & FIN != 0);
    stats.rst = u8::from(packet.tcp_flags & RST != 0);
    stats.syn_ack = u8::from(packet.tcp_flags & (SYN | ACK) == SYN | ACK);
    let inserted = K::table().insert(key.as_ref(), &*stats, u64::from(BPF_NOEXIST)).is_ok();
    let entry = key.entry();
    match (inserted, entry) {
        (true, _) => entry,
        // Another CPU was first: its entry lacks this packet.
        (false, Some(other)) => {
            flows::add(other, &packet.counts, packet.now);
            flows::note_life(other, packet.tcp_flags);
            entry
        }
        (false, None) => {
            flows::note_full::<K>(packet.now);
            None
        }
    }
}
