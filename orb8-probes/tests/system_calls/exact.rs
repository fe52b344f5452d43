//! Counts are exact whoever calls, however, and wherever it goes meanwhile.

use std::process::Command;

use orb8_common::{
    drops::Drop,
    syscall::{TextOf, told},
};

use orb8_probes::tracepoint;

use crate::{
    acts,
    place::{Cgroup, act},
    probe::{Probe, kinds},
};

const GETPPID: u32 = libc::SYS_getppid as u32;

#[test]
fn threads_and_children_in_a_process_namespace_of_their_own_are_counted_to_the_call() {
    let cgroup = Cgroup::new("namespace");
    let mut probe = Probe::attach();
    probe.give_slot(cgroup.id, 4);
    let inside = act("fork", 4, 10);
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork"]).arg(inside.get_program()).args(inside.get_args());
    unshare.envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?))));
    cgroup.run_command(&unshare);
    assert_eq!(probe.slotted(4)[GETPPID as usize], 4 * 10 * 2 * 1_000);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_call_made_the_32_bit_way_is_not_taken_for_the_call_of_the_same_number() {
    for kind in kinds() {
        let cgroup = Cgroup::new("compat");
        let mut probe = Probe::attach_by(kind);
        probe.give_slot(cgroup.id, 6);
        cgroup.run("compat", 2, 5_000);
        let counts = probe.slotted(6);
        assert_eq!(counts[orb8_common::syscall::COMPAT as usize], 10_000, "{kind:?}");
        assert_eq!(counts[acts::GETPPID_32 as usize], 0, "{kind:?}");
        assert_eq!(counts[GETPPID as usize], 0, "{kind:?}");
    }
}

#[test]
fn a_caller_that_moves_is_counted_where_it_is() {
    let (a, b) = (Cgroup::new("here"), Cgroup::new("there"));
    let mut probe = Probe::attach();
    probe.give_slot(a.id, 1);
    let mut wanderer = act("wander", 1, 300);
    let file = |cgroup: &Cgroup| cgroup.dir.join("cgroup.procs").display().to_string();
    wanderer.env(acts::PLACES, format!("{}:{}", file(&a), file(&b)));
    a.run_command(&wanderer);
    assert_eq!(probe.slotted(1)[GETPPID as usize], 15_000);
    assert_eq!(probe.unslotted(b.id).get(&GETPPID), Some(&15_000));
}

#[test]
fn a_cgroup_below_another_is_counted_apart() {
    let outer = Cgroup::new("outer");
    let inner = outer.below("inner");
    let mut probe = Probe::attach();
    probe.give_slot(inner.id, 2);
    inner.run("getppid", 2, 1_000);
    outer.run("getppid", 1, 500);
    assert_eq!(probe.slotted(2)[GETPPID as usize], 2_000);
    assert_eq!(probe.unslotted(outer.id).get(&GETPPID), Some(&500));
}

#[test]
fn a_slot_that_changes_hands_under_calls_loses_none_and_gives_none_to_its_next_owner() {
    const EACH: u64 = 1_500_000;
    let cgroups = [Cgroup::new("first"), Cgroup::new("second")];
    let mut probe = Probe::attach();
    let mut callers: Vec<_> = cgroups.iter().map(|c| c.start("getppid", 2, EACH)).collect();
    let (mut counted, mut before, mut turn) = ([0_u64; 2], 0_u32, 0);
    let elsewhere = |probe: &Probe, owner: usize| {
        probe.unslotted(cgroups[owner].id).get(&GETPPID).copied().unwrap_or(0)
    };
    while callers.iter_mut().any(|caller| caller.try_wait().unwrap().is_none()) || turn < 4 {
        let owner = turn % 2;
        probe.give_slot(cgroups[owner].id, 8);
        std::thread::yield_now();
        probe.take_slot(cgroups[owner].id);
        let now = probe.slotted(8)[GETPPID as usize];
        counted[owner] += u64::from(now.wrapping_sub(before));
        before = now;
        turn += 1;
        // It goes on elsewhere, and not where it was.
        let there = elsewhere(&probe, owner);
        while elsewhere(&probe, owner) == there && callers[owner].try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(probe.slotted(8)[GETPPID as usize], now, "nobody's, and counted on");
    }
    assert!(counted.iter().all(|n| *n > 0), "{counted:?} in {turn} turns");
    // A thread that is preempted amid a call on a map, as this one makes all the time, has the kernel
    // skip those of others, where it preempts at all.
    let skipped =
        if tracepoint::preempts(tracepoint::kernel().unwrap()) { probe.skipped() } else { 0 };
    for (cgroup, slotted) in cgroups.iter().zip(counted) {
        let calls = probe.unslotted(cgroup.id)[&GETPPID] + slotted;
        assert!(calls <= 2 * EACH && calls + skipped >= 2 * EACH, "{calls}, {skipped} skipped");
    }
}

#[test]
fn three_million_calls_are_counted_to_the_call_while_events_flow_and_lost_events_to_the_event() {
    let cgroup = Cgroup::new("storm");
    let mut probe = Probe::attach();
    probe.give_slot(cgroup.id, 3);
    probe.tell(GETPPID, told::LISTENED, TextOf::default());
    let mut caller = cgroup.start("getppid", 4, 750_000);
    let (mut delivered, mut ours) = (0_u64, 0_u64);
    let mut take = |probe: &mut Probe| {
        for event in probe.events() {
            delivered += 1;
            ours += u64::from(event.head.cgroup_id == cgroup.id);
        }
    };
    while caller.try_wait().unwrap().is_none() {
        take(&mut probe);
    }
    probe.detach();
    take(&mut probe);
    assert_eq!(probe.slotted(3)[GETPPID as usize], 3_000_000);
    let (seen, lost) = (probe.dropped(Drop::EventsSeen), probe.dropped(Drop::RingFull));
    assert_eq!(seen, delivered + lost);
    assert!(seen >= 3_000_000 && ours > 0 && lost > 0, "{seen} seen, {ours} ours, {lost} lost");
}
