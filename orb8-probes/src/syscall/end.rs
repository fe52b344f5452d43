//! How calls end: with which result and after how long, per cgroup and number.
//!
//! Optional, and decided when the probe is loaded: it takes a second program on every call, and the
//! time twice. A call belongs to the cgroup that made it, wherever its thread is when it ends.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_task, generated::bpf_ktime_get_ns},
    macros::map,
    maps::HashMap,
};
use orb8_common::{
    drops::Drop,
    syscall::{BUCKETS, Begun, CallOutcomes, ErrorKey, OutcomeKey, told},
};

use super::{
    Ending, cgroup_id, count, event,
    event::{End, told},
    number,
};
use crate::emit::{self, fetch_add};

/// Threads whose call in progress is known, unless the loader says otherwise: some 80 bytes each. A
/// thread has its entry from its first call until it ends. When the table is full, calls of further
/// threads are counted, and how they end is not, which is counted.
const THREADS: u32 = 32_768;
/// Entries of cgroups and calls. When it is full, ends are lost, which is counted.
const OUTCOMES: u32 = 8_192;
/// Entries of cgroups, calls and error numbers. When it is full, errors have no number, which is
/// counted.
const ERRORS: u32 = 4_096;

/// By address of the `struct task_struct`, which stays that of the thread when a program that it
/// starts gives it another number.
#[map]
static SYSCALL_BEGUN: HashMap<u64, Begun> = HashMap::with_max_entries(THREADS, 0);
#[map]
static SYSCALL_OUTCOMES: HashMap<OutcomeKey, CallOutcomes> = HashMap::with_max_entries(OUTCOMES, 0);
#[map]
static SYSCALL_ERRORS: HashMap<ErrorKey, u64> = HashMap::with_max_entries(ERRORS, 0);

/// 1 where programs are attached to the ends of calls: set by the loader, read only, so that the
/// kernel removes what is for that from the program where calls begin.
#[unsafe(no_mangle)]
static WATCH_ENDS: u32 = 0;

#[inline(always)]
pub(super) fn are_watched() -> bool {
    // SAFETY: the loader sets the value, so the compiler must not know it.
    unsafe { core::ptr::read_volatile(&WATCH_ENDS) != 0 }
}

/// Notes that this thread's call begins now.
#[inline(always)]
pub(super) fn begin(cgroup_id: u64, number: u32) {
    let thread = thread();
    // SAFETY: a helper without arguments.
    let begun = Begun { cgroup_id, begun_ns: unsafe { bpf_ktime_get_ns() }, number, reserved: 0 };
    match SYSCALL_BEGUN.get_ptr_mut(thread) {
        // SAFETY: a live map value that only its own thread writes.
        Some(entry) => unsafe { *entry = begun },
        None => {
            if SYSCALL_BEGUN.insert(thread, begun, u64::from(BPF_NOEXIST)).is_err() {
                emit::count(Drop::BegunFull, 1);
            }
        }
    }
}

/// This thread ends; its entry is another one's to have.
#[inline(always)]
pub(crate) fn forget_thread() {
    // A thread that has none made no call since orb8 began.
    let _ = SYSCALL_BEGUN.remove(thread());
}

/// A call ends.
#[inline(always)]
pub(crate) fn end<E: Ending>(ending: &E) {
    let result = ending.result();
    let errno = errno(result);
    let (cgroup_id, number, end) = match begun() {
        Some(begun) => {
            // SAFETY: a helper without arguments.
            let took = unsafe { bpf_ktime_get_ns() }.wrapping_sub(begun.begun_ns);
            (begun.cgroup_id, begun.number, End { result, took, unbegun: false })
        }
        // A new thread returns from the call that made it. That was the other thread's.
        None if errno == 0 => return,
        None => {
            let number = number(ending.number(), ending.is_compat());
            (cgroup_id(), number, End { result, took: 0, unbegun: true })
        }
    };
    let Some(told) = count::settings().map(|settings| told(settings, number)) else { return };
    if told & told::NO_RESULT != 0 {
        return;
    }
    if let Some(outcomes) = outcomes(cgroup_id, number) {
        add(outcomes, &end, errno != 0);
        if errno != 0 {
            count_error(cgroup_id, number, errno);
        }
    }
    if errno != 0 && told & told::FAILED != 0 {
        event::tell_end(ending, cgroup_id, number, &end);
    }
}

/// The call that this thread is in, if it was seen to begin. It has ended then.
#[inline(always)]
fn begun() -> Option<Begun> {
    let entry = SYSCALL_BEGUN.get_ptr_mut(thread())?;
    // SAFETY: a live map value that only its own thread writes.
    let entry = unsafe { &mut *entry };
    let begun = *entry;
    entry.begun_ns = 0;
    (begun.begun_ns != 0).then_some(begun)
}

#[inline(always)]
fn thread() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_task() }
}

/// The error number of a result; 0: it is none. Calls that a signal interrupts are not errors here:
/// the kernel makes them again, or returns `EINTR`, and decides later which.
#[inline(always)]
fn errno(result: i64) -> u32 {
    /// include/linux/errno.h: from `ERESTARTSYS` to `ERESTART_RESTARTBLOCK`, without `ENOIOCTLCMD`.
    const RESTARTED: [u32; 4] = [512, 513, 514, 516];
    const MAX_ERRNO: u64 = 4_095;
    let errno = (result as u64).wrapping_neg();
    if errno == 0 || errno > MAX_ERRNO {
        return 0;
    }
    let errno = errno as u32;
    let [a, b, c, d] = RESTARTED;
    if errno == a || errno == b || errno == c || errno == d { 0 } else { errno }
}

#[inline(always)]
fn outcomes(cgroup_id: u64, number: u32) -> Option<&'static mut CallOutcomes> {
    let key = OutcomeKey { cgroup_id, number, reserved: 0 };
    if let Some(outcomes) = SYSCALL_OUTCOMES.get_ptr_mut(key) {
        // SAFETY: a live map value, which is only added to, atomically.
        return Some(unsafe { &mut *outcomes });
    }
    first(&key);
    let outcomes = SYSCALL_OUTCOMES.get_ptr_mut(key);
    if outcomes.is_none() {
        emit::count(Drop::OutcomesFull, 1);
    }
    // SAFETY: a live map value, which is only added to, atomically.
    outcomes.map(|outcomes| unsafe { &mut *outcomes })
}

#[inline(never)]
fn first(key: &OutcomeKey) {
    // Another CPU may be first. The caller looks whether there is an entry.
    let _ = SYSCALL_OUTCOMES.insert(key, CallOutcomes::NONE, u64::from(BPF_NOEXIST));
}

#[inline(always)]
fn add(outcomes: &mut CallOutcomes, end: &End, failed: bool) {
    if failed {
        fetch_add(&mut outcomes.errors, 1);
    }
    if end.unbegun {
        return fetch_add(&mut outcomes.unbegun, 1);
    }
    fetch_add(&mut outcomes.duration_ns, end.took);
    let mut bucket = bucket(end.took);
    if bucket >= BUCKETS {
        bucket = BUCKETS - 1;
    }
    fetch_add(&mut outcomes.latency[bucket], 1);
}

/// The number of bits that are left above the lowest eight.
#[inline(always)]
fn bucket(took: u64) -> usize {
    let (mut rest, mut bits) = (took >> 8, 0);
    let mut half = 32;
    while half > 0 {
        if rest >> half != 0 {
            rest >>= half;
            bits += half;
        }
        half /= 2;
    }
    bits + (rest != 0) as usize
}

#[inline(never)]
fn count_error(cgroup_id: u64, number: u32, errno: u32) {
    let key = ErrorKey { cgroup_id, number, errno };
    if let Some(errors) = SYSCALL_ERRORS.get_ptr_mut(key) {
        // SAFETY: a live map value.
        return fetch_add(unsafe { &mut *errors }, 1);
    }
    if SYSCALL_ERRORS.insert(key, 1, u64::from(BPF_NOEXIST)).is_ok() {
        return;
    }
    match SYSCALL_ERRORS.get_ptr_mut(key) {
        // Another CPU was first. SAFETY: a live map value.
        Some(errors) => fetch_add(unsafe { &mut *errors }, 1),
        None => emit::count(Drop::ErrorsFull, 1),
    }
}
