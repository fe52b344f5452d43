//! The object `cgroup_probe`: tells of cgroups as they are made and removed, so that a container
//! that lives for milliseconds has a name afterwards.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "maps, arguments and helpers are raw pointers on this side")]

mod emit;

use aya_ebpf::{
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str},
    },
    macros::{map, raw_tracepoint},
    maps::RingBuf,
    programs::RawTracePointContext,
};
use orb8_common::cgroup::{CgroupEvent, PATH_SIZE, what};

/// Bytes: about 500 events. When it is full, events are lost, which is counted; the agent then walks
/// the file system for those that still exist.
const RING_SIZE: u32 = 256 << 10;
#[map]
static CGROUP_EVENTS: RingBuf = RingBuf::with_byte_size(RING_SIZE, 0);

// Where the running kernel has these members: set by the loader, read only.
/// `struct cgroup` to its `struct cgroup_root *root`.
#[unsafe(no_mangle)]
static CGROUP_ROOT: u32 = 0;
/// `struct cgroup` to its `struct kernfs_node *kn`.
#[unsafe(no_mangle)]
static CGROUP_KN: u32 = 0;
/// `struct cgroup_root` to its `int hierarchy_id`.
#[unsafe(no_mangle)]
static CGROUP_ROOT_HIERARCHY_ID: u32 = 0;
/// `struct kernfs_node` to its `u64 id`.
#[unsafe(no_mangle)]
static KERNFS_NODE_ID: u32 = 0;

/// `TP_PROTO(struct cgroup *cgrp, const char *path)`. A raw tracepoint, because the other kind needs
/// tracefs to be mounted, which in a container it often is not.
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn orb8_cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    tell(&ctx, what::MADE);
    0
}

/// `TP_PROTO(struct cgroup *cgrp, const char *path)`.
#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub fn orb8_cgroup_rmdir(ctx: RawTracePointContext) -> i32 {
    tell(&ctx, what::REMOVED);
    0
}

#[inline(always)]
fn tell(ctx: &RawTracePointContext, what: u32) {
    let cgroup: *const u8 = ctx.arg(0);
    let path: *const u8 = ctx.arg(1);
    /// `cgrp_dfl_root`: the version 2 hierarchy.
    const VERSION_2: i32 = 0;
    let Some(id) = cgroup_id_in(cgroup, VERSION_2) else { return };
    emit::emit(&CGROUP_EVENTS, emit::WAKE_UP, |event: &mut CgroupEvent| {
        event.id = id;
        // SAFETY: a helper without arguments.
        event.timestamp_ns = unsafe { bpf_ktime_get_boot_ns() };
        event.what = what;
        event.reserved = 0;
        // SAFETY: the helper writes at most `PATH_SIZE` bytes, and checks what it reads.
        let read = unsafe {
            bpf_probe_read_kernel_str(event.path.as_mut_ptr().cast(), PATH_SIZE as u32, path.cast())
        };
        event.path_size = if read > 0 { read as u32 } else { 0 };
    });
}

/// The id of a cgroup, if it is in this hierarchy.
#[inline(always)]
fn cgroup_id_in(cgroup: *const u8, hierarchy: i32) -> Option<u64> {
    let root: *const u8 = member(cgroup, &CGROUP_ROOT)?;
    if member::<i32>(root, &CGROUP_ROOT_HIERARCHY_ID)? != hierarchy {
        return None;
    }
    let node: *const u8 = member(cgroup, &CGROUP_KN)?;
    member(node, &KERNFS_NODE_ID)
}

#[inline(always)]
fn member<T>(of: *const u8, offset: &'static u32) -> Option<T> {
    // SAFETY: the loader sets the value, so the compiler must not know it; the helper checks what it
    // reads.
    unsafe {
        let offset = core::ptr::read_volatile(offset) as usize;
        bpf_probe_read_kernel(of.wrapping_add(offset).cast()).ok()
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here, so nothing can.
    loop {}
}
