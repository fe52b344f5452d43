//! Cgroups, and processes in them.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::{acts, probe::NEEDS};

/// A cgroup of its own, which ends with the value.
pub(crate) struct Cgroup {
    pub(crate) dir: PathBuf,
    pub(crate) id: u64,
}

impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2")).expect(NEEDS);
        let mount = mount.split(' ').nth(1).unwrap();
        let number = NUMBER.fetch_add(1, Relaxed);
        let name = format!("orb8-test-{name}-{}-{number}", std::process::id());
        Self::at(&Path::new(mount).join(name))
    }

    /// Another one below this one. Values of inner ones have to end first.
    pub(crate) fn below(&self, name: &str) -> Self {
        Self::at(&self.dir.join(name))
    }

    fn at(dir: &Path) -> Self {
        fs::create_dir(dir).expect(NEEDS);
        let id = fs::metadata(dir).unwrap().ino();
        Self { dir: dir.to_owned(), id }
    }

    /// Does something in the cgroup, in a process with so many threads, each so often.
    pub(crate) fn run(&self, what: &str, threads: usize, times: u64) {
        self.run_command(&act(what, threads, times));
    }

    /// Begins to do something.
    pub(crate) fn start(&self, what: &str, threads: usize, times: u64) -> Child {
        let mut command = self.command(&act(what, threads, times));
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    /// Runs a program in the cgroup to its end.
    pub(crate) fn run_program(&self, program: &str, arguments: &[&str]) {
        self.run_command(Command::new(program).args(arguments));
    }

    /// Runs a command in the cgroup to its end.
    pub(crate) fn run_command(&self, command: &Command) {
        let out = self.command(command).output().unwrap();
        assert!(out.status.success(), "{out:?}");
    }

    /// A shell that enters the cgroup and becomes the command.
    pub(crate) fn command(&self, command: &Command) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", r#"echo 0 > "$1"; shift; exec "$@""#, "sh"]);
        shell.arg(self.dir.join("cgroup.procs")).arg(command.get_program());
        shell.args(command.get_args());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell
    }

    /// A process that is somewhere else comes here.
    pub(crate) fn take_in(&self, child: &Child) {
        fs::write(self.dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
}

/// A process that does something.
pub(crate) fn act(what: &str, threads: usize, times: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "acts::act", "--quiet"]);
    command.env(acts::ACT, format!("{what} {threads} {times}"));
    command
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut tries = 0;
        while fs::remove_dir(&self.dir).is_err() && tries < 1_000 {
            tries += 1;
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
