//! Which calls become events, and what their arguments point to.

use std::sync::LazyLock;

use orb8_common::syscall::{NUMBERS, SyscallEvent, TextOf, event_flags::ENDED, text, told};
use orb8_proto::StreamRequest;

use super::names;
use crate::{
    config::Config,
    probe_loader::{LoadError, Object},
};

/// Calls that are told even if nobody listens, where the configuration does not say: with them a
/// process leaves its container, changes the kernel, or looks into others.
pub const SENSITIVE: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "clock_settime",
    "delete_module",
    "finit_module",
    "fsmount",
    "fsopen",
    "init_module",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// Told, each, to whoever listens and names no calls: what says what a program is about.
const LISTENED: &str = "accept accept4 bind capset chmod chown clone clone3 connect creat execve \
    execveat exit_group fanotify_init fchmod fchmodat fchmodat2 fchown fchownat fork kill lchown link \
    linkat listen memfd_create mkdir mkdirat mknod mknodat open openat openat2 personality \
    pidfd_send_signal prctl rename renameat renameat2 rmdir seccomp setgid setgroups sethostname \
    setregid setresgid setresuid setreuid setuid socket symlink symlinkat tgkill tkill truncate \
    unlink unlinkat vfork";

/// Too many to tell each: one in so many, to whoever listens.
const SAMPLED: &str = "access clock_gettime clock_nanosleep close epoll_ctl epoll_pwait epoll_pwait2 \
    epoll_wait faccessat faccessat2 fcntl fstat futex futex_wait futex_waitv futex_wake getdents \
    getdents64 getpid getppid getrandom gettid gettimeofday io_getevents io_submit io_uring_enter \
    ioctl lseek lstat madvise mmap mprotect munmap nanosleep newfstatat poll ppoll pread64 preadv \
    preadv2 pselect6 pwrite64 pwritev pwritev2 read readv recvfrom recvmmsg recvmsg rt_sigaction \
    rt_sigprocmask rt_sigreturn sched_yield select sendfile sendmmsg sendmsg sendto splice stat statx \
    time write writev";

/// A call, what its arguments point to, and which one.
const TEXTS: [(u32, &str); 4] = [
    (text::PROGRAM, "execve:0 execveat:1"),
    (
        text::PATH,
        "access:0 acct:0 chdir:0 chmod:0 chown:0 chroot:0 creat:0 delete_module:0 faccessat:1 \
         faccessat2:1 fchmodat:1 fchmodat2:1 fchownat:1 getxattr:0 inotify_add_watch:1 lchown:0 link:0 \
         linkat:1 lstat:0 memfd_create:0 mkdir:0 mkdirat:1 mknod:0 mknodat:1 mount:1 newfstatat:1 \
         open:0 open_tree:1 openat:1 openat2:1 pivot_root:0 readlink:0 readlinkat:1 rename:0 \
         renameat:1 renameat2:1 rmdir:0 setxattr:0 stat:0 statfs:0 statx:1 swapoff:0 swapon:0 \
         symlink:0 symlinkat:0 truncate:0 umount2:0 unlink:0 unlinkat:1 utimensat:1",
    ),
    (text::ADDRESS, "bind:1 connect:1"),
    (text::NONE, ""),
];

/// They do not return, or what they return is none of their own.
const WITHOUT_RESULT: [&str; 3] = ["exit", "exit_group", "rt_sigreturn"];

/// What becomes of each call while somebody listens who names none.
static USUAL: LazyLock<[u32; NUMBERS]> = LazyLock::new(|| {
    let mut told = [told::NEVER; NUMBERS];
    for (how, calls) in [(told::LISTENED, LISTENED), (told::SAMPLED, SAMPLED)] {
        for number in calls.split_whitespace().filter_map(names::number) {
            told[number as usize % NUMBERS] = how;
        }
    }
    told
});

/// Which calls one listener wants told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What is worth telling, and what is sensitive.
    Usual,
    /// These, whatever they are.
    Calls(Vec<u32>),
}

impl Wanted {
    /// What these names mean; for one that is no call here, who may have been meant.
    pub(super) fn parse(written: &[String]) -> Result<Self, String> {
        if written.is_empty() {
            return Ok(Self::Usual);
        }
        let number = |written: &String| {
            let name = names::find(written)?;
            let here = names::number(name);
            here.ok_or_else(|| format!("{name:?} is not a system call of {}", names::ARCHITECTURE))
        };
        Ok(Self::Calls(written.iter().map(number).collect::<Result<_, _>>()?))
    }

    /// Whether this listener wants to hear of a call; `sensitive` are told to all who name none.
    pub(super) fn wants(&self, number: u32, sensitive: &[u32]) -> bool {
        match self {
            Self::Usual => {
                USUAL.get(number as usize).is_some_and(|how| *how != told::NEVER)
                    || sensitive.contains(&number)
            }
            Self::Calls(calls) => calls.contains(&number),
        }
    }
}

/// What one listener wants told: calls that begin, or calls that have failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    calls: Wanted,
    failed: bool,
}

impl Listener {
    /// What a request means; for a name that is no call here, who may have been meant.
    pub(super) fn parse(request: &StreamRequest) -> Result<Self, String> {
        Ok(Self { calls: Wanted::parse(&request.syscalls)?, failed: request.errors_only })
    }

    /// The calls that this listener named, if it named any.
    pub(super) fn named(&self) -> Option<&[u32]> {
        match &self.calls {
            Wanted::Usual => None,
            Wanted::Calls(calls) => Some(calls),
        }
    }

    /// Whether this listener wants to hear of a call.
    pub(super) fn wants(&self, call: &SyscallEvent, sensitive: &[u32]) -> bool {
        let has_failed = call.flags & ENDED != 0;
        if has_failed != self.failed {
            return false;
        }
        has_failed && self.calls == Wanted::Usual || self.calls.wants(call.number, sensitive)
    }
}

/// The probe's end of it.
pub(super) struct Telling {
    /// Whether the probe watches the ends of calls.
    ends: bool,
    pub(super) sensitive: Vec<u32>,
    /// Told, each, whether somebody listens or not: those, and programs that are started, because
    /// they are the evidence of whatever departs from normal.
    pub(super) always: Vec<u32>,
}

impl Telling {
    /// Writes what arguments point to.
    pub(super) fn of(object: &mut Object, config: &Config) -> Result<Self, LoadError> {
        let texts = object.map("SYSCALL_TEXTS")?;
        let failed = |error| LoadError::MapIo { name: "SYSCALL_TEXTS".into(), error };
        for (text, calls) in TEXTS {
            for (call, argument) in calls.split_whitespace().filter_map(|c| c.split_once(':')) {
                if let (Some(number), Ok(argument)) = (names::number(call), argument.parse()) {
                    texts.set(&number, &TextOf { text, argument }).map_err(failed)?;
                }
            }
        }
        let sensitive: Vec<u32> =
            config.sensitive.iter().filter_map(|name| names::number(name)).collect();
        let started = ["execve", "execveat"].into_iter().filter_map(names::number);
        let always = sensitive.iter().copied().chain(started).collect();
        Ok(Self { ends: config.syscall_latency, sensitive, always })
    }

    /// What is to be told for all listeners together, besides what is told anyhow.
    pub(super) fn told<'a>(
        &self,
        listeners: impl Iterator<Item = &'a Listener> + Clone,
    ) -> [u32; NUMBERS] {
        let begin = listeners.clone().filter(|listener| !listener.failed);
        let mut now = what(begin.map(|listener| &listener.calls), &self.always);
        if self.ends {
            add_ends(&mut now, listeners.filter(|l| l.failed).map(|l| &l.calls));
        }
        now
    }
}

fn what<'a>(listeners: impl Iterator<Item = &'a Wanted>, always: &[u32]) -> [u32; NUMBERS] {
    let mut told = [told::NEVER; NUMBERS];
    for wanted in listeners {
        match wanted {
            Wanted::Usual => {
                for (told, usual) in told.iter_mut().zip(*USUAL) {
                    *told = (*told).max(usual);
                }
            }
            Wanted::Calls(calls) => {
                for &number in calls {
                    let usual = USUAL[number as usize % NUMBERS];
                    told[number as usize % NUMBERS] =
                        if usual == told::SAMPLED { told::SAMPLED } else { told::LISTENED };
                }
            }
        }
    }
    for &number in always {
        told[number as usize % NUMBERS] = told::ALWAYS;
    }
    told
}

/// What of calls that end is told, and which have no end.
fn add_ends<'a>(told: &mut [u32; NUMBERS], listeners: impl Iterator<Item = &'a Wanted>) {
    for wanted in listeners {
        match wanted {
            Wanted::Usual => told.iter_mut().for_each(|told| *told |= told::FAILED),
            Wanted::Calls(calls) => {
                for &number in calls {
                    told[number as usize % NUMBERS] |= told::FAILED;
                }
            }
        }
    }
    for number in WITHOUT_RESULT.into_iter().filter_map(names::number) {
        told[number as usize % NUMBERS] |= told::NO_RESULT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str) -> u32 {
        names::number(name).unwrap()
    }

    #[test]
    fn every_name_in_the_lists_is_a_call_and_is_in_one_list_only() {
        let texts = TEXTS.iter().flat_map(|(_, calls)| calls.split_whitespace());
        let texts = texts.map(|call| call.split_once(':').unwrap().0);
        let all = [LISTENED, SAMPLED].into_iter().flat_map(str::split_whitespace);
        for name in all.clone().chain(texts).chain(SENSITIVE.iter().copied()) {
            assert_eq!(names::find(name), Ok(name));
        }
        let mut once: Vec<_> = all.chain(SENSITIVE.iter().copied()).collect();
        once.sort_unstable();
        let twice = once.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None);
    }

    #[test]
    fn with_nobody_listening_only_what_is_told_anyhow_is_told() {
        let sensitive = [number("ptrace")];
        let told = what([].iter(), &sensitive);
        assert_eq!(told[number("ptrace") as usize], told::ALWAYS);
        assert_eq!(told.iter().filter(|how| **how != told::NEVER).count(), 1);
    }

    #[test]
    fn who_names_calls_gets_those_and_the_others_get_what_they_got() {
        let names = ["getcwd".to_owned(), "read".to_owned(), "execve".to_owned()];
        let named = Wanted::parse(&names).unwrap();
        let told = what([&named].into_iter(), &[]);
        assert_eq!(told[number("getcwd") as usize], told::LISTENED);
        assert_eq!(told[number("read") as usize], told::SAMPLED);
        assert_eq!(told[number("openat") as usize], told::NEVER);
        let told = what([&named, &Wanted::Usual].into_iter(), &[]);
        assert_eq!(told[number("openat") as usize], told::LISTENED);
        assert!(named.wants(number("getcwd"), &[]) && !Wanted::Usual.wants(number("getcwd"), &[]));
        assert!(!named.wants(number("openat"), &[]) && Wanted::Usual.wants(number("openat"), &[]));
    }

    #[test]
    fn who_wants_errors_hears_of_calls_that_failed_and_of_nothing_else() {
        let parse = |syscalls: &[&str], errors_only| {
            let syscalls = syscalls.iter().map(|name| (*name).to_owned()).collect();
            Listener::parse(&StreamRequest { syscalls, errors_only, ..Default::default() }).unwrap()
        };
        let call = |name, flags| {
            let bytes = [0; size_of::<SyscallEvent>()];
            let head = <SyscallEvent as orb8_common::Record>::decode(&bytes).unwrap();
            SyscallEvent { number: number(name), flags, ..head }
        };
        let (all, one, usual) = (parse(&[], true), parse(&["read"], true), parse(&[], false));
        let hears = |name, flags| {
            [&all, &one, &usual].map(|listener| listener.wants(&call(name, flags), &[]))
        };
        assert_eq!(hears("read", ENDED), [true, true, false]);
        assert_eq!(hears("getcwd", ENDED), [true, false, false]);
        assert_eq!(hears("openat", 0), [false, false, true]);
        let mut told = what([&usual.calls].into_iter(), &[]);
        add_ends(&mut told, [&one.calls].into_iter());
        assert_eq!(told[number("read") as usize], told::SAMPLED | told::FAILED);
        assert_eq!(told[number("openat") as usize], told::LISTENED);
        assert_eq!(told[number("exit_group") as usize], told::LISTENED | told::NO_RESULT);
    }

    #[test]
    fn a_name_that_is_no_call_here_is_an_error() {
        let error = Wanted::parse(&["excve".to_owned()]).unwrap_err();
        assert!(error.contains("execve"), "{error}");
    }
}
