//! System calls that a program can make a known number of times: each by a safe wrapper that makes this one call and no
//! other, and that nothing else in a short program calls by the way.

use std::fs::File;
use std::hint::black_box;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, FallocateFlags, FlockOperation, MemfdFlags, Mode, SeekFrom};
use rustix::time::{TimerfdClockId, TimerfdFlags};
use rustix::{fs, io, process, system, thread, time};

/// A call by its name, and what makes it.
type Call = (&'static str, fn(BorrowedFd<'_>) -> Result<()>);

/// In the order of [`expected`].
const CALLS: [Call; 20] = [
    ("getppid", |_| done(Ok(process::getppid()))),
    ("getgid", |_| done(Ok(process::getgid()))),
    ("getegid", |_| done(Ok(process::getegid()))),
    ("getpriority", |_| done(process::getpriority_process(None))),
    ("umask", |_| done(Ok(process::umask(Mode::from_bits_retain(0o22))))),
    ("fstatfs", |file| done(fs::fstatfs(file))),
    ("sched_yield", |_| {
        thread::sched_yield();
        Ok(())
    }),
    ("uname", |_| done(Ok(system::uname()))),
    ("sysinfo", |_| done(Ok(system::sysinfo()))),
    ("ftruncate", |file| done(fs::ftruncate(file, 4096))),
    ("fallocate", |file| done(fs::fallocate(file, FallocateFlags::empty(), 0, 4096))),
    ("flock", |file| done(fs::flock(file, FlockOperation::NonBlockingLockShared))),
    ("fsync", |file| done(fs::fsync(file))),
    ("fdatasync", |file| done(fs::fdatasync(file))),
    ("pwrite64", |file| done(io::pwrite(file, b"x", 0))),
    ("preadv", |file| done(io::preadv(file, &mut [], 0))),
    ("lseek", |file| done(fs::seek(file, SeekFrom::Start(0)))),
    ("fadvise64", |file| done(fs::fadvise(file, 0, NonZero::new(1), Advice::Normal))),
    ("getcwd", |_| done(process::getcwd(Vec::with_capacity(4096)))),
    ("fchmod", |file| done(fs::fchmod(file, Mode::from_bits_retain(0o600)))),
];

/// Made only when it is named, so that a test can have a call to itself on a machine where others run.
const ALONE: Call = ("timerfd_create", |_| {
    done(time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC))
});

fn done<T>(answer: io::Result<T>) -> Result<()> {
    black_box(answer?);
    Ok(())
}

fn all() -> impl Iterator<Item = Call> {
    CALLS.into_iter().chain([ALONE])
}

/// How often each call is made: the first one `times`, the second one twice that, and so on, by every thread. Of one
/// call alone, if it is named: `times`.
///
/// # Errors
/// When there is no such call.
pub fn expected(threads: u32, times: u32, only: Option<&str>) -> Result<Vec<(&'static str, u64)>> {
    let each = u64::from(threads) * u64::from(times);
    let Some(only) = only else {
        return Ok((1..).zip(CALLS).map(|(n, (name, _))| (name, n * each)).collect());
    };
    let known = all().find(|(name, _)| *name == only);
    let names: Vec<_> = all().map(|(name, _)| name).collect();
    let (name, _) = known.with_context(|| format!("{only:?}: expected one of {names:?}"))?;
    Ok(vec![(name, each)])
}

/// Keeps calls from coming faster than so many a second, in bursts of a millisecond.
struct Pace {
    began: Instant,
    per_second: Option<u32>,
    made: u32,
}

impl Pace {
    fn wait(&mut self) {
        let Some(per_second) = self.per_second else { return };
        self.made += 1;
        if self.made.is_multiple_of((per_second / 1_000).max(1)) {
            let due = Duration::from_secs(self.made.into()) / per_second;
            std::thread::sleep(due.saturating_sub(self.began.elapsed()));
        }
    }
}

/// Makes them, no more than `per_second` a second by each thread.
///
/// # Errors
/// When one of them fails.
pub fn make(threads: u32, times: u32, only: Option<&str>, per_second: Option<u32>) -> Result<()> {
    let plan = expected(1, times, only)?;
    let file = File::from(fs::memfd_create("known-calls", MemfdFlags::CLOEXEC)?);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(error) = make_all(&plan, file.as_fd(), per_second)
                    && let Ok(mut failed) = failed.lock()
                {
                    *failed = Some(error);
                }
            });
        }
    });
    match failed.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(_) => bail!("a thread has panicked"),
    }
}

fn make_all(plan: &[(&str, u64)], file: BorrowedFd<'_>, per_second: Option<u32>) -> Result<()> {
    let mut pace = Pace { began: Instant::now(), per_second, made: 0 };
    for (name, times) in plan {
        let (_, call) = all().find(|(known, _)| known == name).context("unknown")?;
        for _ in 0..*times {
            call(file).with_context(|| (*name).to_owned())?;
            pace.wait();
        }
    }
    Ok(())
}
