//! Records of the syscall signal: counters per container and call, and events.

mod outcome;

pub use outcome::{BUCKETS, Begun, CallOutcomes, ErrorKey, OutcomeKey};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// System call numbers that are counted apart: more than any architecture has. What is beyond them
/// is counted as [`OTHER`].
pub const NUMBERS: usize = 512;
/// Counted here: calls by 32-bit programs of a 64-bit kernel, whose numbers are another table's.
pub const COMPAT: u32 = 510;
/// Counted here: numbers that no table has, which programs may use all the same.
pub const OTHER: u32 = 511;

/// Counters of one cgroup on one CPU: value of `SYSCALL_COUNTS`. They wrap around; whoever reads
/// them often enough takes differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SyscallCounts {
    /// By number.
    pub calls: [u32; NUMBERS],
}

/// Slot of `SYSCALL_COUNTS` for calls of cgroups that have none and found no room in
/// `SYSCALL_UNSLOTTED` either: counted, but nobody's.
pub const NOBODY: u32 = 0;

/// Key of `SYSCALL_UNSLOTTED`: calls of a cgroup that was given no slot (yet).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnslottedKey {
    /// The cgroup.
    pub cgroup_id: u64,
    /// The call.
    pub number: u32,
    /// Zero.
    pub reserved: u32,
}

/// Key and value of what `SYSCALL_CURRENT` remembers per CPU: the cgroup that called last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Current {
    /// What names the cgroup where calls begin: its id, or its serial number in the kernel.
    pub key: u64,
    /// The cgroup.
    pub cgroup_id: u64,
    /// Its slot, or [`NO_SLOT`].
    pub slot: u32,
    /// `SYSCALL_SETTINGS` when that was looked up: slots are given out while calls are made.
    pub generation: u32,
    /// Calls until the next sampled one is told.
    pub countdown: u32,
    /// Zero.
    pub reserved: u32,
}

/// In [`Current::slot`]: the cgroup has none.
pub const NO_SLOT: u32 = u32::MAX;

/// `SYSCALL_SETTINGS[0]`, written by the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SyscallSettings {
    /// Changes whenever a cgroup is given a slot or loses it.
    pub generation: u32,
    /// Of calls that are [`told::SAMPLED`], one in so many is told, per CPU; 0: none.
    pub sample_every: u32,
    /// The number of `execve`, under which started programs are told.
    pub execve: u32,
    /// Zero.
    pub reserved: u32,
    /// By number: which calls become events. See [`told`].
    pub told: [u32; NUMBERS],
}

/// Words of [`SyscallSettings::told`]: one of the first four, and bits.
pub mod told {
    /// The bits in which one of the next four is.
    pub const HOW: u32 = 3;
    /// Counted, and that is all.
    pub const NEVER: u32 = 0;
    /// One in `sample_every`, to whoever listens.
    pub const SAMPLED: u32 = 1;
    /// Each, to whoever listens.
    pub const LISTENED: u32 = 2;
    /// Each, whether somebody listens or not.
    pub const ALWAYS: u32 = 3;
    /// A bit: each that fails, when it has, to whoever listens; where the ends of calls are watched.
    pub const FAILED: u32 = 1 << 2;
    /// A bit: the call never returns, or what is in its register then is no result, as after
    /// `rt_sigreturn`.
    pub const NO_RESULT: u32 = 1 << 3;
}

/// What the text of an event is: [`SyscallEvent::text`].
pub mod text {
    /// There is none.
    pub const NONE: u32 = 0;
    /// Texts that end with a zero byte each: a program and its arguments.
    pub const PROGRAM: u32 = 1;
    /// A path.
    pub const PATH: u32 = 2;
    /// A `struct sockaddr`.
    pub const ADDRESS: u32 = 3;
}

/// Bits of [`SyscallEvent::flags`].
pub mod event_flags {
    /// The text was longer than what fits.
    pub const CUT: u32 = 1;
    /// The text, or part of it, lies in memory that was not there to be read.
    pub const UNREAD: u32 = 1 << 1;
    /// Not a call of its own: the program that the last `execve` of this thread started.
    pub const STARTED: u32 = 1 << 2;
    /// Not a call that begins but one that has ended, of which `result` and `duration_ns` tell. It
    /// may have been told when it began.
    pub const ENDED: u32 = 1 << 3;
    /// Of one that has ended: nobody saw it begin, so `duration_ns` is 0. A seccomp filter refused
    /// it, or it began before orb8 did.
    pub const UNBEGUN: u32 = 1 << 4;
}

/// Bytes of text that an event carries at most.
pub const TEXT_SIZE: usize = 512;

/// Head of an item of `SYSCALL_EVENTS`; `text_size` bytes of text follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SyscallEvent {
    /// The caller's cgroup in the version 2 hierarchy.
    pub cgroup_id: u64,
    /// When it began, by `bpf_ktime_get_boot_ns`.
    pub timestamp_ns: u64,
    /// The caller's process (`tgid`), in the first process namespace.
    pub pid: u32,
    /// The caller's thread.
    pub tid: u32,
    /// The call, or [`COMPAT`].
    pub number: u32,
    /// Calls that this event stands for: 1 where each is told.
    pub weight: u32,
    /// Name of the thread that calls.
    pub comm: [u8; 16],
    /// The arguments as they are in the registers.
    pub args: [u64; 6],
    /// See [`event_flags`].
    pub flags: u32,
    /// See [`text`].
    pub text: u32,
    /// Bytes of text behind the head.
    pub text_size: u32,
    /// Zero.
    pub reserved: u32,
    /// What it returned, negative for an error number: of [`event_flags::ENDED`].
    pub result: i64,
    /// How long it took: of [`event_flags::ENDED`].
    pub duration_ns: u64,
}

// The layout is an interface: a changed number here is a changed protocol.
const _: () = {
    assert!(size_of::<SyscallCounts>() == 2048);
    assert!(size_of::<UnslottedKey>() == 16);
    assert!(size_of::<Current>() == 32);
    assert!(size_of::<SyscallSettings>() == 2064);
    assert!(size_of::<SyscallEvent>() == 128);
};

/// Value of `SYSCALL_TEXTS`, by number: what a call's arguments point to.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TextOf {
    /// See [`text`].
    pub text: u32,
    /// Which argument points to it. The next one points to a program's arguments, or is an
    /// address's size.
    pub argument: u32,
}
