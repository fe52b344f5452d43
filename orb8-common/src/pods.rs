//! What the kernel side knows of pods: which cgroups are theirs, and whose events nobody wants.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries of `POD_METADATA` unless the loader says otherwise. A pod that found no room is treated
/// as one that somebody wants: its events are sorted out in user space.
pub const POD_METADATA_SIZE: u32 = 10_000;

/// Bits of [`PodMetadata::flags`].
pub mod pod_flags {
    /// No subscriber wants this pod's events: do not emit them.
    pub const UNWANTED: u32 = 1;
}

/// Value of `POD_METADATA`, by the id of a pod's or a container's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PodMetadata {
    /// The pod's UID; for a static pod the kubelet's hash. Its bytes in the order of the text.
    pub pod_uid: [u8; 16],
    /// See [`pod_flags`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// `SETTINGS[0]`: which events are emitted. Counters are kept whatever it says.
pub mod events {
    /// Every event.
    pub const ALL: u32 = 0;
    /// All but those of pods that are [`super::pod_flags::UNWANTED`].
    pub const WANTED: u32 = 1;
    /// None: nobody listens.
    pub const NONE: u32 = 2;
}

// The layout is an interface: a changed number here is a changed protocol.
const _: () = assert!(size_of::<PodMetadata>() == 24);
