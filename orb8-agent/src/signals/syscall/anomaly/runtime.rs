//! What a container's runtime does in a container, which is not the container's doing.
//!
//! Before a container's program is started, its runtime mounts, pivots and joins namespaces in the
//! container's cgroup. Nobody else can until then, so all of that is the runtime's. When a runtime
//! enters a running container (`kubectl exec`, probes by command), it names its threads, as in
//! `runc:[1:CHILD]`. A name can be given by anybody, so it is believed only of processes that did
//! not start a program in the container, and only for calls that entering takes.

use std::collections::VecDeque;

/// Processes of a container that started a program and are remembered.
const EXECUTED: usize = 64;

/// What it takes to prepare a container, or to enter one.
pub(super) const ENTERING: [&str; 12] = [
    "mount",
    "umount2",
    "pivot_root",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsmount",
    "mount_setattr",
    "setns",
    "unshare",
    "keyctl",
    "pidfd_getfd",
];

/// One call that was told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The call.
    pub(crate) number: u32,
    /// The process, in the node's process namespace.
    pub(crate) pid: u32,
    /// The thread's name.
    pub(crate) comm: String,
    /// The call with what is known of its arguments, such as `execve /bin/sh -c id`.
    pub(crate) text: String,
    /// Not a call, but the program that one has started.
    pub(crate) program: Option<String>,
}

impl Told {
    /// As evidence for people.
    pub(super) fn evidence(&self) -> String {
        format!("{} (pid {}): {}", self.comm, self.pid, self.text)
    }
}

/// What is known of the programs that were started in a container.
#[derive(Clone, Debug, Default)]
pub(super) struct Programs {
    /// Its own program, or one after that, was started.
    pub(super) own: bool,
    executed: VecDeque<u32>,
}

impl Programs {
    pub(super) fn started(&mut self, pid: u32, program: &str) {
        if is_runtime(program) {
            return;
        }
        self.own = true;
        if !self.executed.contains(&pid) {
            self.executed.truncate(EXECUTED - 1);
            self.executed.push_front(pid);
        }
    }

    /// Whether a runtime that enters the container has made this call.
    pub(super) fn is_of_runtime(&self, told: &Told) -> bool {
        const NAMES: [&str; 3] = ["runc:[", "crun", "youki:["];
        let named = NAMES.iter().any(|name| told.comm.starts_with(name));
        named && !self.executed.contains(&told.pid)
    }
}

/// Runtimes start themselves again, by a link or from a sealed copy in memory.
fn is_runtime(program: &str) -> bool {
    const LINKS: [&str; 3] = ["/proc/self/", "/dev/fd/", "/memfd:"];
    let name = program.rsplit('/').next().unwrap_or_default();
    LINKS.iter().any(|link| program.starts_with(link)) || ["runc", "crun", "youki"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(pid: u32, comm: &str) -> Told {
        let (comm, text) = (comm.to_owned(), "setns".to_owned());
        Told { number: 308, pid, comm, text, program: None }
    }

    #[test]
    fn a_runtime_that_starts_itself_has_not_started_the_containers_program() {
        let mut programs = Programs::default();
        programs.started(1, "/proc/self/fd/6");
        programs.started(1, "/usr/sbin/runc");
        assert!(!programs.own);
        programs.started(1, "/usr/sbin/nginx");
        assert!(programs.own);
    }

    #[test]
    fn a_program_of_the_container_that_calls_itself_runc_is_not_believed() {
        let mut programs = Programs::default();
        assert!(programs.is_of_runtime(&call(7, "runc:[1:CHILD]")));
        programs.started(7, "/tmp/tool");
        assert!(!programs.is_of_runtime(&call(7, "runc:[1:CHILD]")));
        assert!(!programs.is_of_runtime(&call(8, "sh")));
        (100..).take(2 * EXECUTED).for_each(|pid| programs.started(pid, "/bin/true"));
        assert_eq!(programs.executed.len(), EXECUTED);
    }
}
