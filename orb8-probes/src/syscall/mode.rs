//! Whose table a call's number belongs to: the kernel's own, or that of its 32-bit side.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};

use super::task::Task;

/// On x86_64 the way into the kernel decides, not the code's own mode: `int 0x80` makes 32-bit calls
/// in 64-bit programs too. The kernel notes it in the thread.
#[cfg(bpf_target_arch = "x86_64")]
mod how {
    /// `struct pt_regs` to `cs`, which tells 32-bit code by its segment.
    pub(super) const MODE: usize = 136;
    pub(super) const fn is_compat(cs: u64) -> bool {
        const USER32_CS: u64 = 0x23;
        cs as u16 as u64 == USER32_CS
    }

    /// `struct task_struct`, which begins with its `struct thread_info`, to `u32 status`: set by the
    /// loader, read only. 0: not known, so code is judged by its segment.
    #[unsafe(no_mangle)]
    static THREAD_INFO_STATUS: u32 = 0;
    /// arch/x86/include/asm/thread_info.h
    pub(super) const TS_COMPAT: u32 = 2;

    #[inline(always)]
    pub(super) fn status() -> Option<usize> {
        // SAFETY: the loader sets the value, so the compiler must not know it.
        let offset = unsafe { core::ptr::read_volatile(&THREAD_INFO_STATUS) } as usize;
        (offset != 0).then_some(offset)
    }
}

/// A 32-bit program makes 32-bit calls and no others.
#[cfg(bpf_target_arch = "aarch64")]
mod how {
    /// `struct pt_regs` to `pstate`, which tells 32-bit code by a bit.
    pub(super) const MODE: usize = 264;
    pub(super) const fn is_compat(pstate: u64) -> bool {
        const PSR_MODE32_BIT: u64 = 0x10;
        pstate & PSR_MODE32_BIT != 0
    }

    pub(super) const TS_COMPAT: u32 = 0;

    #[inline(always)]
    pub(super) fn status() -> Option<usize> {
        None
    }
}

/// By registers and a thread whose types the verifier knows.
#[inline(always)]
pub(super) fn is_compat_btf(regs: *const u8, task: Task) -> bool {
    if let Some(offset) = how::status() {
        return task.member::<u32>(offset) & how::TS_COMPAT != 0;
    }
    // SAFETY: the verifier knows the argument as a `struct pt_regs` and allows its members.
    how::is_compat(unsafe { *regs.add(how::MODE).cast::<u64>() })
}

/// Without registers, by a thread whose types the verifier knows.
#[inline(always)]
pub(super) fn is_compat_by(task: Task) -> bool {
    how::status().is_some_and(|offset| task.member::<u32>(offset) & how::TS_COMPAT != 0)
}

/// By registers whose type it does not know.
#[inline(always)]
pub(super) fn is_compat(regs: *const u8) -> bool {
    if how::status().is_some() {
        return is_compat_by_task();
    }
    // SAFETY: the helper checks what it reads.
    let mode = unsafe { bpf_probe_read_kernel(regs.wrapping_add(how::MODE).cast()) };
    mode.is_ok_and(how::is_compat)
}

/// Without registers. Where the thread does not tell, no call is taken for a 32-bit one.
#[inline(always)]
pub(super) fn is_compat_by_task() -> bool {
    let Some(offset) = how::status() else { return false };
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    // SAFETY: the helper checks what it reads.
    let status: Result<u32, _> =
        unsafe { bpf_probe_read_kernel(task.wrapping_add(offset).cast()) };
    status.is_ok_and(|status| status & how::TS_COMPAT != 0)
}
