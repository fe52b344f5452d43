//! What the processes do whose calls are counted: this same binary, started again in a cgroup.
#![expect(unsafe_code, reason = "calls that the standard library does not make can only be raw")]

use std::{
    env, fs,
    fs::File,
    io::Read as _,
    net::TcpStream,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

/// Set in the environment of such a process: what to do, on how many threads, how often.
pub(crate) const ACT: &str = "ORB8_TEST_ACT";
/// Set too: cgroups to go to.
pub(crate) const PLACES: &str = "ORB8_TEST_PLACES";

pub(crate) const SHORT_PATH: &str = "/no/such/file";
pub(crate) const LONG_PATH: &str = concat!(
    "/a-path-of-more-than-two-hundred-and-fifty-six-bytes-is-cut-where-an-event-has-no-more-room",
    "/a-path-of-more-than-two-hundred-and-fifty-six-bytes-is-cut-where-an-event-has-no-more-room",
    "/a-path-of-more-than-two-hundred-and-fifty-six-bytes-is-cut-where-an-event-has-no-more-room",
);
/// Of the act `sleep`.
pub(crate) const NAP: Duration = Duration::from_millis(20);
/// `getppid` in the table of 32-bit calls on x86_64.
#[cfg(target_arch = "x86_64")]
pub(crate) const GETPPID_32: u32 = 64;

/// Not a test, unless it is asked to do something.
#[test]
fn act() {
    let Ok(act) = env::var(ACT) else { return };
    let words: Vec<&str> = act.split(' ').collect();
    let [what, threads, times] = words[..] else { panic!("{act}") };
    let times: u64 = times.parse().unwrap();
    if what == "refused" {
        refuse_getsid();
    }
    std::thread::scope(|scope| {
        for thread in 0..threads.parse().unwrap() {
            scope.spawn(move || (0..times).for_each(|n| once(what, thread, n)));
        }
    });
}

fn once(what: &str, thread: u64, n: u64) {
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
        #[cfg(target_arch = "x86_64")]
        "compat" => assert!(getppid_32() > 0),
        // There is no process -1.
        "fail" | "refused" => assert!(getsid(-1) < 0),
        "sleep" => sleep(NAP),
        // Ends when its input does.
        "wait" => drop(std::io::stdin().read(&mut [0])),
        "wander" => {
            let places = env::var(PLACES).unwrap();
            let place = places.split(':').nth(n as usize % 2).unwrap();
            fs::write(place, "0").unwrap();
            for _ in 0..100 {
                let _ = rustix::process::getppid();
            }
        }
        "spawn" => {
            let name = format!("{thread}.{n}");
            let mut command = Command::new("/bin/true");
            command.arg(name).stdin(Stdio::null());
            assert!(command.status().unwrap().success());
        }
        "fork" => {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--exact", "acts::act", "--quiet"]).env(ACT, "getppid 2 1000");
            assert!(command.output().unwrap().status.success());
        }
        other => panic!("{other}"),
    }
}

fn getsid(pid: libc::pid_t) -> libc::pid_t {
    // SAFETY: it takes a number and gives one.
    unsafe { libc::getsid(pid) }
}

/// Made as 32-bit programs make it, by a program that is none.
#[cfg(target_arch = "x86_64")]
fn getppid_32() -> i32 {
    let result: u64;
    // SAFETY: the kernel clears the registers that are named, and takes nothing but the number.
    unsafe {
        std::arch::asm!("int 0x80", inout("rax") u64::from(GETPPID_32) => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result as i32
}

/// By a filter of seccomp: it answers `EPERM`, and the call is not made.
fn refuse_getsid() {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let line = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut lines = [
        line(load, 0, 0, 0),
        line(equal, 0, 1, libc::SYS_getsid as u32),
        line(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        line(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: lines.len() as u16, filter: lines.as_mut_ptr() };
    // SAFETY: numbers only.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(done, 0);
    // SAFETY: the filter lives until the call returns.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) };
    assert_eq!(done, 0);
}
