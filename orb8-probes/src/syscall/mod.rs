//! The syscall signal, kernel side: count a call, and tell of it if somebody wants that; where that
//! is wanted, also how calls end.

mod call;
mod count;
mod end;
mod ending;
mod event;
mod mode;
mod registers;
mod start;
mod task;

use aya_ebpf::helpers::bpf_probe_read_kernel;
use orb8_common::syscall::{COMPAT, NUMBERS, OTHER, told};

pub(crate) use call::Call;
pub(crate) use end::{end, forget_thread};
pub(crate) use ending::Ending;
pub(crate) use start::Start;
use task::cgroup_id;

use crate::filter::{self, Whose};

/// A call begins.
#[inline(always)]
pub(crate) fn enter<C: Call>(call: &C) {
    let Some(settings) = count::settings() else { return };
    let (cgroup, number) = call.caller();
    let Some(current) = count::count(cgroup, number, settings.generation) else { return };
    let how = event::told(settings, number) & told::HOW;
    if how != told::NEVER {
        event::tell(call, number, how, settings, current);
    }
    if end::are_watched() {
        end::begin(current.cgroup_id, number);
    }
}

/// A program has been started by this thread.
#[inline(always)]
pub(crate) fn started<S: Start>(start: &S) {
    let Some(settings) = count::settings() else { return };
    let execve = settings.execve;
    let how = event::told(settings, execve) & told::HOW;
    let cgroup_id = cgroup_id();
    if how == told::ALWAYS || how == told::LISTENED && filter::wants(|| Whose::Cgroup(cgroup_id)) {
        event::tell_started(start, cgroup_id, execve);
    }
}

/// The number under which a call is counted.
#[inline(always)]
fn number(number: i64, is_compat: bool) -> u32 {
    if is_compat {
        return COMPAT;
    }
    // Numbers below zero, and the x32 ones, become large ones.
    let number = number as u64;
    if number < NUMBERS as u64 - 2 { number as u32 } else { OTHER }
}

/// A member of a kernel structure whose types the verifier does not know.
#[inline(always)]
fn member<T>(of: *const u8, offset: &'static u32) -> Option<T> {
    // SAFETY: the loader sets the value, so the compiler must not know it; the helper checks what it
    // reads.
    unsafe {
        let offset = core::ptr::read_volatile(offset) as usize;
        bpf_probe_read_kernel(of.wrapping_add(offset).cast()).ok()
    }
}
