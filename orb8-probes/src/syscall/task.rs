//! The thread that calls, and its cgroup.

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_task_btf, bpf_task_pt_regs,
};

// Where the running kernel has these members: set by the loader, read only. 0: not known.
/// `struct task_struct` to its `struct css_set *cgroups`.
#[unsafe(no_mangle)]
static TASK_STRUCT_CGROUPS: u32 = 0;
/// `struct css_set` to its `struct cgroup *dfl_cgrp`, which is in the version 2 hierarchy.
#[unsafe(no_mangle)]
static CSS_SET_DFL_CGRP: u32 = 0;
/// `struct cgroup`, which begins with its `struct cgroup_subsys_state self`, to `u64 serial_nr`.
#[unsafe(no_mangle)]
static CGROUP_SUBSYS_STATE_SERIAL_NR: u32 = 0;
/// `struct cgroup` to its `struct kernfs_node *kn`.
#[unsafe(no_mangle)]
static CGROUP_KN: u32 = 0;
/// `struct kernfs_node` to its `u64 id`.
#[unsafe(no_mangle)]
static KERNFS_NODE_ID: u32 = 0;

/// 1 where a program of any kind may ask for the thread that runs and for its registers, in types that
/// the verifier knows: `bpf_get_current_task_btf` came with Linux 5.11, `bpf_task_pt_regs` with 5.15. Set
/// by the loader, read only, so that older kernels remove what they would refuse.
#[unsafe(no_mangle)]
static TYPED_TASK: u32 = 0;

/// Whether a program that is not typed itself can have [`Task::current`].
#[inline(always)]
pub(super) fn is_typed() -> bool {
    // SAFETY: the loader sets the value, so the compiler must not know it.
    unsafe { core::ptr::read_volatile(&TYPED_TASK) != 0 }
}

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

    /// What the registers held when it entered the kernel: a `struct pt_regs`.
    #[inline(always)]
    pub(super) fn registers(self) -> *const u8 {
        // SAFETY: the verifier knows the thread.
        unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) as *const u8 }
    }

    /// Its cgroup, without `bpf_get_current_cgroup_id`: that and what it calls in turn cost half as
    /// much as all the rest of counting.
    #[inline(always)]
    pub(crate) fn cgroup(self) -> Cgroup {
        let (cgroups, cgroup) = (offset(&TASK_STRUCT_CGROUPS), offset(&CSS_SET_DFL_CGRP));
        let serial = offset(&CGROUP_SUBSYS_STATE_SERIAL_NR);
        let (node, id) = (offset(&CGROUP_KN), offset(&KERNFS_NODE_ID));
        if cgroups == 0 || cgroup == 0 || serial == 0 || node == 0 || id == 0 {
            return Cgroup::of_id(cgroup_id());
        }
        let set = Self(self.member(cgroups));
        if set.0.is_null() {
            return Cgroup::of_id(0);
        }
        let cgroup = Self(set.member(cgroup));
        if cgroup.0.is_null() {
            return Cgroup::of_id(0);
        }
        Cgroup { key: cgroup.member(serial), cgroup }
    }

    #[inline(always)]
    pub(super) fn member<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the verifier knows the structure and allows its members.
        unsafe { *self.0.add(offset).cast::<T>() }
    }
}

/// A cgroup of the version 2 hierarchy.
#[derive(Clone, Copy)]
pub(crate) struct Cgroup {
    /// Names it, and no other one before or after it: its serial number, which the kernel gives once,
    /// or its id. Of one kernel it is always the same of the two.
    pub(crate) key: u64,
    /// Its `struct cgroup`; null where the key is the id.
    cgroup: Task,
}

impl Cgroup {
    #[inline(always)]
    pub(super) const fn of_id(id: u64) -> Self {
        Self { key: id, cgroup: Task(core::ptr::null()) }
    }

    /// Its id: two more steps in memory than its serial number.
    #[inline(always)]
    pub(crate) fn id(self) -> u64 {
        if self.cgroup.0.is_null() {
            return self.key;
        }
        let node = Task(self.cgroup.member(offset(&CGROUP_KN)));
        if node.0.is_null() {
            return 0;
        }
        node.member(offset(&KERNFS_NODE_ID))
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
