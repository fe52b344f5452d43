//! What the processes do whose calls are counted: this same binary, started again in a cgroup.
#![expect(unsafe_code, reason = "numbers that no system call has can only be called raw")]

use std::{env, fs::File, net::TcpStream};

/// Set in the environment of such a process: what to do, on how many threads, how often.
pub(crate) const ACT: &str = "ORB8_TEST_ACT";

pub(crate) const SHORT_PATH: &str = "/no/such/file";
pub(crate) const LONG_PATH: &str = concat!(
    "/a-path-of-more-than-two-hundred-and-fifty-six-bytes-is-cut-where-an-event-has-no-more-room",
    "/a-path-of-more-than-two-hundred-and-fifty-six-bytes-is-cut-where-an-event-has-no-more-room",
    "/a-path-of-more-than-two-hundred-and-fifty-six-bytes-is-cut-where-an-event-has-no-more-room",
);

/// Not a test, unless it is asked to do something.
#[test]
fn act() {
    let Ok(act) = env::var(ACT) else { return };
    let words: Vec<&str> = act.split(' ').collect();
    let [what, threads, times] = words[..] else { panic!("{act}") };
    let times: u64 = times.parse().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..threads.parse().unwrap() {
            scope.spawn(|| (0..times).for_each(|_| once(what)));
        }
    });
}

fn once(what: &str) {
    match what {
        "getppid" => drop(rustix::process::getppid()),
        "unknown" => {
            // SAFETY: the kernel has no such call.
            unsafe { libc::syscall(600) };
        }
        "open" => {
            assert!(File::open(SHORT_PATH).is_err() && File::open(LONG_PATH).is_err());
        }
        "connect" => assert!(TcpStream::connect("127.0.0.1:9").is_err()),
        other => panic!("{other}"),
    }
}
