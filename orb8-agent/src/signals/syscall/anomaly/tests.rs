//! Single rules of the detector, and what holds for every sequence.

use std::{borrow::Cow, collections::HashSet, sync::Arc, time::Duration};

use orb8_common::syscall::COMPAT;
use proptest::prelude::*;

use super::{
    super::table::Owner,
    detector::{Detector, Moment},
    finding::{Finding, Kind},
    names::Names,
    runtime::Told,
    saved::{SavedError, StateFile},
    settings::{BURST, CONTAINERS, HISTORIES, Settings, WORKLOADS},
    workload::{Who, tests::identity},
};
use crate::enricher::Identity;

pub(super) const TABLE: [&str; 24] = [
    "read",
    "write",
    "close",
    "epoll_wait",
    "accept4",
    "openat",
    "clone",
    "execve",
    "ptrace",
    "mount",
    "setns",
    "futex",
    "rename",
    "wait4",
    "exit_group",
    "getppid",
    "unlink",
    "fsync",
    "mmap",
    "pivot_root",
    "sendto",
    "dup2",
    "pipe2",
    "kill",
];

pub(super) fn number(name: &str) -> u32 {
    u32::try_from(TABLE.iter().position(|known| *known == name).unwrap()).unwrap()
}

pub(super) fn names() -> Names {
    Names::new(|number| match TABLE.get(number as usize) {
        Some(name) => Cow::Borrowed(name),
        None if number == COMPAT => Cow::Borrowed("compat"),
        None => Cow::Owned(format!("call-{number}")),
    })
}

pub(super) const SECOND: u64 = 1_000_000_000;

/// Somebody, by a number.
pub(super) fn at(n: u64) -> Owner {
    Owner::Unit(n.to_string().into())
}

/// A detector, the time, and what it found.
pub(super) struct World {
    pub(super) detector: Detector,
    pub(super) now: Moment,
    pub(super) found: Vec<Finding>,
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        let now = Moment { boot_ns: 1_000 * SECOND, unix_ns: 1_700_000_000_000_000_000 };
        Self { detector: Detector::new(settings, names()), now, found: Vec::new() }
    }

    pub(super) fn tick(&mut self) -> Vec<Finding> {
        self.now.boot_ns += SECOND;
        self.now.unix_ns += i64::try_from(SECOND).unwrap();
        let news = self.detector.tick(self.now);
        self.found.extend(news.iter().cloned());
        news
    }

    pub(super) fn calls(&mut self, cgroup: u64, who: &Who, calls: &[(&str, u64)]) {
        let calls: Vec<_> = calls.iter().map(|(name, n)| (number(name), *n)).collect();
        self.detector.calls(&at(cgroup), who, calls, Some(&[]));
    }

    /// Says what was found of a kind so far.
    pub(super) fn raised(&self, kind: Kind) -> Vec<&str> {
        let raised = self.found.iter().filter(|f| f.kind == kind && f.cleared_ns.is_none());
        raised.map(|finding| &*finding.what).collect()
    }

    /// Ticks of ordinary work, a second each.
    fn work(&mut self, seconds: u64, who: &Who) {
        for _ in 0..seconds {
            self.calls(7, who, &[("read", 100), ("write", 100), ("epoll_wait", 50)]);
            self.tick();
        }
    }
}

fn quick() -> Settings {
    Settings {
        learn: Duration::from_secs(60),
        window: Duration::from_secs(2),
        quiet: Duration::from_secs(20),
        ..Settings::default()
    }
}

pub(super) fn who(pod: &str, workload: &str) -> Who {
    let identity = Arc::new(identity(pod, Some(workload)));
    Who { identity, image: "web:1".into(), born_ns: None, ending: false }
}

pub(super) fn told(call: &str, comm: &str) -> Told {
    let (comm, text) = (comm.to_owned(), format!("{call} …"));
    Told { number: number(call), pid: 4711, comm, text, program: None }
}

pub(super) fn program(path: &str, pid: u32) -> Told {
    let (comm, text) = ("sh".to_owned(), format!("execve {path}"));
    Told { number: number("execve"), pid, comm, text, program: Some(path.to_owned()) }
}

#[test]
fn a_new_call_is_reported_once_after_learning_with_evidence_and_clears_itself() {
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.work(62, &web);
    assert_eq!(world.detector.learning_and_learnt(), (0, 1));
    world.detector.told(&at(7), &web, program("/bin/sh", 99));
    world.calls(7, &web, &[("execve", 1), ("wait4", 2)]);
    world.work(5, &web);
    assert_eq!(world.raised(Kind::New), ["execve", "wait4"]);
    assert_eq!(world.found[0].evidence, ["sh (pid 99): execve /bin/sh"]);
    assert_eq!(
        (world.found[1].occurrences, world.found[0].workload.owner.as_str()),
        (2, "Deployment/web")
    );
    world.work(30, &web);
    let cleared = world.found.iter().filter(|f| f.cleared_ns.is_some()).count();
    assert_eq!((cleared, world.detector.findings().count()), (2, 2));
    world.calls(7, &web, &[("execve", 1)]);
    world.work(30, &web);
    assert_eq!(world.raised(Kind::New).len(), 2, "it is not new any more");
}

#[test]
fn what_a_container_does_while_it_ends_is_not_new() {
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.work(62, &web);
    world.calls(7, &web, &[("unlink", 1), ("exit_group", 1)]);
    world.tick();
    world.detector.ended(&at(7));
    world.tick();
    world.calls(8, &who("web-2", "Deployment/web"), &[("exit_group", 1)]);
    let ending = Who { ending: true, ..who("web-3", "Deployment/web") };
    world.calls(9, &ending, &[("kill", 3)]);
    world.work(10, &web);
    assert_eq!(world.found, []);
}

#[test]
fn a_sensitive_call_is_found_at_any_time_and_its_telling_says_who() {
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.calls(7, &web, &[("ptrace", 1)]);
    world.detector.told(&at(7), &web, told("ptrace", "gdb"));
    world.tick();
    assert_eq!(world.raised(Kind::Sensitive), ["ptrace"]);
    assert_eq!(world.found[0].evidence, ["gdb (pid 4711): ptrace …"]);
    // Part of what was learnt, so it is not reported again.
    world.work(90, &web);
    world.detector.told(&at(7), &web, told("ptrace", "gdb"));
    // Not part of it: whenever it is made.
    for _ in 0..2 {
        world.detector.told(&at(7), &web, told("mount", "sh"));
        world.work(30, &web);
    }
    assert_eq!(world.raised(Kind::Sensitive), ["ptrace", "mount", "mount"]);
    assert_eq!(world.raised(Kind::New).len(), 0);
}

#[test]
fn a_sensitive_call_whose_telling_was_lost_is_found_all_the_same() {
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.calls(7, &web, &[("ptrace", 3)]);
    for _ in 0..4 {
        world.tick();
    }
    assert_eq!(world.raised(Kind::Sensitive), ["ptrace"]);
    assert_eq!((world.found[0].occurrences, world.found[0].evidence.len()), (3, 1));
}

#[test]
fn what_the_runtime_does_to_start_a_container_or_to_enter_it_is_not_the_containers() {
    let mut world = World::new(quick());
    let web = Who { born_ns: Some(world.now.boot_ns), ..who("web-1", "Deployment/web") };
    for call in ["mount", "pivot_root", "setns"] {
        world.calls(7, &web, &[(call, 1)]);
        world.detector.told(&at(7), &web, told(call, "3"));
    }
    world.detector.told(&at(7), &web, program("/proc/self/fd/5", 4711));
    world.detector.told(&at(7), &web, told("mount", "exe"));
    world.detector.told(&at(7), &web, program("/usr/sbin/nginx", 4711));
    world.work(60, &web);
    world.detector.told(&at(7), &web, Told { pid: 9, ..told("setns", "runc:[1:CHILD]") });
    world.work(4, &web);
    assert_eq!(world.raised(Kind::Sensitive), [""; 0]);
    // But a program of the container is not excused, whatever it is called.
    world.detector.told(&at(7), &web, Told { pid: 9, ..told("ptrace", "runc:[1:CHILD]") });
    world.detector.told(&at(7), &web, told("setns", "runc:[1:CHILD]"));
    world.work(4, &web);
    assert_eq!(world.raised(Kind::Sensitive), ["ptrace", "setns"]);
}

#[test]
fn services_of_the_node_are_reported_for_sensitive_calls_only_when_these_are_new() {
    let mut world = World::new(quick());
    let unit = Identity {
        pod_uid: "".into(),
        namespace: "".into(),
        pod_name: "".into(),
        container_id: "".into(),
        container: "".into(),
        unit: "containerd.service".into(),
        ..identity("", None)
    };
    let unit = Who { identity: Arc::new(unit), ..who("", "") };
    for _ in 0..3 {
        world.detector.told(&at(7), &unit, told("mount", "containerd"));
        world.work(30, &unit);
    }
    assert_eq!(world.found, []);
    world.detector.told(&at(7), &unit, told("ptrace", "sh"));
    world.work(5, &unit);
    assert_eq!(world.raised(Kind::Sensitive), ["ptrace"]);
}

#[test]
fn a_rate_is_a_departure_when_it_is_kept_up_or_too_much_at_once() {
    let web = who("web-1", "Deployment/web");
    for (reads, seconds, expected) in [(150, 30, 0), (700, 2, 0), (700, 8, 1), (9_000, 1, 1)] {
        let mut world = World::new(quick());
        world.work(80, &web);
        for _ in 0..seconds {
            world.calls(7, &web, &[("read", reads)]);
            world.tick();
        }
        world.work(2, &web);
        assert_eq!(world.raised(Kind::Rate).len(), expected, "{reads} a second for {seconds} s");
        if expected == 1 {
            let finding = &world.found[0];
            assert!(finding.value > 600.0 && finding.deviation > 8.0, "{finding:?}");
            assert!((85.0..=100.0).contains(&finding.normal), "{finding:?}");
            world.work(40, &web);
            assert_eq!(world.detector.lasting().iter().map(|(_, n)| n).sum::<u64>(), 0);
        }
    }
}

#[test]
fn silence_is_no_departure_and_neither_are_more_replicas() {
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.work(80, &web);
    for _ in 0..60 {
        world.tick();
    }
    for second in 0..60 {
        for replica in 0..30.min(second) {
            let web = who(&format!("web-{replica}"), "Deployment/web");
            world.calls(100 + replica, &web, &[("read", 100), ("write", 100)]);
        }
        world.tick();
    }
    assert_eq!(world.found, []);
}

#[test]
fn a_new_level_becomes_normal_in_the_end() {
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.work(80, &web);
    for _ in 0..1_500 {
        world.calls(7, &web, &[("read", 900), ("write", 100)]);
        world.tick();
    }
    assert_eq!(world.raised(Kind::Rate), ["read"]);
    assert!(world.found.last().unwrap().cleared_ns.is_some());
}

#[test]
fn an_error_storm_is_found_where_errors_are_watched() {
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.work(80, &web);
    for _ in 0..3 {
        world.detector.calls(
            &at(7),
            &web,
            [(number("openat"), 0)],
            Some(&[(13, 800), (11, 9_000)]),
        );
        world.tick();
    }
    assert_eq!(world.raised(Kind::Errors), ["EACCES"]);
    // Nothing is known of errors of those that were not watched.
    let mut world = World::new(quick());
    for _ in 0..80 {
        world.detector.calls(&at(7), &web, [(0, 100)], None);
        world.tick();
    }
    world.detector.calls(&at(7), &web, [(0, 100)], Some(&[(13, 80_000)]));
    world.tick();
    assert_eq!(world.found, []);
}

#[test]
fn a_new_image_is_learnt_anew_and_the_old_one_is_not_forgotten() {
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.work(80, &web);
    let next = Who { image: "web:2".into(), ..who("web-2", "Deployment/web") };
    for _ in 0..10 {
        world.calls(8, &next, &[("execve", 10), ("wait4", 10)]);
        world.tick();
    }
    assert_eq!((&world.found, world.detector.learning_and_learnt()), (&vec![], (1, 1)));
    world.calls(7, &web, &[("execve", 1)]);
    world.work(5, &web);
    assert_eq!(world.raised(Kind::New), ["execve"]);
}

#[test]
fn one_cause_with_many_calls_is_a_few_findings_and_the_rest_is_counted() {
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.work(80, &web);
    world.detector.calls(&at(7), &web, (100..140).map(|n| (n, 1)), None);
    world.calls(7, &web, &[("execve", 1)]);
    world.work(10, &web);
    assert_eq!(world.raised(Kind::New).len(), 4);
    let first = &world.found[0];
    assert_eq!((&*first.what, first.also.len(), &*first.also[0]), ("execve", 37, "call-103"));
    assert!(first.summary().ends_with("call-114 and 25 more"), "{}", first.summary());
    assert_eq!(world.detector.tally().withheld.of_workload, 37);
    assert_eq!(world.detector.totals().values().sum::<u64>(), 4);
    world.work(60, &web);
    assert_eq!(world.raised(Kind::New).len(), 4, "the rest came one by one");
}

#[test]
fn a_flood_of_findings_is_cut_to_one_a_second_and_the_rest_is_counted() {
    let mut world = World::new(quick());
    for n in 0..500 {
        world.detector.told(&at(n), &who("web", &format!("Deployment/{n}")), told("ptrace", "x"));
    }
    let first = world.tick().len();
    assert_eq!(first as u64, u64::from(BURST));
    assert_eq!(world.detector.tally().withheld.over_all, 500 - u64::from(BURST));
}

#[test]
fn memory_is_bounded_and_what_finds_no_room_is_counted() {
    let mut world = World::new(quick());
    let count = CONTAINERS as u64 + 10;
    for n in 0..count {
        let who = who("web", &format!("Deployment/{n}"));
        world.detector.calls(&at(n), &who, (0..160).map(|n| (n, 1)), Some(&[]));
    }
    (0..3).for_each(|_| drop(world.tick()));
    let tally = world.detector.tally();
    assert_eq!((tally.containers, tally.workloads), (10, count - 10 - WORKLOADS as u64));
    assert_eq!(world.detector.baselines.len(), WORKLOADS);
    assert!(world.detector.baselines.values().all(|b| b.histories.len() <= HISTORIES));
    assert!(tally.rates > 0);
    // Those that are gone make room.
    (0..count).for_each(|n| world.detector.ended(&at(n)));
    world.tick();
    world.calls(1, &who("new", "Deployment/new"), &[("read", 1)]);
    world.tick();
    assert_eq!((world.detector.baselines.len(), world.detector.tally().forgotten), (WORKLOADS, 1));
}

#[test]
fn what_was_learnt_survives_a_restart_and_a_broken_file_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let file = StateFile::in_dir(dir.path());
    assert!(file.read().unwrap().is_none());
    let (mut world, web) = (World::new(quick()), who("web-1", "Deployment/web"));
    world.work(80, &web);
    file.write(&world.detector.save()).unwrap();
    let before = world.detector.baselines.clone();

    let mut world = World::new(quick());
    world.detector.restore(file.read().unwrap().unwrap());
    assert_eq!(before.len(), world.detector.baselines.len());
    for (workload, mut baseline) in before {
        baseline.active_ns = 0;
        assert_eq!(world.detector.baselines[&workload], baseline);
    }
    world.calls(7, &web, &[("execve", 1)]);
    world.work(4, &web);
    assert_eq!(world.raised(Kind::New), ["execve"]);

    let text = std::fs::read_to_string(file.path()).unwrap();
    let broken = [
        String::new(),
        text[..text.len() / 2].to_owned(),
        text.replace("\"version\":1", "\"version\":2"),
        text.replace(std::env::consts::ARCH, "vax"),
        text.replace("\"busiest\":", "\"busiest\":-"),
    ];
    for text in broken {
        std::fs::write(file.path(), &text).unwrap();
        let error = file.read().unwrap_err();
        assert!(matches!(error, SavedError::Content { .. }), "{error}");
        assert!(error.to_string().starts_with(&*file.path().to_string_lossy()), "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something was left there");
}

#[derive(Clone, Debug)]
enum Act {
    Calls(u64, u8, Vec<(u32, u64)>, bool),
    Told(u64, u8, u32, bool),
    Ended(u64),
    Tick(u64),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let amount = prop_oneof![0_u64..50, any::<u64>().prop_map(|n| n >> 12)];
    let calls = prop::collection::vec((0_u32..600, amount), 0..12);
    prop_oneof![
        4 => (0_u64..6, 0_u8..6, calls, any::<bool>())
            .prop_map(|(cgroup, who, calls, errors)| Act::Calls(cgroup, who, calls, errors)),
        3 => (0_u64..6, 0_u8..6, 0_u32..600, any::<bool>())
            .prop_map(|(cgroup, who, n, program)| Act::Told(cgroup, who, n, program)),
        1 => (0_u64..6).prop_map(Act::Ended),
        6 => prop_oneof![Just(SECOND), 0..100 * SECOND].prop_map(Act::Tick),
        1 => Just(Act::Restart),
    ]
}

fn somebody(at: u8, now: u64) -> Who {
    let mut who = who(&format!("pod-{at}"), &format!("Deployment/{}", at / 2));
    match at {
        0 => who.born_ns = Some(now),
        1 => who.ending = true,
        2 => who.image = "".into(),
        3 => {
            let nameless = Identity { namespace: "".into(), ..identity("bare", None) };
            who.identity = Arc::new(nameless);
        }
        _ => {}
    }
    who
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_a_finding_is_raised_once_and_over_once(
        acts in prop::collection::vec(act(), 0..250)
    ) {
        let mut world = World::new(quick());
        let (mut raised, mut over) = (HashSet::new(), HashSet::new());
        for act in acts {
            let now = world.now.boot_ns;
            match act {
                Act::Calls(cgroup, pod, calls, errors) => {
                    let errors = errors.then_some(&calls[..]);
                    let who = somebody(pod, now);
                    world.detector.calls(&at(cgroup), &who, calls.iter().copied(), errors);
                }
                Act::Told(cgroup, pod, number, is_program) => {
                    let told = Told {
                        number,
                        pid: number % 7,
                        comm: "runc:[x".into(),
                        text: String::new(),
                        program: is_program.then(|| "/bin/x".to_owned()),
                    };
                    world.detector.told(&at(cgroup), &somebody(pod, now), told);
                }
                Act::Ended(cgroup) => world.detector.ended(&at(cgroup)),
                Act::Tick(passed) => {
                    world.now.boot_ns += passed;
                    world.now.unix_ns += i64::try_from(passed).unwrap();
                    for finding in world.detector.tick(world.now) {
                        let once = match finding.cleared_ns {
                            None => raised.insert(finding.id.clone()),
                            Some(_) => {
                                prop_assert!(raised.contains(&finding.id));
                                over.insert(finding.id.clone())
                            }
                        };
                        prop_assert!(once, "twice: {finding:?}");
                        prop_assert!(finding.value.is_finite() && finding.deviation.is_finite());
                        prop_assert!(finding.evidence.len() <= 6);
                    }
                    let lasting: u64 = world.detector.lasting().iter().map(|(_, n)| n).sum();
                    prop_assert_eq!(lasting, (raised.len() - over.len()) as u64);
                }
                Act::Restart => {
                    let text = serde_json::to_string(&world.detector.save()).unwrap();
                    let saved = serde_json::from_str(&text).unwrap();
                    let mut other = Detector::new(quick(), names());
                    other.restore(saved);
                    prop_assert_eq!(other.baselines.len(), world.detector.baselines.len());
                }
            }
        }
    }
}
