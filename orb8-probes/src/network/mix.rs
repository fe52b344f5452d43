//! Traffic of many flows for benchmarks, where one call has many runs but a single packet.

use aya_ebpf::programs::TcContext;

/// Makes the packet one of another flow, by its source address.
///
/// `mark` numbers the packets. `priority` says how many flows there are, in its low 24 bits, and how
/// many packets in a row are of the same one, as a power of two, in its high 8.
#[inline(always)]
pub(crate) fn next_flow(ctx: &TcContext) {
    /// 2^32 divided by the golden ratio: its multiples are spread evenly, in no visible order.
    const STRIDE: u32 = 0x9e37_79b1;
    const IPV4_SRC: usize = 14 + 12;
    const IPV6_SRC_LAST_WORD: usize = 14 + 8 + 12;

    // SAFETY: the context pointer is valid for the whole program.
    let skb = unsafe { &mut *ctx.skb.skb };
    let number = skb.mark;
    skb.mark = number.wrapping_add(1);
    let turn = number.wrapping_shr(skb.priority >> 24).wrapping_mul(STRIDE);
    let flow = u64::from(turn) * u64::from(skb.priority & 0xff_ffff) >> 32;

    let is_ipv4 = u16::from_be(skb.protocol as u16) == 0x0800;
    let word = ctx.data() + if is_ipv4 { IPV4_SRC } else { IPV6_SRC_LAST_WORD };
    if word + size_of::<u32>() <= ctx.data_end() {
        // SAFETY: within the packet by the check above. Volatile, so that what reads the packet
        // next does read it.
        unsafe { core::ptr::write_volatile(word as *mut u32, (flow as u32).to_be()) };
    }
}
