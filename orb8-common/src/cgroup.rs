//! Records of the cgroup probe: a cgroup was made, or removed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a path that fit into a [`CgroupEvent`], the terminating zero included. The longest paths
/// that kubelets and runtimes write have about 300; what is longer is cut, and its owner is then
/// read from the file system.
pub const PATH_SIZE: usize = 480;

/// What happened to a cgroup: [`CgroupEvent::what`].
pub mod what {
    /// `tracepoint/cgroup/cgroup_mkdir`.
    pub const MADE: u32 = 1;
    /// `tracepoint/cgroup/cgroup_rmdir`.
    pub const REMOVED: u32 = 2;
}

/// Item of `CGROUP_EVENTS`. Only of the version 2 hierarchy.
///
/// Source: `include/trace/events/cgroup.h` of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CgroupEvent {
    /// Inode of its directory, and what `bpf_skb_cgroup_id` answers. Never used again.
    pub id: u64,
    /// `bpf_ktime_get_boot_ns`.
    pub timestamp_ns: u64,
    /// See [`what`].
    pub what: u32,
    /// Bytes of `path` with its terminating zero; 0 where it could not be read.
    pub path_size: u32,
    /// From the root of the hierarchy, whatever namespace the reader is in.
    pub path: [u8; PATH_SIZE],
    /// Zero.
    pub reserved: u64,
}

// The layout is an interface: a changed number here is a changed protocol.
const _: () = assert!(size_of::<CgroupEvent>() == 512);

impl CgroupEvent {
    /// The path, if it could be read and is whole.
    #[must_use]
    pub fn path(&self) -> Option<&[u8]> {
        let size = self.path_size as usize;
        let cut = size >= PATH_SIZE;
        if size == 0 || cut { None } else { self.path.get(..size - 1) }
    }
}
