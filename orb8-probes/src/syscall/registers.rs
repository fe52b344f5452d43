//! Registers of the calling convention in `struct pt_regs`.
//!
//! Its head is part of the kernel's interface to user space. Source:
//! arch/*/include/uapi/asm/ptrace.h, syscall(2).

use aya_ebpf::helpers::bpf_probe_read_kernel;

#[cfg(bpf_target_arch = "x86_64")]
mod place {
    /// rdi, rsi, rdx, r10, r8, r9.
    pub(super) const ARGUMENTS: [usize; 6] = [112, 104, 96, 56, 72, 64];
    /// `orig_ax`.
    pub(super) const NUMBER: usize = 120;
}
#[cfg(bpf_target_arch = "aarch64")]
mod place {
    /// x0 to x5. The first one holds the result when the call ends; what it was is behind the part
    /// that user space sees, in `orig_x0`, where it has been since Linux 2.6.
    pub(super) const ARGUMENTS: [usize; 6] = [272, 8, 16, 24, 32, 40];
    /// x8.
    pub(super) const NUMBER: usize = 64;
}

/// The arguments; they stay in their registers while the call is made.
#[inline(always)]
pub(super) fn arguments(regs: *const u8, into: &mut [u64; 6]) {
    let mut at = 0;
    while at < 6 {
        into[at] = register(regs, place::ARGUMENTS[at]).unwrap_or(0);
        at += 1;
    }
}

/// The number of the call that is made, or was.
#[inline(always)]
pub(super) fn number(regs: *const u8) -> i64 {
    register(regs, place::NUMBER).map_or(-1, |number| number as i64)
}

#[inline(always)]
fn register(regs: *const u8, at: usize) -> Option<u64> {
    // SAFETY: the helper checks what it reads.
    unsafe { bpf_probe_read_kernel(regs.wrapping_add(at).cast()) }.ok()
}
