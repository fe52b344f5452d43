//! A program that has been started, as the kernel tells of it to each kind of program.

use aya_ebpf::{
    EbpfContext as _,
    programs::{RawTracePointContext, TracePointContext},
};

use super::member;

// Where the running kernel has this member: set by the loader, read only.
/// `struct linux_binprm` to its `const char *filename`.
#[unsafe(no_mangle)]
static LINUX_BINPRM_FILENAME: u32 = 0;

/// The thread that runs has started a program.
pub(crate) trait Start {
    /// Where the program's name lies in the kernel's memory.
    fn filename(&self) -> Option<*const u8>;
}

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`.
impl Start for RawTracePointContext {
    #[inline(always)]
    fn filename(&self) -> Option<*const u8> {
        member(self.arg(2), &LINUX_BINPRM_FILENAME)
    }
}

/// `struct trace_event_raw_sched_process_exec`: the common head, and where in the record the name is.
impl Start for TracePointContext {
    #[inline(always)]
    fn filename(&self) -> Option<*const u8> {
        // SAFETY: a word of the tracepoint's record.
        let place = unsafe { *self.as_ptr().cast::<u32>().add(2) };
        // The upper half is the length.
        Some(self.as_ptr().cast::<u8>().cast_const().wrapping_add(place as u16 as usize))
    }
}
