//! The thread that calls, and its cgroup.

use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_task_btf};

// Where the running kernel has these members: set by the loader, read only. 0: not known.
/// `struct task_struct` to its `struct css_set *cgroups`.
#[unsafe(no_mangle)]
static TASK_STRUCT_CGROUPS: u32 = 0;
/// `struct css_set` to its `struct cgroup *dfl_cgrp`, which is in the version 2 hierarchy.
#[unsafe(no_mangle)]
static CSS_SET_DFL_CGRP: u32 = 0;
/// `struct cgroup` to its `struct kernfs_node *kn`.
#[unsafe(no_mangle)]
static CGROUP_KN: u32 = 0;
/// `struct kernfs_node` to its `u64 id`.
#[unsafe(no_mangle)]
static KERNFS_NODE_ID: u32 = 0;

/// A thread whose type the verifier knows.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const u8);

impl Task {
    /// The one that runs.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: a helper without arguments.
        Self(unsafe { bpf_get_current_task_btf() }.cast())
    }

    /// What `bpf_get_current_cgroup_id` gives, without the call: that and what it calls in turn cost
    /// half as much as all the rest of counting.
    #[inline(always)]
    pub(crate) fn cgroup_id(self) -> u64 {
        let (cgroups, cgroup) = (offset(&TASK_STRUCT_CGROUPS), offset(&CSS_SET_DFL_CGRP));
        let (node, id) = (offset(&CGROUP_KN), offset(&KERNFS_NODE_ID));
        if cgroups == 0 || cgroup == 0 || node == 0 || id == 0 {
            return cgroup_id();
        }
        let set = Self(self.member(cgroups));
        if set.0.is_null() {
            return 0;
        }
        let group = Self(set.member(cgroup));
        if group.0.is_null() {
            return 0;
        }
        let node = Self(group.member(node));
        if node.0.is_null() {
            return 0;
        }
        node.member(id)
    }

    #[inline(always)]
    pub(super) fn member<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the verifier knows the structure and allows its members.
        unsafe { *self.0.add(offset).cast::<T>() }
    }
}

/// The cgroup of the thread that runs.
#[inline(always)]
pub(crate) fn cgroup_id() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_cgroup_id() }
}

#[inline(always)]
fn offset(offset: &'static u32) -> usize {
    // SAFETY: the loader sets the value, so the compiler must not know it.
    unsafe { core::ptr::read_volatile(offset) as usize }
}
