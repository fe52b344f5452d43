//! A packet as the kernel hands it to a classifier.

use core::arch::asm;

use aya_ebpf::{helpers::bpf_skb_load_bytes, macros::map, maps::PerCpuArray, programs::TcContext};
use orb8_common::network::{Counts, VLAN_PRESENT};

use super::parse::{Header, Layer, Packet, Sighting};

/// What the packets of a device begin with. Known per device, so there is a program for each.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    Ethernet,
    Network,
}

/// Bytes of a packet that are looked at where its headers are not in the linear area.
const COPIED: usize = 256;

#[map]
static HEADERS: PerCpuArray<[u64; COPIED / 8]> = PerCpuArray::with_max_entries(1, 0);

/// What the packet weighs, as the interface counts. `skb->len` includes the link header at both
/// hooks.
#[inline(always)]
pub(crate) fn weight(ctx: &TcContext) -> Counts {
    // SAFETY: the context pointer is valid for the whole program.
    let skb = unsafe { &*ctx.skb.skb };
    let segments = u64::from(skb.gso_segs);
    Counts { packets: 1, bytes: u64::from(skb.len), extra_segments: segments.saturating_sub(1) }
}

/// Where the packet was seen.
#[inline(always)]
pub(crate) fn sighting(ctx: &TcContext, device: Device, direction: u8) -> Sighting {
    // SAFETY: the context pointer is valid for the whole program.
    let skb = unsafe { &*ctx.skb.skb };
    let layer = match device {
        Device::Ethernet => Layer::Ethernet,
        Device::Network => Layer::Network(u16::from_be(skb.protocol as u16)),
    };
    let vlan = if skb.vlan_present != 0 { skb.vlan_tci as u16 & 0xfff | VLAN_PRESENT } else { 0 };
    Sighting { layer, ifindex: skb.ifindex, direction, vlan }
}

/// The linear area of the packet, read in place.
pub(crate) struct Linear {
    start: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }
}

/// Furthest offset that is read in place; the verifier wants a bound on packet offsets.
const MAX_OFFSET: usize = 0x3fff;

impl Packet for Linear {
    const FIRST_LOOK: bool = true;

    #[inline(always)]
    fn header<T: Header>(&self, offset: usize) -> Option<T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: within the packet by the check above. Headers may lie unaligned; the targets
        // that run eBPF load them all the same, and the verifier refuses where they would not.
        Some(unsafe { *(at as *const T) })
    }
}

/// The first bytes of a packet in [`HEADERS`].
///
/// Headers that lie outside the linear area are copied, not pulled: an observer moves nothing.
pub(crate) struct Copied {
    start: *const u8,
    length: usize,
}

impl Copied {
    #[inline(always)]
    pub(crate) fn of(ctx: &TcContext) -> Option<Self> {
        let buffer = HEADERS.get_ptr_mut(0)?;
        let length = (ctx.len() as usize).min(COPIED);
        if length == 0 {
            return None;
        }
        let mut last = length - 1;
        // Older verifiers (those of 5.10 and 6.1) learn nothing from a comparison with zero: the
        // helper might be asked for no bytes. A mask they understand; LLVM finds it superfluous.
        // SAFETY: changes that one register only.
        unsafe {
            asm!("{last} &= {mask}", last = inout(reg) last, mask = const COPIED - 1,
                options(pure, nomem, nostack));
        }
        let length = last + 1;
        // SAFETY: `buffer` holds COPIED bytes and `length` is at most that.
        let copied =
            unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, buffer.cast(), length as u32) };
        (copied == 0).then_some(Self { start: buffer.cast(), length })
    }
}

impl Packet for Copied {
    const FIRST_LOOK: bool = false;

    #[inline(always)]
    fn header<T: Header>(&self, offset: usize) -> Option<T> {
        if offset > COPIED - size_of::<T>() || offset + size_of::<T>() > self.length {
            return None;
        }
        // SAFETY: within the buffer by the check above; alignment as in `Linear`.
        Some(unsafe { *(self.start.add(offset) as *const T) })
    }
}
