//! Traffic of many flows for benchmarks, where one call has many runs but a single packet.

use aya_ebpf::programs::TcContext;

/// Makes the packet one of another flow: its source address ends with the number of the flow, and so
/// does its source port.
///
/// `mark` numbers the packets. `priority` says how many flows there are, in its low 24 bits, and how
/// many packets in a row are of the same one, as a power of two, in its high 8.
#[inline(always)]
pub(crate) fn next_flow(ctx: &TcContext) {
    /// 2^32 divided by the golden ratio: its multiples are spread evenly, in no visible order.
    const STRIDE: u32 = 0x9e37_79b1;
    /// Where the last word of the source address is, and the source port.
    const IPV4: (usize, usize) = (14 + 12, 14 + 20);
    const IPV6: (usize, usize) = (14 + 8 + 12, 14 + 40);

    // SAFETY: the context pointer is valid for the whole program.
    let skb = unsafe { &mut *ctx.skb.skb };
    let number = skb.mark;
    skb.mark = number.wrapping_add(1);
    let turn = number.wrapping_shr(skb.priority >> 24).wrapping_mul(STRIDE);
    let flow = u64::from(turn) * u64::from(skb.priority & 0xff_ffff) >> 32;

    let is_ipv4 = u16::from_be(skb.protocol as u16) == 0x0800;
    let (address, port) = if is_ipv4 { IPV4 } else { IPV6 };
    let start = ctx.data();
    if start + port + size_of::<u16>() <= ctx.data_end() {
        // Volatile, so that what reads the packet next does read it.
        // SAFETY: within the packet by the check above.
        unsafe { core::ptr::write_volatile((start + address) as *mut u32, (flow as u32).to_be()) };
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile((start + port) as *mut u16, (flow as u16).to_be()) };
    }
}
