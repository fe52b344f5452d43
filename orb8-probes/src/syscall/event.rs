//! Telling of single calls, with the text that their arguments point to.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_user,
        generated::{
            bpf_get_current_comm, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str,
            bpf_probe_read_user as probe_read_user, bpf_probe_read_user_str, bpf_ringbuf_output,
        },
    },
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use orb8_common::{
    drops::Drop,
    syscall::{
        Current, NUMBERS, SyscallEvent, SyscallSettings, TEXT_SIZE,
        event_flags::{CUT, ENDED, STARTED, UNBEGUN, UNREAD},
        text, told,
    },
};

use super::{Call, Ending, Start, member};
use crate::{
    emit,
    filter::{self, Whose},
};

/// Bytes unless the loader says otherwise. Too small costs events under a storm, which are counted;
/// it never costs a count.
const RING_SIZE: u32 = 512 << 10;
#[map]
static SYSCALL_EVENTS: RingBuf = RingBuf::with_byte_size(RING_SIZE, 0);
/// Which text a call's arguments point to, by number: a [`text`] and the argument. Written by the
/// agent, which knows the numbers.
#[map]
static SYSCALL_TEXTS: Array<TextOf> = Array::with_max_entries(NUMBERS as u32, 0);

pub(crate) use orb8_common::syscall::TextOf;

/// Longest single text. More is cut.
const PART: usize = 256;
/// Arguments of a program that are looked at. More are cut.
const ARGUMENTS: usize = 16;

/// An event is put together here: the stack has no room for it.
#[repr(C)]
struct Draft {
    event: SyscallEvent,
    /// The last part may begin anywhere within `TEXT_SIZE`.
    text: [u8; TEXT_SIZE + PART],
}

/// Which program puts it together. Each has its own, because one may be preempted by another.
#[derive(Clone, Copy)]
enum By {
    Enter,
    Exec,
    Exit,
}

#[map]
static SYSCALL_DRAFT: PerCpuArray<Draft> = PerCpuArray::with_max_entries(3, 0);

/// What to do with a call: a word of [`told`].
#[inline(always)]
pub(super) fn told(settings: &SyscallSettings, number: u32) -> u32 {
    settings.told[number as usize & (NUMBERS - 1)]
}

/// Tells of a call, if somebody wants that.
#[inline(always)]
pub(super) fn tell<C: Call>(
    call: &C,
    number: u32,
    how: u32,
    settings: &SyscallSettings,
    current: &mut Current,
) {
    let cgroup_id = current.cgroup_id;
    let mut weight = 1;
    if how == told::SAMPLED {
        let Some(of_so_many) = sampled(settings.sample_every, current) else { return };
        weight = of_so_many;
    }
    if how != told::ALWAYS && !filter::wants(|| Whose::Cgroup(cgroup_id)) {
        return;
    }
    let Some(draft) = draft(By::Enter, cgroup_id, number, weight) else { return };
    call.arguments(&mut draft.event.args);
    add_text(draft, number);
    draft.send();
}

/// How a call ended.
///
/// Not with an `Option` of its time: the compiler carries the word of a `None` along without ever
/// writing it, and verifiers before Linux 6.3 refuse a program that reads such a word of its stack.
pub(super) struct End {
    pub(super) result: i64,
    /// Nanoseconds; 0 where nobody saw the call begin.
    pub(super) took: u64,
    /// Nobody saw it begin.
    pub(super) unbegun: bool,
}

/// Tells of a call that has ended, if somebody wants that.
#[inline(always)]
pub(super) fn tell_end<E: Ending>(ending: &E, cgroup_id: u64, number: u32, end: &End) {
    if !filter::wants(|| Whose::Cgroup(cgroup_id)) {
        return;
    }
    let Some(draft) = draft(By::Exit, cgroup_id, number, 1) else { return };
    draft.event.flags = if end.unbegun { ENDED | UNBEGUN } else { ENDED };
    draft.event.result = end.result;
    draft.event.timestamp_ns = draft.event.timestamp_ns.wrapping_sub(end.took);
    draft.event.duration_ns = end.took;
    if ending.arguments(&mut draft.event.args) {
        add_text(draft, number);
    } else {
        draft.event.flags |= UNREAD;
    }
    draft.send();
}

/// Whether this is the one that is told, and of how many.
#[inline(always)]
fn sampled(every: u32, current: &mut Current) -> Option<u32> {
    if every == 0 {
        return None;
    }
    if current.countdown > 1 {
        current.countdown -= 1;
        return None;
    }
    current.countdown = every;
    Some(every)
}

#[inline(always)]
fn draft(by: By, cgroup_id: u64, number: u32, weight: u32) -> Option<&'static mut Draft> {
    // SAFETY: this CPU's value of a live map, used by one run of one program at a time.
    let draft = SYSCALL_DRAFT.get_ptr_mut(by as u32).map(|draft| unsafe { &mut *draft })?;
    let ids = bpf_get_current_pid_tgid();
    draft.event.cgroup_id = cgroup_id;
    // SAFETY: a helper without arguments.
    draft.event.timestamp_ns = unsafe { bpf_ktime_get_boot_ns() };
    draft.event.pid = (ids >> 32) as u32;
    draft.event.tid = ids as u32;
    draft.event.number = number;
    draft.event.weight = weight;
    // SAFETY: the helper fills as many bytes, with zeros where it fails.
    unsafe {
        let comm = draft.event.comm.as_mut_ptr().cast();
        bpf_get_current_comm(comm, draft.event.comm.len() as u32);
    }
    draft.event.args = [0; 6];
    draft.event.flags = 0;
    draft.event.text = text::NONE;
    draft.event.text_size = 0;
    draft.event.reserved = 0;
    draft.event.result = 0;
    draft.event.duration_ns = 0;
    Some(draft)
}

#[inline(never)]
fn add_text(draft: &mut Draft, number: u32) {
    let Some(of) = SYSCALL_TEXTS.get(number) else { return };
    let argument = draft.event.args[of.argument as usize & 3];
    match of.text {
        text::PATH => draft.add_string(argument),
        text::PROGRAM => {
            draft.add_string(argument);
            let list = draft.event.args[(of.argument as usize & 3) + 1];
            draft.add_strings(list);
        }
        text::ADDRESS => draft.add_bytes(argument, draft.event.args[(of.argument as usize & 3) + 1]),
        _ => return,
    }
    draft.event.text = of.text;
}

impl Draft {
    /// Where the next text goes.
    #[inline(always)]
    fn end(&mut self) -> *mut core::ffi::c_void {
        let at = self.event.text_size as usize & (TEXT_SIZE - 1);
        // SAFETY: `at` is within the first `TEXT_SIZE` bytes.
        unsafe { self.text.as_mut_ptr().add(at).cast() }
    }

    #[inline(always)]
    fn grow(&mut self, read: i64, limit: usize) {
        if read < 0 {
            self.event.flags |= UNREAD;
            return;
        }
        if read as usize >= limit {
            self.event.flags |= CUT;
        }
        let size = self.event.text_size + read as u32;
        if size as usize >= TEXT_SIZE {
            self.event.flags |= CUT;
            // One less: a mask tells where the next one goes, and there is none.
            self.event.text_size = TEXT_SIZE as u32 - 1;
        } else {
            self.event.text_size = size;
        }
    }

    /// A text of the caller.
    #[inline(always)]
    fn add_string(&mut self, at: u64) {
        // SAFETY: there are `PART` bytes behind `end`, and the helper checks what it reads.
        let read = unsafe { bpf_probe_read_user_str(self.end(), PART as u32, at as *const _) };
        self.grow(read, PART);
    }

    /// A list of texts of the caller that ends with a null pointer.
    #[inline(always)]
    fn add_strings(&mut self, list: u64) {
        let mut n = 0;
        while n < ARGUMENTS {
            let pointer = (list as *const u64).wrapping_add(n);
            // SAFETY: the helper checks what it reads.
            match unsafe { bpf_probe_read_user(pointer) } {
                Ok(0) => return,
                Ok(at) => self.add_string(at),
                Err(_) => {
                    self.event.flags |= UNREAD;
                    return;
                }
            }
            if self.event.flags & CUT != 0 {
                return;
            }
            n += 1;
        }
        self.event.flags |= CUT;
    }

    /// Bytes of the caller, as many as fit into a part.
    #[inline(always)]
    fn add_bytes(&mut self, at: u64, size: u64) {
        let wanted = at_most(size as u32, PART as u32 - 1);
        // SAFETY: there are `PART` bytes behind `end`, and the helper checks what it reads.
        let read = unsafe { probe_read_user(self.end(), wanted, at as *const _) };
        self.grow(if read == 0 { i64::from(wanted) } else { -1 }, PART);
    }

    #[inline(always)]
    fn send(&self) {
        emit::count(Drop::EventsSeen, 1);
        let text = at_most(self.event.text_size, TEXT_SIZE as u32 - 1);
        let size = size_of::<SyscallEvent>() as u32 + text;
        let from = core::ptr::from_ref(self).cast_mut().cast();
        let ring = core::ptr::addr_of!(SYSCALL_EVENTS).cast_mut().cast();
        // SAFETY: `from` has that many bytes: the head, and text that follows it without a gap.
        let refused =
            unsafe { bpf_ringbuf_output(ring, from, u64::from(size), u64::from(BPF_RB_NO_WAKEUP)) };
        if refused != 0 {
            emit::count(Drop::RingFull, 1);
        }
    }
}

/// The smaller one, in a form that verifiers understand: `limit` is all ones.
#[inline(always)]
fn at_most(n: u32, limit: u32) -> u32 {
    let mut n = u64::from(n.min(limit));
    // SAFETY: changes that one register only. LLVM would find the mask superfluous.
    unsafe {
        asm!("{n} &= {limit}", n = inout(reg) n, limit = in(reg) u64::from(limit),
            options(pure, nomem, nostack));
    }
    n as u32
}

// Where the running kernel has these members: set by the loader, read only.
/// `struct task_struct` to its `struct mm_struct *mm`.
#[unsafe(no_mangle)]
static TASK_STRUCT_MM: u32 = 0;
/// `struct mm_struct` to its `unsigned long arg_start`.
#[unsafe(no_mangle)]
static MM_STRUCT_ARG_START: u32 = 0;
/// `struct mm_struct` to its `unsigned long arg_end`.
#[unsafe(no_mangle)]
static MM_STRUCT_ARG_END: u32 = 0;

/// Tells which program an `execve` of this thread started.
///
/// At the call itself, the program's name may lie on a page that nobody has touched yet, such as a
/// constant of a process that was just forked. By now the kernel has copied it and the arguments.
#[inline(always)]
pub(super) fn tell_started<S: Start>(start: &S, cgroup_id: u64, number: u32) {
    let Some(draft) = draft(By::Exec, cgroup_id, number, 1) else { return };
    draft.event.flags = STARTED;
    draft.event.text = text::PROGRAM;
    if let Some(filename) = start.filename() {
        // SAFETY: there are `PART` bytes behind `end`, and the helper checks what it reads.
        let read =
            unsafe { bpf_probe_read_kernel_str(draft.end(), PART as u32, filename.cast()) };
        draft.grow(read, PART);
    }
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    if let Some(mm) = member::<*const u8>(task, &TASK_STRUCT_MM)
        && let Some(start) = member::<u64>(mm, &MM_STRUCT_ARG_START)
        && let Some(end) = member::<u64>(mm, &MM_STRUCT_ARG_END)
    {
        draft.add_bytes(start, end.wrapping_sub(start));
        if end.wrapping_sub(start) >= PART as u64 {
            draft.event.flags |= CUT;
        }
    }
    draft.send();
}
