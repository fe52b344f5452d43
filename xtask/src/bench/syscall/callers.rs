//! Two threads that make the calls, each in a cgroup of its own, both on one CPU.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
    thread::{JoinHandle, sleep},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fd::OwnedFd,
    io::{read, write},
    pipe::pipe,
    process::getppid,
    thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// Who calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// One thread.
    Alone,
    /// Two threads of two cgroups, by turns of [`TURN`] calls: each turn finds what the other one
    /// left in caches.
    InTurn,
}

/// Calls that a thread makes before the other one has its turn, those that hand over included.
const TURN: u32 = 16;
/// One to read from a pipe, one to write into the other.
const HAND_OVER: u32 = 2;

pub(super) struct Callers {
    threads: Vec<Caller>,
    /// `getppid` that were made while they were counted.
    counted: u64,
    /// Removed last.
    _cgroup: Cgroup,
}

struct Caller {
    jobs: Sender<(How, u32)>,
    done: Receiver<Result<f64>>,
    thread: Option<JoinHandle<()>>,
    cgroup: u64,
}

impl Callers {
    pub(super) fn start() -> Result<Self> {
        let cgroup = Cgroup::make()?;
        let cpu = sched_getaffinity(None)?;
        let cpu = (0..CpuSet::MAX_CPU).rev().find(|n| cpu.is_set(*n)).context("no CPU")?;
        let ((ours, theirs), (their_end, our_end)) = (pipe()?, pipe()?);
        let ends = [("a", ours, our_end, true), ("b", their_end, theirs, false)];
        let threads = ends.into_iter().map(|(name, from, to, first)| {
            Caller::start(&cgroup.dir.join(name), cpu, Line { from, to, first })
        });
        Ok(Self { threads: threads.collect::<Result<_>>()?, counted: 0, _cgroup: cgroup })
    }

    /// Whose calls they are.
    pub(super) fn cgroups(&self) -> Vec<u64> {
        self.threads.iter().map(|caller| caller.cgroup).collect()
    }

    /// `getppid` that were made while they were counted.
    pub(super) fn calls(&self) -> u64 {
        self.counted
    }

    /// Nanoseconds of CPU time that a call takes.
    pub(super) fn measure(&mut self, how: How, calls: u32, counted: bool) -> Result<f64> {
        let busy = if how == How::Alone { &self.threads[..1] } else { &self.threads[..] };
        for caller in busy {
            caller.jobs.send((how, calls)).context("a caller is gone")?;
        }
        let mut ns = Vec::new();
        for caller in busy {
            ns.push(caller.done.recv().context("a caller is gone")??);
        }
        if counted {
            let made: u64 = (0..busy.len()).map(|_| getppids(how, calls)).sum();
            self.counted += made;
        }
        Ok(ns.iter().sum::<f64>() / ns.len() as f64)
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        for mut caller in self.threads.drain(..) {
            drop(caller.jobs);
            if let Some(thread) = caller.thread.take() {
                drop(thread.join());
            }
        }
    }
}

/// `getppid` that one thread makes of so many calls.
fn getppids(how: How, calls: u32) -> u64 {
    match how {
        How::Alone => u64::from(calls),
        How::InTurn => u64::from(calls / TURN * (TURN - HAND_OVER)),
    }
}

impl Caller {
    fn start(cgroup: &Path, cpu: usize, line: Line) -> Result<Self> {
        let (jobs, todo) = channel();
        let (says, done) = channel();
        let (dir, id) = (cgroup.to_owned(), fs::metadata(cgroup)?.ino());
        let thread = std::thread::Builder::new().name("caller".into()).spawn(move || {
            let mut ready = settle(&dir, cpu);
            while let Ok((how, calls)) = todo.recv() {
                let ns = std::mem::replace(&mut ready, Ok(())).and_then(|()| line.call(how, calls));
                if says.send(ns).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, done, thread: Some(thread), cgroup: id })
    }
}

/// This thread enters the cgroup and stays on one CPU.
fn settle(cgroup: &Path, cpu: usize) -> Result<()> {
    let tid = gettid().as_raw_nonzero().to_string();
    let file = cgroup.join("cgroup.threads");
    fs::write(&file, tid).with_context(|| file.display().to_string())?;
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// What two callers hand over by.
struct Line {
    from: OwnedFd,
    to: OwnedFd,
    first: bool,
}

impl Line {
    fn call(&self, how: How, calls: u32) -> Result<f64> {
        let before = clock_gettime(ClockId::ThreadCPUTime);
        match how {
            How::Alone => repeat(calls),
            How::InTurn => self.by_turns(calls / TURN)?,
        }
        let took = clock_gettime(ClockId::ThreadCPUTime) - before;
        let made = if how == How::Alone { calls } else { calls / TURN * TURN };
        Ok(Duration::try_from(took)?.as_secs_f64() * 1e9 / f64::from(made))
    }

    fn by_turns(&self, turns: u32) -> Result<()> {
        let mut byte = [0];
        for turn in 0..turns {
            if !self.first || turn > 0 {
                ensure!(read(&self.from, &mut byte)? == 1, "the other caller is gone");
            }
            repeat(TURN - HAND_OVER);
            write(&self.to, &byte)?;
        }
        if self.first {
            // The other one's last word, so that the pipe is empty again.
            ensure!(read(&self.from, &mut byte)? == 1, "the other caller is gone");
        }
        Ok(())
    }
}

fn repeat(calls: u32) {
    for _ in 0..calls {
        std::hint::black_box(getppid());
    }
}

/// A cgroup for this process, with two for its threads. It ends with the value, and the process is
/// back where it was.
struct Cgroup {
    dir: PathBuf,
    before: PathBuf,
}

impl Cgroup {
    fn make() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let mount = mount.and_then(|line| line.split(' ').nth(1)).context("no cgroup2 mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup2")?;
        let dir = Path::new(mount).join(format!("orb8-bench-{}", std::process::id()));
        let this = Self { before: Path::new(mount).join(own), dir };
        for name in ["a", "b"] {
            fs::create_dir_all(this.dir.join(name)).context("cannot make a cgroup (needs root)")?;
        }
        enter(&this.dir)?;
        for name in ["a", "b"] {
            let kind = this.dir.join(name).join("cgroup.type");
            fs::write(&kind, "threaded").with_context(|| kind.display().to_string())?;
        }
        Ok(this)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(e) = enter(&self.before) {
            eprintln!("bench: {e:#}");
        }
        for dir in [self.dir.join("a"), self.dir.join("b"), self.dir.clone()] {
            // A thread that has been joined may take the kernel a moment more.
            let mut left = 100;
            while let Err(e) = fs::remove_dir(&dir) {
                left -= 1;
                if left == 0 {
                    eprintln!("bench: {}: {e}", dir.display());
                    break;
                }
                sleep(Duration::from_millis(10));
            }
        }
    }
}

/// All of this process.
fn enter(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| file.display().to_string())
}
