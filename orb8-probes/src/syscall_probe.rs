//! The object `syscall_probe`: one program where every system call begins, in the form that the
//! kernel has, and one where a program has been started; where the ends of calls are watched, one
//! there and one where a thread ends.
//!
//! Which form is the best one depends on the kernel: see `tracepoint.rs`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "maps, arguments and helpers are raw pointers on this side")]

mod emit;
mod filter;
mod syscall;

use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};

/// The verifier knows the arguments' types.
#[btf_tracepoint(function = "sys_enter")]
pub fn orb8_sys_enter(ctx: BtfTracePointContext) -> i32 {
    syscall::enter(&ctx);
    0
}

/// For kernels without type information.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn orb8_sys_enter_raw(ctx: RawTracePointContext) -> i32 {
    syscall::enter(&ctx);
    0
}

/// With the perf subsystem between it and the tracepoint.
#[tracepoint(category = "raw_syscalls", name = "sys_enter")]
pub fn orb8_sys_enter_tp(ctx: TracePointContext) -> u32 {
    syscall::enter(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn orb8_process_exec(ctx: RawTracePointContext) -> i32 {
    syscall::started(&ctx);
    0
}

#[tracepoint(category = "sched", name = "sched_process_exec")]
pub fn orb8_process_exec_tp(ctx: TracePointContext) -> u32 {
    syscall::started(&ctx);
    0
}

/// Attached where the ends of calls are watched, as are the next ones.
#[btf_tracepoint(function = "sys_exit")]
pub fn orb8_sys_exit(ctx: BtfTracePointContext) -> i32 {
    syscall::end(&ctx);
    0
}

/// For kernels without type information.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn orb8_sys_exit_raw(ctx: RawTracePointContext) -> i32 {
    syscall::end(&ctx);
    0
}

/// With the perf subsystem between it and the tracepoint.
#[tracepoint(category = "raw_syscalls", name = "sys_exit")]
pub fn orb8_sys_exit_tp(ctx: TracePointContext) -> u32 {
    syscall::end(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn orb8_process_exit(_ctx: RawTracePointContext) -> i32 {
    syscall::forget_thread();
    0
}

#[tracepoint(category = "sched", name = "sched_process_exit")]
pub fn orb8_process_exit_tp(_ctx: TracePointContext) -> u32 {
    syscall::forget_thread();
    0
}

/// Attached for measurements only: the floor under those of `orb8_sys_enter`.
#[btf_tracepoint(function = "sys_enter")]
pub fn orb8_sys_enter_empty(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// As well, of `orb8_sys_enter_tp`.
#[tracepoint(category = "raw_syscalls", name = "sys_enter")]
pub fn orb8_sys_enter_empty_tp(_ctx: TracePointContext) -> u32 {
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here, so nothing can.
    loop {}
}
