//! Flow keys as words: compared with the last one for every packet, they should not leave the
//! registers for that.

use orb8_common::network::{FlowKey4, FlowKey6, key_flags::HOOK_EGRESS};

/// The words of a flow key.
pub(super) trait Key: Copy + 'static {
    fn same(&self, other: &Self) -> bool;
    fn ifindex(&self) -> u32;
    /// [`HOOK_EGRESS`] or 0.
    fn direction(&self) -> u32;
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident, $words:literal, $bytes:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub(super) struct $name([u64; $words]);

        // What is left over is the upper half of the last word, which is zero.
        const _: () = assert!(size_of::<$name>() == size_of::<$bytes>() + size_of::<u32>());

        impl Key for $name {
            #[inline(always)]
            fn same(&self, other: &Self) -> bool {
                let mut differs = 0;
                let mut word = 0;
                while word < $words {
                    differs |= self.0[word] ^ other.0[word];
                    word += 1;
                }
                differs == 0
            }

            #[inline(always)]
            fn ifindex(&self) -> u32 {
                (self.0[$words - 2] >> 32) as u32
            }

            #[inline(always)]
            fn direction(&self) -> u32 {
                (self.0[$words - 1] >> 24) as u32 & u32::from(HOOK_EGRESS)
            }
        }

        impl AsRef<$bytes> for $name {
            #[inline(always)]
            fn as_ref(&self) -> &$bytes {
                // SAFETY: the words begin with the bytes of such a record, by the assertion above
                // and `word`; it asks for less alignment than they have.
                unsafe { &*core::ptr::from_ref(self).cast() }
            }
        }
    };
}

key!(
    /// A [`FlowKey4`] and four zero bytes.
    Key4, 3, FlowKey4
);
key!(
    /// A [`FlowKey6`] and four zero bytes.
    Key6, 6, FlowKey6
);

impl From<FlowKey4> for Key4 {
    #[inline(always)]
    fn from(key: FlowKey4) -> Self {
        let [src, dst] = [key.src[0], key.dst[0]];
        let FlowKey4 { src_port, dst_port, ifindex, vlan, protocol, flags, .. } = key;
        let [ports, rest] = tail(src_port, dst_port, ifindex, vlan, protocol, flags);
        Self([word(src, dst), ports, rest])
    }
}

impl From<FlowKey6> for Key6 {
    #[inline(always)]
    fn from(key: FlowKey6) -> Self {
        let FlowKey6 { src, dst, src_port, dst_port, ifindex, vlan, protocol, flags } = key;
        let [ports, rest] = tail(src_port, dst_port, ifindex, vlan, protocol, flags);
        let [from, to] = [src, dst].map(|[a, b, c, d]| [word(a, b), word(c, d)]);
        Self([from[0], from[1], to[0], to[1], ports, rest])
    }
}

/// The fields behind the addresses, which both families have.
#[inline(always)]
const fn tail(src: u16, dst: u16, ifindex: u32, vlan: u16, protocol: u8, flags: u8) -> [u64; 2] {
    let ports = src as u32 | (dst as u32) << 16;
    let rest = vlan as u32 | (protocol as u32) << 16 | (flags as u32) << 24;
    [word(ports, ifindex), word(rest, 0)]
}

/// Eight bytes of memory from two times four. The probe is built for little-endian targets only.
#[inline(always)]
const fn word(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}
