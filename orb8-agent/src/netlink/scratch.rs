//! For tests: network namespaces of their own, and code that runs inside one.

use std::{
    fs,
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A new network namespace, held by a process that sleeps in it. Both end with the value, and with the
/// test's thread if that dies first.
pub(crate) struct Namespace {
    holder: Child,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "300"])
            .stdin(Stdio::null())
            .spawn()
            .expect("setpriv and unshare of util-linux");
        let namespace = Self { holder };
        let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let start = Instant::now();
        while fs::read_link(namespace.path()).is_ok_and(|theirs| theirs == ours) {
            assert!(start.elapsed() < Duration::from_secs(10), "unshare --net takes root");
            thread::sleep(Duration::from_millis(2));
        }
        namespace
    }

    /// The process that holds the namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// Runs `test` on a thread, with a runtime, inside the namespace. What it spawns lives there too.
    pub(crate) fn run<T: Send>(&self, test: impl AsyncFnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(self.path()).unwrap();
        let on_thread = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(test())
        };
        match thread::scope(|scope| scope.spawn(on_thread).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs `ip`, `tc` or the like in the namespace of the calling thread.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-euc", command]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
