//! The object `syscall_probe` on the running kernel: real calls go in, and what its maps say comes
//! out.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "all of this is test, and numbers of calls are small ones"
)]

mod acts;
mod ends;
mod exact;
mod place;
mod probe;
mod started;

use std::{os::unix::ffi::OsStrExt, process::Command};

use acts::{LONG_PATH, SHORT_PATH};
use orb8_common::syscall::{
    NUMBERS, TextOf,
    event_flags::{CUT, STARTED, UNREAD},
    text, told,
};
use orb8_probes::tracepoint;
use place::Cgroup;
use probe::{EXECVE, Probe, execs};

const GETPPID: u32 = libc::SYS_getppid as u32;

#[test]
fn a_cgroup_with_a_slot_is_counted_to_the_call_on_every_kind_of_hook() {
    for kind in probe::kinds() {
        let cgroup = Cgroup::new("slot");
        let mut probe = Probe::attach_by(kind);
        probe.give_slot(cgroup.id, 7);
        cgroup.run("getppid", 4, 250_000);
        assert_eq!(probe.slotted(7)[GETPPID as usize], 1_000_000, "{kind:?}");
        assert_eq!(probe.unslotted(cgroup.id).get(&GETPPID), None, "{kind:?}");
    }
}

/// Where the kernel can preempt a program of this kind, it skips calls that others make meanwhile.
#[test]
fn what_the_kernel_skips_it_counts() {
    let kernel = tracepoint::kernel().unwrap();
    for kind in tracepoint::kinds(kernel).iter().copied() {
        let cgroup = Cgroup::new("skipped");
        let mut probe = Probe::attach_by(kind);
        probe.give_slot(cgroup.id, 7);
        cgroup.run("getppid", 4, 250_000);
        let uncounted = 1_000_000 - u64::from(probe.slotted(7)[GETPPID as usize]);
        let skipped = if tracepoint::is_preemptible(kind, kernel) { probe.skipped() } else { 0 };
        assert!(uncounted <= skipped, "{kind:?}: {uncounted} uncounted, {skipped} skipped");
    }
}

#[test]
fn a_cgroup_without_a_slot_is_counted_to_the_call_and_keeps_that_when_it_gets_one() {
    let cgroup = Cgroup::new("unslotted");
    let mut probe = Probe::attach();
    cgroup.run("getppid", 4, 10_000);
    assert_eq!(probe.unslotted(cgroup.id).get(&GETPPID), Some(&40_000));
    probe.give_slot(cgroup.id, 9);
    cgroup.run("getppid", 2, 10_000);
    let counted =
        probe.unslotted(cgroup.id)[&GETPPID] + u64::from(probe.slotted(9)[GETPPID as usize]);
    assert_eq!(counted, 60_000);
    assert!(probe.slotted(9)[GETPPID as usize] > 0);
}

#[test]
fn a_number_that_no_table_has_is_counted_as_other() {
    let cgroup = Cgroup::new("other");
    let mut probe = Probe::attach();
    probe.give_slot(cgroup.id, 5);
    cgroup.run("unknown", 1, 3);
    assert_eq!(probe.slotted(5)[NUMBERS - 1], 3);
}

#[test]
fn one_in_so_many_is_told_and_says_so() {
    let cgroup = Cgroup::new("sampled");
    let mut probe = Probe::attach();
    probe.give_slot(cgroup.id, 3);
    probe.set(0, 100);
    probe.tell(GETPPID, told::SAMPLED, TextOf::default());
    cgroup.run("getppid", 2, 50_000);
    let events: Vec<_> =
        probe.events().into_iter().filter(|e| e.head.cgroup_id == cgroup.id).collect();
    let stands_for: u64 = events.iter().map(|e| u64::from(e.head.weight)).sum();
    assert!(events.iter().all(|e| e.head.weight == 100 && e.head.number == GETPPID));
    // Every CPU counts down on its own, and other cgroups make calls too.
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(stands_for.abs_diff(100_000) <= 100 * 2 * cpus + 100_000 / 20, "{stands_for}");
}

#[test]
fn a_program_is_told_with_its_arguments_by_the_call_or_when_it_has_started() {
    for kind in probe::kinds() {
        told_with_arguments(kind);
    }
}

fn told_with_arguments(kind: tracepoint::Kind) {
    let cgroup = Cgroup::new("execve");
    let mut probe = Probe::attach_by(kind);
    probe.tell(EXECVE, told::ALWAYS, TextOf { text: text::PROGRAM, argument: 0 });
    let arguments = ["-c", "true \"$1\"", "sh", "an argument"];
    for _ in 0..50 {
        cgroup.run_program("/bin/sh", &arguments);
    }
    let events = probe.events();
    let ours: Vec<_> = events.iter().filter(|e| e.head.cgroup_id == cgroup.id).collect();
    let expected: Vec<&[u8]> = [&b"/bin/sh"[..], b"/bin/sh"]
        .into_iter()
        .chain(arguments.iter().map(|a| a.as_bytes()))
        .collect();
    let mut started = 0;
    for event in &ours {
        assert_eq!(event.head.number, EXECVE);
        if event.head.flags & STARTED != 0 {
            started += 1;
            assert_eq!(event.head.flags, STARTED, "{event:?}");
            assert_eq!(event.texts(), expected, "{event:?}");
        } else if event.head.flags & UNREAD == 0 {
            assert_eq!(event.texts(), expected, "{event:?}");
        }
    }
    assert_eq!(execs(&ours), 50, "{kind:?}, one program each: {ours:?}");
    assert_eq!(started, 50, "{kind:?}");
}

#[test]
fn a_path_is_told_as_the_caller_wrote_it_and_says_when_it_was_cut() {
    let cgroup = Cgroup::new("path");
    let mut probe = Probe::attach();
    let openat = libc::SYS_openat as u32;
    probe.tell(openat, told::ALWAYS, TextOf { text: text::PATH, argument: 1 });
    cgroup.run("open", 1, 1);
    let events = probe.events();
    let ours: Vec<_> = events
        .iter()
        .filter(|e| e.head.cgroup_id == cgroup.id && e.head.number == openat)
        .collect();
    let short = ours.iter().find(|e| e.texts() == [SHORT_PATH.as_bytes()]).expect("told");
    assert_eq!(
        (short.head.flags, short.head.args[2] as i32 & libc::O_CLOEXEC),
        (0, libc::O_CLOEXEC)
    );
    let cut = ours.iter().find(|e| e.head.flags == CUT).expect("told");
    assert!(LONG_PATH.as_bytes().starts_with(cut.texts()[0]) && cut.texts()[0].len() > 200);
}

#[test]
fn many_arguments_fill_an_event_and_no_more() {
    let cgroup = Cgroup::new("arguments");
    let mut probe = Probe::attach();
    probe.tell(EXECVE, told::ALWAYS, TextOf { text: text::PROGRAM, argument: 0 });
    let many: Vec<String> = (0..100).map(|n| format!("argument number {n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    cgroup.run_program("/bin/true", &many);
    let events = probe.events();
    let ours: Vec<_> = events.iter().filter(|e| e.head.cgroup_id == cgroup.id).collect();
    assert!(!ours.is_empty());
    for event in ours {
        assert!(event.head.flags & (CUT | UNREAD) != 0, "{event:?}");
        assert!(event.text.len() <= orb8_common::syscall::TEXT_SIZE);
    }
}

#[test]
fn an_address_is_told_as_bytes() {
    let cgroup = Cgroup::new("address");
    let mut probe = Probe::attach();
    let connect = libc::SYS_connect as u32;
    probe.tell(connect, told::ALWAYS, TextOf { text: text::ADDRESS, argument: 1 });
    cgroup.run("connect", 1, 1);
    let events = probe.events();
    let event = events.iter().find(|e| e.head.cgroup_id == cgroup.id).expect("told");
    let expected = [2, 0, 0, 9, 127, 0, 0, 1];
    assert_eq!(event.text[..8], expected, "{event:?}");
    assert_eq!(event.text.len(), 16);
}

#[test]
fn the_name_of_a_program_is_bytes_and_may_be_anything() {
    let cgroup = Cgroup::new("bytes");
    let mut probe = Probe::attach();
    probe.tell(EXECVE, told::ALWAYS, TextOf { text: text::PROGRAM, argument: 0 });
    let mut command = Command::new("/bin/true");
    command.arg(std::ffi::OsStr::from_bytes(b"\xff\x1b[31m"));
    cgroup.run_command(&command);
    let events = probe.events();
    let event = events
        .iter()
        .find(|e| e.head.cgroup_id == cgroup.id && e.head.flags & STARTED != 0)
        .expect("told");
    assert_eq!(event.texts()[2], b"\xff\x1b[31m");
}
