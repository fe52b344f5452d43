//! A system call that begins, as the kernel hands it to each kind of program.

use aya_ebpf::{
    EbpfContext as _,
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

use super::{
    mode, number, registers,
    task::{self, Cgroup, Task, cgroup_id},
};

/// A call that begins.
pub(crate) trait Call {
    /// The caller's cgroup, and the number under which the call is counted.
    fn caller(&self) -> (Cgroup, u32);
    /// The arguments, which lie in registers.
    fn arguments(&self, into: &mut [u64; 6]);
}

/// `TP_PROTO(struct pt_regs *regs, long id)`.
impl Call for BtfTracePointContext {
    #[inline(always)]
    fn caller(&self) -> (Cgroup, u32) {
        let task = Task::current();
        (task.cgroup(), number(self.arg(1), mode::is_compat_btf(self.arg(0), task)))
    }

    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) {
        registers::arguments(self.arg(0), into);
    }
}

/// The same arguments, but the verifier does not know their types.
impl Call for RawTracePointContext {
    #[inline(always)]
    fn caller(&self) -> (Cgroup, u32) {
        (Cgroup::of_id(cgroup_id()), number(self.arg(1), mode::is_compat(self.arg(0))))
    }

    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) {
        registers::arguments(self.arg(0), into);
    }
}

/// `struct trace_event_raw_sys_enter`: the common head, `long id`, `unsigned long args[6]`.
impl Call for TracePointContext {
    #[inline(always)]
    fn caller(&self) -> (Cgroup, u32) {
        // SAFETY: a word of the tracepoint's record.
        let id = unsafe { *self.as_ptr().cast::<i64>().add(1) };
        if task::is_typed() {
            let task = Task::current();
            (task.cgroup(), number(id, mode::is_compat_by(task)))
        } else {
            (Cgroup::of_id(cgroup_id()), number(id, mode::is_compat_by_task()))
        }
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
