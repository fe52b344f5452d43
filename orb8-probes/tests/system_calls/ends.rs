//! Where the ends of calls are watched: results, errors and latencies.

use std::{
    fs,
    io::Write as _,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use orb8_common::{
    drops::Drop,
    syscall::{
        BUCKETS, ErrorKey, TextOf,
        event_flags::{ENDED, UNBEGUN},
        text, told,
    },
};

use orb8_probes::tracepoint::Kind;

use crate::{
    acts::{NAP, SHORT_PATH},
    place::{Cgroup, act},
    probe::{Options, Probe, kinds},
};

const GETPPID: u32 = libc::SYS_getppid as u32;
const GETSID: u32 = libc::SYS_getsid as u32;
const READ: u32 = libc::SYS_read as u32;
const SLEEP: u32 = libc::SYS_clock_nanosleep as u32;

#[test]
fn calls_that_fail_are_counted_by_their_error_and_those_that_do_not_have_none() {
    for kind in kinds() {
        let cgroup = Cgroup::new("fail");
        let probe = Probe::attach_ends_by(kind);
        cgroup.run("fail", 4, 2_500);
        cgroup.run("getppid", 2, 5_000);
        let outcomes = probe.outcomes(cgroup.id);
        for (number, errors) in [(GETSID, 10_000), (GETPPID, 0)] {
            let outcome = outcomes[&number];
            assert_eq!((outcome.returned(), outcome.errors), (10_000, errors), "{kind:?}");
            assert_eq!(outcome.unbegun, 0, "{kind:?}");
            assert!(outcome.duration_ns > 10_000, "{kind:?}");
        }
        let key = ErrorKey { cgroup_id: cgroup.id, number: GETSID, errno: libc::ESRCH as u32 };
        assert_eq!(probe.errors().get(&key), Some(&10_000), "{kind:?}");
    }
}

#[test]
fn a_call_is_in_the_bucket_of_the_time_that_it_took() {
    let cgroup = Cgroup::new("sleep");
    let probe = Probe::attach_ends();
    cgroup.run("sleep", 2, 5);
    let outcome = probe.outcomes(cgroup.id)[&SLEEP];
    assert_eq!(outcome.returned(), 10);
    let shortest = NAP.as_nanos() as u64;
    assert!(outcome.duration_ns >= 10 * shortest, "{outcome:?}");
    // The first bucket whose upper bound is beyond it.
    let first = (0..BUCKETS).find(|i| 1 << (i + 8) > shortest).unwrap();
    assert_eq!(outcome.latency[first..].iter().sum::<u64>(), 10, "{outcome:?}");
    assert!(outcome.latency[first] + outcome.latency[first + 1] > 0, "{outcome:?}");
}

#[test]
fn every_call_of_a_process_that_has_ended_has_returned_but_those_that_never_do() {
    let cgroup = Cgroup::new("all");
    let mut probe = Probe::attach_ends();
    let never = [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn];
    let never = never.map(|number| u32::try_from(number).unwrap());
    for number in never {
        probe.tell(number, told::NO_RESULT, TextOf::default());
    }
    cgroup.run("fork", 2, 5);
    let outcomes = probe.outcomes(cgroup.id);
    let calls = probe.unslotted(cgroup.id);
    assert!(calls.len() > 20, "{calls:?}");
    for (number, calls) in calls {
        if never.contains(&number) {
            assert_eq!(outcomes.get(&number), None);
        } else {
            let outcome = outcomes[&number];
            assert_eq!((outcome.returned(), outcome.unbegun), (calls, 0), "{number}");
        }
    }
    // Threads that are gone leave nothing behind.
    assert!(probe.begun().iter().all(|begun| begun.cgroup_id != cgroup.id));
}

#[test]
fn a_call_that_began_before_anybody_watched_has_no_end() {
    let cgroup = Cgroup::new("before");
    let mut waiting = Waiting::start(&cgroup);
    let probe = Probe::attach_ends();
    waiting.end();
    let reads = probe.outcomes(cgroup.id).get(&READ).map_or(0, |outcome| outcome.returned());
    assert_eq!(reads, probe.unslotted(cgroup.id).get(&READ).copied().unwrap_or(0));
}

#[test]
fn a_call_whose_caller_is_moved_ends_where_it_began() {
    let (a, b) = (Cgroup::new("from"), Cgroup::new("to"));
    let probe = Probe::attach_ends();
    let mut waiting = Waiting::start(&a);
    b.take_in(&waiting.child);
    waiting.end();
    for cgroup in [&a, &b] {
        let reads = probe.outcomes(cgroup.id).get(&READ).map_or(0, |outcome| outcome.returned());
        assert_eq!(reads, probe.unslotted(cgroup.id).get(&READ).copied().unwrap_or(0));
    }
    assert!(probe.unslotted(b.id).values().sum::<u64>() > 0, "it went on there");
}

#[test]
fn a_call_of_a_thread_that_is_killed_returns_and_the_thread_is_forgotten() {
    let cgroup = Cgroup::new("killed");
    let probe = Probe::attach_ends();
    let mut waiting = Waiting::start(&cgroup);
    assert!(probe.begun().iter().any(|b| b.cgroup_id == cgroup.id && b.begun_ns > 0));
    waiting.child.kill().unwrap();
    waiting.child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while probe.begun().iter().any(|begun| begun.cgroup_id == cgroup.id) {
        assert!(Instant::now() < deadline, "{:?}", probe.begun());
    }
    let outcome = probe.outcomes(cgroup.id)[&READ];
    assert_eq!(outcome.returned(), probe.unslotted(cgroup.id)[&READ]);
}

#[test]
fn a_call_that_seccomp_refuses_is_an_error_that_nobody_saw_begin() {
    let cgroup = Cgroup::new("refused");
    let mut probe = Probe::attach_ends();
    probe.tell(GETSID, told::FAILED, TextOf::default());
    cgroup.run("refused", 1, 7);
    assert_eq!(probe.unslotted(cgroup.id).get(&GETSID), None);
    let outcome = probe.outcomes(cgroup.id)[&GETSID];
    assert_eq!((outcome.returned(), outcome.unbegun, outcome.errors), (7, 7, 7));
    let events = probe.events();
    let ours: Vec<_> = events.iter().filter(|e| e.head.cgroup_id == cgroup.id).collect();
    assert_eq!(ours.len(), 7);
    for event in ours {
        assert_eq!(event.head.flags, ENDED | UNBEGUN);
        assert_eq!(event.head.result, -i64::from(libc::EPERM));
    }
}

#[test]
fn a_call_that_fails_is_told_with_its_result_its_arguments_and_its_time() {
    let kernel = orb8_probes::tracepoint::kernel().unwrap();
    for kind in kinds() {
        let cgroup = Cgroup::new("told");
        let mut probe = Probe::attach_ends_by(kind);
        let openat = libc::SYS_openat as u32;
        probe.tell(openat, told::FAILED, TextOf { text: text::PATH, argument: 1 });
        cgroup.run("open", 1, 1);
        let events = probe.events();
        let ours: Vec<_> = events.iter().filter(|e| e.head.cgroup_id == cgroup.id).collect();
        assert!(ours.len() >= 2, "{kind:?}: {ours:?}");
        for event in &ours {
            assert!(event.head.flags & ENDED != 0 && event.head.result < 0, "{event:?}");
            assert!(event.head.duration_ns > 0 && event.head.weight == 1, "{event:?}");
        }
        // What a classic tracepoint says of an end has no arguments, so they are looked for elsewhere.
        let short = ours.iter().filter(|e| e.texts() == [SHORT_PATH.as_bytes()]);
        let told: Vec<_> = short.map(|e| e.head.result).collect();
        let unread = kind == Kind::Classic && kernel < (5, 15);
        let expected = if unread { 0 } else { 1 };
        assert_eq!(told, vec![-i64::from(libc::ENOENT); expected], "{kind:?}: {ours:?}");
    }
}

#[test]
fn what_finds_no_room_is_counted() {
    let small = &[("SYSCALL_BEGUN", 8), ("SYSCALL_OUTCOMES", 16), ("SYSCALL_ERRORS", 2)];
    let cgroup = Cgroup::new("small");
    let mut probe = Probe::load(Options { kind: kinds().next().unwrap(), ends: true, small });
    for _ in 0..3 {
        cgroup.run("fork", 4, 2);
        cgroup.run("open", 4, 50);
    }
    probe.detach();
    assert!(probe.dropped(Drop::BegunFull) > 0);
    assert!(probe.dropped(Drop::OutcomesFull) > 0);
    let errors: u64 = probe.all_outcomes().iter().map(|outcomes| outcomes.errors).sum();
    let by_number: u64 = probe.errors().values().sum();
    assert_eq!(errors, by_number + probe.dropped(Drop::ErrorsFull));
}

/// A process that waits in a `read`.
struct Waiting {
    child: Child,
}

impl Waiting {
    fn start(cgroup: &Cgroup) -> Self {
        let mut command = cgroup.command(&act("wait", 1, 1));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let this = Self { child };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !this.waits() {
            assert!(Instant::now() < deadline, "it does not wait");
            std::thread::yield_now();
        }
        this
    }

    /// Whether one of its threads reads its standard input.
    fn waits(&self) -> bool {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.child.id())) else {
            return false;
        };
        let calls = tasks.flatten().map(|task| fs::read_to_string(task.path().join("syscall")));
        let comm = fs::read_to_string(format!("/proc/{}/comm", self.child.id()));
        // The shell that it was before never reads its input.
        comm.is_ok_and(|comm| comm != "sh\n")
            && calls.flatten().any(|call| call.starts_with(&format!("{READ} 0x0 ")))
    }

    fn end(&mut self) {
        self.child.stdin.take().unwrap().write_all(b"x").unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}
