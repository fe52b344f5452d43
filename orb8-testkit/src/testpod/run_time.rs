//! How long a program runs: servers until they are told, others until they are done or give up.

use std::io::{Read, stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What ends a server.
#[derive(Clone, Copy)]
pub(super) struct RunTime {
    /// The end of standard input asks it to end. Otherwise only a signal ends it.
    pub(super) supervised: bool,
}

impl RunTime {
    /// Blocks until the server shall end.
    pub(super) fn wait_for_the_end(self) {
        if self.supervised {
            // An error means that there is no input any more, which is the end as well.
            let _ = stdin().lock().read_to_end(&mut Vec::new());
            return;
        }
        loop {
            thread::park();
        }
    }

    /// A flag that is set when the server shall end.
    pub(super) fn end_flag(self) -> Arc<AtomicBool> {
        let flag = Arc::new(AtomicBool::new(false));
        let setter = Arc::clone(&flag);
        thread::spawn(move || {
            self.wait_for_the_end();
            setter.store(true, Ordering::Relaxed);
        });
        flag
    }
}

/// Ends the process with an error if it still runs after this many seconds.
pub(super) fn give_up_after(seconds: u64) {
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(seconds));
        eprintln!("orb8-testpod: not done after {seconds} s, giving up");
        std::process::exit(124);
    });
}

/// Keeps a rate: `pace.until(n)` sleeps until the n-th unit is due.
pub(super) struct Pace {
    start: Instant,
    per_second: Option<u64>,
}

impl Pace {
    /// Starts now. No rate is no sleep.
    pub(super) fn new(per_second: Option<u64>) -> Self {
        Self { start: Instant::now(), per_second }
    }

    pub(super) fn until(&self, units: u64) {
        let Some(per_second) = self.per_second else { return };
        let due = u128::from(units) * 1_000_000_000 / u128::from(per_second.max(1));
        let due = Duration::from_nanos(u64::try_from(due).unwrap_or(u64::MAX));
        let early = due.saturating_sub(self.start.elapsed());
        // A sleep takes some 50 µs longer than asked; below a millisecond a burst keeps the rate better.
        if early > Duration::from_millis(1) {
            thread::sleep(early);
        }
    }
}
