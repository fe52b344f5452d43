//! Records of the network signal: flow keys, flow counters, life-cycle events.
//!
//! Addresses and ports are kept as the packet carries them: `[u32; N]` are the raw words of a
//! network-order address, ports are already in host order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bits of [`FlowKey4::flags`] and [`FlowKey6::flags`].
pub mod key_flags {
    /// Seen at the egress hook of the interface; else at its ingress hook. On the host side of a
    /// veth, ingress is what the pod sends.
    pub const HOOK_EGRESS: u8 = 1;
    /// Not IP: the addresses are zero and `src_port` holds the EtherType (ARP, LLDP, …).
    pub const NOT_IP: u8 = 1 << 1;
    /// A fragment after the first: it carries no ports, and they are zero.
    pub const FRAGMENT: u8 = 1 << 2;
    /// The headers end early or contradict themselves; what could be read is in the key.
    pub const MALFORMED: u8 = 1 << 3;
}

/// Set in `vlan` when a tag was present, so that VLAN 0 differs from no VLAN.
pub const VLAN_PRESENT: u16 = 0x1000;

/// Set in `ifindex` where packets were seen at a socket of the node itself and not on an interface.
/// The other bits are the account under which the agent keeps the socket's cgroup: the value of
/// `HOST_CGROUPS`, or [`UNLISTED`]. Indices of interfaces are positive `int`s, so none has this bit.
pub const HOST_SOCKETS: u32 = 1 << 31;

/// Account of sockets of the node itself whose cgroup is not in `HOST_CGROUPS` (yet). Their flows
/// say which cgroup that is.
pub const UNLISTED: u32 = 0;

/// `max_entries` of `HOST_CGROUPS`. Sockets of a cgroup that found no room are [`UNLISTED`] where the
/// kernel tells namespaces apart, and not counted where it does not.
pub const HOST_CGROUPS_SIZE: u32 = 10_000;

/// `max_entries` of `SOCKET_SENT`. Beyond it the kernel forgets whoever was silent longest.
pub const SOCKET_SENT_SIZE: u32 = 8_192;

/// Key of an IPv4 (or non-IP) flow: one direction of one conversation on one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowKey4 {
    /// Source address, network-order word.
    pub src: [u32; 1],
    /// Destination address, network-order word.
    pub dst: [u32; 1],
    /// Source port; ICMP type; EtherType when [`key_flags::NOT_IP`].
    pub src_port: u16,
    /// Destination port; ICMP code.
    pub dst_port: u16,
    /// Interface index in the agent's network namespace, or an account with [`HOST_SOCKETS`].
    pub ifindex: u32,
    /// Outermost VLAN identifier with [`VLAN_PRESENT`], or 0.
    pub vlan: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// See [`key_flags`].
    pub flags: u8,
}

/// Key of an IPv6 flow; fields as in [`FlowKey4`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowKey6 {
    /// Source address, network-order words.
    pub src: [u32; 4],
    /// Destination address, network-order words.
    pub dst: [u32; 4],
    /// Source port; ICMPv6 type.
    pub src_port: u16,
    /// Destination port; ICMPv6 code.
    pub dst_port: u16,
    /// Interface index in the agent's network namespace, or an account with [`HOST_SOCKETS`].
    pub ifindex: u32,
    /// Outermost VLAN identifier with [`VLAN_PRESENT`], or 0.
    pub vlan: u16,
    /// IANA protocol number of the upper layer, after extension headers.
    pub protocol: u8,
    /// See [`key_flags`].
    pub flags: u8,
}

/// Packets and bytes as the interface counts them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Counts {
    /// Packets as handed to the interface: a GSO packet is one.
    pub packets: u64,
    /// L2 length of those packets; L3 length where they were seen at a socket.
    pub bytes: u64,
    /// What GSO saved: Σ (`gso_segs` − 1). Wire packets are `packets + extra_segments`.
    pub extra_segments: u64,
}

/// Value of `FLOWS_V4` and `FLOWS_V6`. Counters only grow while the entry lives.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowStats {
    /// Totals, without what still waits in `LAST_V4` or `LAST_V6`.
    pub counts: Counts,
    /// `bpf_jiffies64` of the last packet that reached this entry.
    pub last_jiffies: u64,
    /// `bpf_ktime_get_boot_ns` of the first packet; tells two lives of one key apart.
    pub first_ns: u64,
    /// cgroup of the sending socket, 0 where the packet had none (all that a pod receives). At a
    /// socket, its cgroup in both directions.
    pub cgroup_id: u64,
    /// 1 once a TCP SYN without ACK was seen: its sender opens the connection. A byte each: CPUs
    /// that set them at once lose nothing.
    pub syn: u8,
    /// 1 once a TCP FIN was seen.
    pub fin: u8,
    /// 1 once a TCP RST was seen.
    pub rst: u8,
    /// 1 once a TCP SYN with ACK was seen.
    pub syn_ack: u8,
    /// Zero.
    pub reserved: [u8; 4],
}

/// Packets that found no room in the flow table, per interface and direction: `OVERFLOW`'s key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OverflowKey {
    /// As in [`FlowKey4`].
    pub ifindex: u32,
    /// [`key_flags::HOOK_EGRESS`] or 0.
    pub direction: u32,
}

/// Value of `SOCKET_SENT`, by cgroup: what its sockets sent to other network namespaces while the
/// agent wanted to know. Counters only grow while the entry lives.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SocketSent {
    /// Before fragmentation, in L3 lengths.
    pub counts: Counts,
    /// `bpf_ktime_get_boot_ns` of the first packet.
    pub first_ns: u64,
    /// `bpf_jiffies64` of the last packet.
    pub last_jiffies: u64,
}

macro_rules! last_flow {
    ($(#[$doc:meta])* $name:ident, $key:ty, $size:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name {
            /// Written last when the slot changes hands; equal to `opened` when the slot is whole.
            pub settled: u64,
            /// Whose packets wait here; valid when `opened` is not 0.
            pub key: $key,
            /// Zero.
            pub reserved: u32,
            /// Not yet added to the flow's entry.
            pub pending: Counts,
            /// `first_ns` of the entry that they belong to: the key may come back to life.
            pub life: u64,
            /// `bpf_jiffies64` of the last packet.
            pub last_jiffies: u64,
            /// `bpf_jiffies64` when the slot was taken; it is good for a few jiffies only.
            pub loaded_jiffies: u64,
            /// Written first when the slot changes hands.
            pub opened: u64,
        }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

last_flow!(
    /// Per-CPU slot of `LAST_V4`: the run of packets of one flow that is being combined.
    LastFlow4, FlowKey4, 88
);
last_flow!(
    /// Per-CPU slot of `LAST_V6`: the run of packets of one flow that is being combined.
    LastFlow6, FlowKey6, 112
);

/// Bits of the TCP flags byte (RFC 9293) that mark a flow's life.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers: the connection is being opened.
    pub const SYN: u8 = 0x02;
    /// The connection is being torn down.
    pub const RST: u8 = 0x04;
    /// Answers something; a SYN without it is the first of a connection.
    pub const ACK: u8 = 0x10;
}

/// Why a [`NetworkFlowEvent`] was emitted; several may hold at once.
pub mod event_reasons {
    /// First packet of an entry.
    pub const NEW: u8 = 1;
    /// TCP SYN.
    pub const SYN: u8 = 1 << 1;
    /// TCP FIN.
    pub const FIN: u8 = 1 << 2;
    /// TCP RST.
    pub const RST: u8 = 1 << 3;
}

/// Address family of a [`NetworkFlowEvent`].
pub mod family {
    /// The key came from `FLOWS_V4`: addresses are in the first word.
    pub const V4: u8 = 4;
    /// The key came from `FLOWS_V6`.
    pub const V6: u8 = 6;
}

/// Item of `FLOW_EVENTS`: something happened in a flow's life. Never sampled.
///
/// Emitted after the counters moved, with the counters as they were then, so that whoever has
/// taken less than `stats.counts` from this flow can take the difference, from here or from the
/// map, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetworkFlowEvent {
    /// The flow; an IPv4 key has its addresses in word 0.
    pub key: FlowKey6,
    /// See [`family`].
    pub family: u8,
    /// See [`event_reasons`].
    pub reasons: u8,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// Zero.
    pub reserved: u8,
    /// The flow's entry after this packet.
    pub stats: FlowStats,
    /// `bpf_ktime_get_boot_ns` of the packet.
    pub timestamp_ns: u64,
}

/// `PULSE[0]`: what the kernel alone knows about itself, written by running `orb8_pulse`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Pulse {
    /// `bpf_jiffies64` now.
    pub jiffies: u64,
    /// `bpf_ktime_get_boot_ns` now.
    pub boot_ns: u64,
    /// Bytes in `FLOW_EVENTS` that nobody read yet.
    pub ring_pending: u64,
}

// The layout is an interface: a changed number here is a changed protocol.
const _: () = {
    assert!(size_of::<FlowKey4>() == 20);
    assert!(size_of::<FlowKey6>() == 44);
    assert!(size_of::<Counts>() == 24);
    assert!(size_of::<FlowStats>() == 56);
    assert!(size_of::<OverflowKey>() == 8);
    assert!(size_of::<SocketSent>() == 40);
    assert!(size_of::<NetworkFlowEvent>() == 112);
    assert!(size_of::<Pulse>() == 24);
};

impl FlowKey4 {
    /// The same key in the wide form that events carry.
    #[inline(always)]
    pub const fn widen(&self) -> FlowKey6 {
        FlowKey6 {
            src: [self.src[0], 0, 0, 0],
            dst: [self.dst[0], 0, 0, 0],
            src_port: self.src_port,
            dst_port: self.dst_port,
            ifindex: self.ifindex,
            vlan: self.vlan,
            protocol: self.protocol,
            flags: self.flags,
        }
    }
}

impl FlowKey6 {
    /// The IPv4 key that was widened into this one.
    #[inline(always)]
    pub const fn narrow(&self) -> FlowKey4 {
        FlowKey4 {
            src: [self.src[0]],
            dst: [self.dst[0]],
            src_port: self.src_port,
            dst_port: self.dst_port,
            ifindex: self.ifindex,
            vlan: self.vlan,
            protocol: self.protocol,
            flags: self.flags,
        }
    }
}
