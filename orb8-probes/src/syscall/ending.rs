//! A system call that ends, as the kernel hands it to each kind of program.

use aya_ebpf::{
    EbpfContext as _,
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

use super::{
    mode, registers,
    task::{self, Task},
};

/// A call that ends.
pub(crate) trait Ending {
    /// What it returns.
    fn result(&self) -> i64;
    /// As in the table of the kernel or, see [`Self::is_compat`], of its 32-bit side.
    fn number(&self) -> i64;
    /// Made by 32-bit code, or the way that such code makes calls.
    fn is_compat(&self) -> bool;
    /// The arguments, as far as they are known; whether they are.
    fn arguments(&self, into: &mut [u64; 6]) -> bool;
}

/// `TP_PROTO(struct pt_regs *regs, long ret)`.
impl Ending for BtfTracePointContext {
    #[inline(always)]
    fn result(&self) -> i64 {
        self.arg(1)
    }

    #[inline(always)]
    fn number(&self) -> i64 {
        registers::number(self.arg(0))
    }

    #[inline(always)]
    fn is_compat(&self) -> bool {
        mode::is_compat_btf(self.arg(0), Task::current())
    }

    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) -> bool {
        registers::arguments(self.arg(0), into);
        true
    }
}

/// The same arguments, but the verifier does not know their types.
impl Ending for RawTracePointContext {
    #[inline(always)]
    fn result(&self) -> i64 {
        self.arg(1)
    }

    #[inline(always)]
    fn number(&self) -> i64 {
        registers::number(self.arg(0))
    }

    #[inline(always)]
    fn is_compat(&self) -> bool {
        mode::is_compat(self.arg(0))
    }

    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) -> bool {
        registers::arguments(self.arg(0), into);
        true
    }
}

/// `struct trace_event_raw_sys_exit`: the common head, `long id`, `long ret`.
impl Ending for TracePointContext {
    #[inline(always)]
    fn result(&self) -> i64 {
        // SAFETY: a word of the tracepoint's record.
        unsafe { *self.as_ptr().cast::<i64>().add(2) }
    }

    #[inline(always)]
    fn number(&self) -> i64 {
        // SAFETY: a word of the tracepoint's record.
        unsafe { *self.as_ptr().cast::<i64>().add(1) }
    }

    #[inline(always)]
    fn is_compat(&self) -> bool {
        mode::is_compat_by_task()
    }

    /// The record has none, the thread's registers do.
    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) -> bool {
        if !task::is_typed() {
            return false;
        }
        registers::arguments(Task::current().registers(), into);
        true
    }
}
