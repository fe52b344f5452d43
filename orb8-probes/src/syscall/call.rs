//! A system call as the kernel hands it to each kind of program.

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_probe_read_kernel,
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

/// Registers of the calling convention in `struct pt_regs`, which is part of the kernel's interface
/// to user space. Source: arch/*/include/uapi/asm/ptrace.h, syscall(2).
#[cfg(bpf_target_arch = "x86_64")]
mod registers {
    /// rdi, rsi, rdx, r10, r8, r9.
    pub(super) const ARGUMENTS: [usize; 6] = [112, 104, 96, 56, 72, 64];
    /// `cs`, which tells 32-bit code by its segment.
    pub(super) const MODE: usize = 136;
    pub(super) const fn is_compat(mode: u64) -> bool {
        const USER32_CS: u64 = 0x23;
        mode as u16 as u64 == USER32_CS
    }
}
#[cfg(bpf_target_arch = "aarch64")]
mod registers {
    /// x0 to x5. The first is as the caller passed it only in `orig_x0`, but at entry they agree.
    pub(super) const ARGUMENTS: [usize; 6] = [0, 8, 16, 24, 32, 40];
    /// `pstate`, which tells 32-bit code by a bit.
    pub(super) const MODE: usize = 264;
    pub(super) const fn is_compat(mode: u64) -> bool {
        const PSR_MODE32_BIT: u64 = 0x10;
        mode & PSR_MODE32_BIT != 0
    }
}

/// A call that begins.
pub(crate) trait Call {
    /// As in the table of the kernel or, see [`Self::is_compat`], of its 32-bit side.
    fn number(&self) -> i64;
    /// Made by a 32-bit program.
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
        let regs: *const u8 = self.arg(0);
        // SAFETY: the verifier knows the argument as a `struct pt_regs` and allows its members.
        registers::is_compat(unsafe { *regs.add(registers::MODE).cast::<u64>() })
    }

    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) {
        read_registers(self.arg(0), into);
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
        let regs: *const u8 = self.arg(0);
        // SAFETY: the helper checks what it reads.
        let mode = unsafe { bpf_probe_read_kernel(regs.wrapping_add(registers::MODE).cast()) };
        mode.is_ok_and(registers::is_compat)
    }

    #[inline(always)]
    fn arguments(&self, into: &mut [u64; 6]) {
        read_registers(self.arg(0), into);
    }
}

/// `struct trace_event_raw_sys_enter`: the common head, `long id`, `unsigned long args[6]`. The
/// kernel does not call it for 32-bit programs on x86_64.
impl Call for TracePointContext {
    #[inline(always)]
    fn number(&self) -> i64 {
        // SAFETY: a word of the tracepoint's record.
        unsafe { *self.as_ptr().cast::<i64>().add(1) }
    }

    #[inline(always)]
    fn is_compat(&self) -> bool {
        false
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

#[inline(always)]
fn read_registers(regs: *const u8, into: &mut [u64; 6]) {
    let mut at = 0;
    while at < 6 {
        let register = regs.wrapping_add(registers::ARGUMENTS[at]);
        // SAFETY: the helper checks what it reads.
        into[at] = unsafe { bpf_probe_read_kernel(register.cast()) }.unwrap_or(0);
        at += 1;
    }
}
