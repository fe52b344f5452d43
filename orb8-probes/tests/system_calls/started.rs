//! Programs that live for a moment are told, each with its arguments.

use std::{collections::HashMap, process::Child};

use orb8_common::syscall::{TextOf, event_flags::STARTED, text, told};

use crate::{
    place::Cgroup,
    probe::{EXECVE, Event, Probe},
};

const CGROUPS: usize = 100;
const EACH: u64 = 100;

#[test]
fn each_of_ten_thousand_programs_in_a_hundred_cgroups_is_told_with_its_arguments() {
    let cgroups: Vec<_> = (0..CGROUPS).map(|n| Cgroup::new(&format!("run{n}"))).collect();
    let mut probe = Probe::attach();
    probe.tell(EXECVE, told::ALWAYS, TextOf { text: text::PROGRAM, argument: 0 });
    let mut told: HashMap<(u64, Vec<u8>), u32> = HashMap::new();
    let mut take = |probe: &mut Probe| {
        for event in probe.events() {
            if let Some(name) = name(&event) {
                *told.entry((event.head.cgroup_id, name)).or_default() += 1;
            }
        }
    };
    let mut waiting = cgroups.iter();
    let mut running: Vec<Child> = Vec::new();
    loop {
        take(&mut probe);
        running.retain_mut(|child| match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success());
                false
            }
            None => true,
        });
        if running.len() < 3 {
            match waiting.next() {
                Some(cgroup) => running.push(cgroup.start("spawn", 1, EACH)),
                None if running.is_empty() => break,
                None => {}
            }
        }
    }
    take(&mut probe);
    for cgroup in &cgroups {
        for n in 0..EACH {
            let key = (cgroup.id, format!("0.{n}").into_bytes());
            assert_eq!(told.get(&key), Some(&1), "{key:?}");
        }
    }
    assert_eq!(told.len(), CGROUPS * EACH as usize);
}

/// The argument of a started `/bin/true`.
fn name(event: &Event) -> Option<Vec<u8>> {
    if event.head.flags & STARTED == 0 {
        return None;
    }
    match event.texts()[..] {
        [b"/bin/true", b"/bin/true", name] if name.starts_with(b"0.") => Some(name.to_vec()),
        _ => None,
    }
}
