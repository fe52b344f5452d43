//! A system call that begins, as the kernel hands it to each kind of program.

use aya_ebpf::{
    EbpfContext as _,
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

use super::{mode, registers};

/// A call that begins.
pub(crate) trait Call {
    /// As in the table of the kernel or, see [`Self::is_compat`], of its 32-bit side.
    fn number(&self) -> i64;
    /// Made by 32-bit code, or the way that such code makes calls.
    fn is_compat(&self) -> bool;
    /// The arguments, which lie in registers.
    fn arguments(&self, into: &mut [u64; 6]);
}

/// `TP_PROTO(struct pt_regs *regs, long id)`.
impl Call for BtfTracePointContext {
    #[inline(always)]
    fn number(&self) -> i64 {
        self.arg(1)
    }

    #[inline(always)]
    fn is_compat(&self) -> bool {
        mode::is_compat_btf(self.arg(0))
    }

    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) {
        registers::arguments(self.arg(0), into);
    }
}

/// The same arguments, but the verifier does not know their types.
impl Call for RawTracePointContext {
    #[inline(always)]
    fn number(&self) -> i64 {
        self.arg(1)
    }

    #[inline(always)]
    fn is_compat(&self) -> bool {
        mode::is_compat(self.arg(0))
    }

    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) {
        registers::arguments(self.arg(0), into);
    }
}

/// `struct trace_event_raw_sys_enter`: the common head, `long id`, `unsigned long args[6]`.
impl Call for TracePointContext {
    #[inline(always)]
    fn number(&self) -> i64 {
        // SAFETY: a word of the tracepoint's record.
        unsafe { *self.as_ptr().cast::<i64>().add(1) }
    }

    #[inline(always)]
    fn is_compat(&self) -> bool {
        mode::is_compat_by_task()
    }

    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) {
        let args = self.as_ptr().cast::<u64>();
        let mut at = 0;
        while at < 6 {
            // SAFETY: words of the tracepoint's record.
            into[at] = unsafe { *args.add(2 + at) };
            at += 1;
        }
    }
}
