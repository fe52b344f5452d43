//! How calls ended: records of the syscall signal where the ends of calls are watched.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Buckets of a latency histogram. Bucket `i` holds what took less than 2^(i+8) ns and no less than
/// half of that; the first one all that is shorter, the last one all that is longer.
pub const BUCKETS: usize = 28;

/// Value of `SYSCALL_BEGUN`, by thread: the call that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Begun {
    /// The caller's cgroup then: what counted the call is told its end.
    pub cgroup_id: u64,
    /// `bpf_ktime_get_ns`; 0: it is in none.
    pub begun_ns: u64,
    /// The call.
    pub number: u32,
    /// Zero.
    pub reserved: u32,
}

/// Key of `SYSCALL_OUTCOMES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OutcomeKey {
    /// The caller's cgroup when the call began.
    pub cgroup_id: u64,
    /// The call.
    pub number: u32,
    /// Zero.
    pub reserved: u32,
}

/// Value of `SYSCALL_OUTCOMES`: they only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CallOutcomes {
    /// Sum, of calls that were seen to begin.
    pub duration_ns: u64,
    /// Calls that ended with an error number.
    pub errors: u64,
    /// Of those, calls that nobody saw begin; see [`super::event_flags::UNBEGUN`]. They are in no
    /// bucket, and were not counted when they began.
    pub unbegun: u64,
    /// Zero.
    pub reserved: u64,
    /// Calls that were seen to begin and to end, by how long they took.
    pub latency: [u64; BUCKETS],
}

impl CallOutcomes {
    /// Nothing has ended.
    pub const NONE: Self =
        Self { duration_ns: 0, errors: 0, unbegun: 0, reserved: 0, latency: [0; BUCKETS] };

    /// Calls that ended.
    pub fn returned(&self) -> u64 {
        self.latency.iter().sum::<u64>() + self.unbegun
    }
}

/// Key of `SYSCALL_ERRORS`, whose value is a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorKey {
    /// The caller's cgroup when the call began.
    pub cgroup_id: u64,
    /// The call.
    pub number: u32,
    /// As in errno(3).
    pub errno: u32,
}

// The layout is an interface: a changed number here is a changed protocol.
const _: () = {
    assert!(size_of::<Begun>() == 24);
    assert!(size_of::<OutcomeKey>() == 16);
    assert!(size_of::<CallOutcomes>() == 32 + 8 * BUCKETS);
    assert!(size_of::<ErrorKey>() == 16);
};
