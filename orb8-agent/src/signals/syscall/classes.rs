//! Classes of system calls: few enough for a label on a metric.

use std::{collections::HashMap, sync::LazyLock};

/// Each class with its calls. A call that no line has is `other`: only what is too new for us.
const CLASSES: [(&str, &str); 9] = [
    (
        "file",
        "_sysctl access cachestat chdir chmod chown close close_range copy_file_range creat dup dup2 \
         dup3 faccessat faccessat2 fadvise64 fallocate fanotify_init fanotify_mark fchdir fchmod \
         fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr file_getattr file_setattr \
         flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd \
         getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 \
         inotify_rm_watch ioctl lchown lgetxattr link linkat listmount listxattr listxattrat \
         llistxattr lookup_dcookie lremovexattr lseek lsetxattr lstat memfd_create memfd_secret mkdir \
         mkdirat mknod mknodat name_to_handle_at newfstatat open open_by_handle_at openat openat2 \
         pread64 preadv preadv2 pwrite64 pwritev pwritev2 quotactl quotactl_fd read readahead \
         readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile \
         setxattr setxattrat splice stat statfs statmount statx symlink symlinkat sync \
         sync_file_range syncfs sysfs tee truncate umask unlink unlinkat ustat utime utimensat \
         utimensat_time64 utimes vmsplice write writev",
    ),
    (
        "network",
        "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg \
         recvmmsg_time64 recvmsg sendmmsg sendmsg sendto setsockopt shutdown socket socketpair",
    ),
    (
        "process",
        "arch_prctl capget capset clone clone3 execve execveat exit exit_group fork \
         get_robust_list get_thread_area getcpu getegid geteuid getgid getgroups getpgid getpgrp \
         getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid \
         ioprio_get ioprio_set kcmp landlock_add_rule landlock_create_ruleset \
         landlock_restrict_self lsm_get_self_attr lsm_list_modules lsm_set_self_attr membarrier \
         modify_ldt personality pidfd_getfd pidfd_open prctl prlimit64 process_mrelease rseq \
         sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
         sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
         sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp \
         set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setpgid \
         setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid sysinfo times \
         uname uretprobe uprobe vfork wait4 waitid",
    ),
    (
        "memory",
        "brk get_mempolicy madvise map_shadow_stack mbind migrate_pages mincore mlock mlock2 \
         mlockall mmap move_pages mprotect mremap mseal msync munlock munlockall munmap pkey_alloc \
         pkey_free pkey_mprotect process_madvise remap_file_pages set_mempolicy \
         set_mempolicy_home_node uselib",
    ),
    (
        "signal",
        "kill pause pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask \
         rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
         rt_tgsigqueueinfo sigaltstack signalfd signalfd4 tgkill tkill",
    ),
    (
        "time",
        "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
         clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep \
         setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 \
         timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
         timerfd_settime timerfd_settime64",
    ),
    (
        "ipc",
        "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
         epoll_wait_old eventfd eventfd2 futex futex_requeue futex_time64 futex_wait futex_waitv \
         futex_wake getpmsg io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 \
         io_setup io_submit io_uring_enter io_uring_register io_uring_setup mq_getsetattr mq_notify \
         mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink \
         msgctl msgget msgrcv msgsnd pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 \
         putpmsg select semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget",
    ),
    (
        "privileged",
        "acct add_key bpf chroot clock_settime clock_settime64 create_module delete_module \
         finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module ioperm iopl \
         kexec_file_load kexec_load keyctl mount mount_setattr move_mount nfsservctl open_tree \
         open_tree_attr perf_event_open pivot_root process_vm_readv process_vm_writev ptrace \
         query_module reboot request_key setdomainname sethostname setns settimeofday swapoff \
         swapon syslog umount2 unshare userfaultfd vhangup",
    ),
    (
        "other",
        // What never was a call of Linux, of 32-bit programs, and of no table.
        "afs_syscall compat getrandom other security tuxcall vserver",
    ),
];

static BY_NAME: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| {
    CLASSES
        .iter()
        .flat_map(|(class, calls)| calls.split_whitespace().map(|call| (call, *class)))
        .collect()
});

/// The class of a call.
#[must_use]
pub fn class_of(call: &str) -> &'static str {
    BY_NAME.get(call).copied().unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::syscall::names;

    #[test]
    fn every_call_of_every_architecture_has_one_class_and_no_other_name_has() {
        let mut listed: Vec<&str> =
            CLASSES.iter().flat_map(|(_, calls)| calls.split_whitespace()).collect();
        listed.sort_unstable();
        let all: Vec<&str> = names::all().collect();
        assert_eq!(listed, all);
    }

    #[test]
    fn a_call_that_is_too_new_is_of_no_class() {
        assert_eq!(class_of("syscall-500"), "other");
        assert_eq!(class_of("openat"), "file");
    }
}
