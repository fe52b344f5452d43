//! How numbers of calls and of errors are called. The detector counts, people read names.

use std::borrow::Cow;

use orb8_common::syscall::NUMBERS;

use super::callset::CallSet;

/// Errors whose rate is watched, and their numbers, which all architectures of Linux share.
pub(super) const ERRORS: [(u16, &str); 3] = [(1, "EPERM"), (2, "ENOENT"), (13, "EACCES")];

/// Calls by which what a new one means is told best, so they are reported first: a program is
/// started, a process is made, an identity changed, somebody is talked to.
const TELLING: [&[&str]; 4] = [
    &["execve", "execveat"],
    &["fork", "vfork", "clone", "clone3"],
    &["setuid", "setgid", "setresuid", "setresgid", "capset", "chroot", "prctl", "kill"],
    &["connect", "bind", "listen", "accept", "accept4", "socket", "sendto", "sendmsg"],
];

/// Calls that the kernel or a stop signal makes a program do, which says nothing about it.
const MEANINGLESS: [&str; 5] =
    ["restart_syscall", "rt_sigreturn", "exit", "exit_group", "sigreturn"];

/// Names of calls.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    names: Vec<Cow<'static, str>>,
    ranks: Vec<u8>,
    meaningless: CallSet,
}

impl Names {
    /// The table that `name` has.
    pub(crate) fn new(name: impl Fn(u32) -> Cow<'static, str>) -> Self {
        let names: Vec<_> = (0..u32::MAX).take(NUMBERS).map(name).collect();
        let rank = |name: &Cow<'_, str>| {
            let found = TELLING.iter().position(|names| names.contains(&&**name));
            u8::try_from(found.unwrap_or(TELLING.len())).unwrap_or(u8::MAX)
        };
        let ranks = names.iter().map(rank).collect();
        let mut all = Self { names, ranks, meaningless: CallSet::default() };
        all.meaningless = all.numbers(MEANINGLESS);
        all
    }

    /// Numbers of those names that this architecture has.
    pub(super) fn numbers<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> CallSet {
        let mut set = CallSet::default();
        for wanted in names {
            let found = self.names.iter().position(|name| name == wanted);
            if let Some(number) = found.and_then(|at| u16::try_from(at).ok()) {
                set.insert(number);
            }
        }
        set
    }

    pub(super) fn call(&self, number: u16) -> &str {
        self.names.get(usize::from(number)).map_or("other", |name| &**name)
    }

    pub(super) fn error(number: u16) -> &'static str {
        let found = ERRORS.iter().find(|(known, _)| *known == number);
        found.map_or("error", |(_, name)| name)
    }

    /// What comes first is reported first.
    pub(super) fn rank(&self, number: u16) -> u8 {
        self.ranks.get(usize::from(number)).copied().unwrap_or(u8::MAX)
    }

    pub(super) fn is_meaningless(&self, number: u16) -> bool {
        self.meaningless.contains(number)
    }
}
