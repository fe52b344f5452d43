//! The embedded objects, or the reason why there are none, and what each wants to know of the kernel.

use crate::btf::Member;

/// This binary was built on a machine that could not compile eBPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing;

impl core::fmt::Display for Missing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(
            "this binary was built without its eBPF probes; rebuild it where a BPF toolchain is \
             installed (Debian: rustc-web cargo-web libstd-rust-web-dev-bpf rust-web-llvm)",
        )
    }
}

impl core::error::Error for Missing {}

/// Objects are parsed in place, and ELF headers want 8-byte alignment.
#[cfg(orb8_probes)]
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        #[cfg(orb8_probes)]
        pub const $name: Result<&[u8], Missing> = {
            static OBJECT: &Aligned<[u8]> =
                &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $file)));
            Ok(&OBJECT.0)
        };

        $(#[$doc])*
        #[cfg(not(orb8_probes))]
        pub const $name: Result<&[u8], Missing> = Err(Missing);
    };
}

object!(
    /// The ELF object that tells of cgroups as they come and go.
    CGROUP_PROBE, "cgroup_probe"
);
object!(
    /// The ELF object of the network signal.
    NETWORK_PROBE, "network_probe"
);
object!(
    /// The ELF object of the syscall signal.
    SYSCALL_PROBE, "syscall_probe"
);

/// Globals of [`CGROUP_PROBE`].
pub const CGROUP_MEMBERS: [Member; 4] = [
    ("CGROUP_ROOT", ("cgroup", "root")),
    ("CGROUP_KN", ("cgroup", "kn")),
    ("CGROUP_ROOT_HIERARCHY_ID", ("cgroup_root", "hierarchy_id")),
    ("KERNFS_NODE_ID", ("kernfs_node", "id")),
];

/// Globals of [`SYSCALL_PROBE`].
pub const SYSCALL_MEMBERS: &[Member] = &[
    #[cfg(target_arch = "x86_64")]
    ("THREAD_INFO_STATUS", ("thread_info", "status")),
    ("TASK_STRUCT_CGROUPS", ("task_struct", "cgroups")),
    ("CSS_SET_DFL_CGRP", ("css_set", "dfl_cgrp")),
    ("CGROUP_SUBSYS_STATE_SERIAL_NR", ("cgroup_subsys_state", "serial_nr")),
    ("CGROUP_KN", ("cgroup", "kn")),
    ("KERNFS_NODE_ID", ("kernfs_node", "id")),
    ("TASK_STRUCT_MM", ("task_struct", "mm")),
    ("MM_STRUCT_ARG_START", ("mm_struct", "arg_start")),
    ("MM_STRUCT_ARG_END", ("mm_struct", "arg_end")),
    ("LINUX_BINPRM_FILENAME", ("linux_binprm", "filename")),
];
