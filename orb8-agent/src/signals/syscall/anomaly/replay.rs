//! An hour of ordinary workloads, replayed second by second after half an hour of learning, with the
//! settings that users run: nothing is found. Then four things happen, and each is found in 5 s.
//!
//! Ordinary is: a web server in three replicas, whose load swings by half in twenty minutes and jumps
//! to six times for some seconds every few minutes; a job in its container that starts programs for
//! 40 s every five minutes; a database that writes a checkpoint for a minute every six; a CronJob
//! with a container of its own every minute, which lives for 8 s; a container that is restarted
//! every ten minutes, with all that its runtime does then; a service of the node that starts
//! programs now and then. In the hour there are a roll-out of another image, twelve replicas instead
//! of three, a pod that is drained and a morning on which the load grows to twice within a quarter of an hour.

use std::sync::Arc;

use super::{
    finding::Kind,
    settings::Settings,
    tests::{SECOND, World, at, number, program, told, who},
    workload::{Who, tests::identity},
};
use crate::enricher::Identity;

/// Numbers that look like chance and are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }

    /// `n`, give or take a quarter.
    fn about(&mut self, n: u64) -> u64 {
        n - n / 4 + self.below(n / 2 + 1)
    }
}

struct Node {
    world: World,
    chance: Chance,
    second: u64,
}

impl Node {
    fn is_in(&self, every: u64, from: u64, length: u64) -> bool {
        (self.second + every - from) % every < length
    }

    /// A container is prepared, and its program started.
    fn prepare(&mut self, cgroup: u64, who: &Who) {
        for call in ["mount", "pivot_root", "setns"] {
            self.world.calls(cgroup, who, &[(call, 1)]);
            self.world.detector.told(&at(cgroup), who, told(call, "runc:[2:INIT]"));
        }
        self.world.calls(cgroup, who, &[("execve", 1), ("mmap", 40), ("openat", 60), ("dup2", 3)]);
        self.world.detector.told(&at(cgroup), who, program("/usr/bin/app", 1));
    }

    fn born(&self, who: Who) -> Who {
        Who { born_ns: Some(self.world.now.boot_ns), ..who }
    }

    fn web(&mut self, cgroup: u64, who: &Who) {
        let swing = self.second % 1_200;
        let mut load = 100 + swing.min(1_200 - swing) / 6;
        if self.second > 4_000 {
            load += load * (self.second - 4_000).min(900) / 900;
        }
        if self.is_in(217, 30, 6) {
            load *= 6;
        }
        let load = self.chance.about(load);
        self.world.calls(
            cgroup,
            who,
            &[
                ("epoll_wait", load),
                ("accept4", load / 2),
                ("read", load * 2),
                ("sendto", load),
                ("close", load / 2),
                ("futex", self.chance.below(20)),
            ],
        );
        if self.is_in(300, 60, 40) {
            let n = self.chance.about(15);
            self.world.calls(
                cgroup,
                who,
                &[
                    ("clone", n),
                    ("execve", n),
                    ("wait4", n),
                    ("pipe2", n),
                    ("openat", 30 * n),
                    ("exit_group", n),
                    ("mmap", 20 * n),
                ],
            );
        }
    }

    fn database(&mut self) {
        let db = who("db-0", "StatefulSet/db");
        let n = self.chance.about(40);
        let writes = if self.is_in(360, 100, 60) { 40 * n } else { n };
        self.world.calls(50, &db, &[("read", n), ("write", writes), ("fsync", writes / 10)]);
        let errors = [(2, self.chance.below(3))];
        self.world.detector.calls(&at(50), &db, [(number("openat"), 3)], Some(&errors));
    }

    fn job(&mut self) {
        let (run, age) = (self.second / 60, self.second % 60);
        let cgroup = 10_000 + run;
        let born_ns = self.world.now.boot_ns - age * SECOND;
        let job = who(&format!("report-{run}"), "CronJob/report");
        let job = Who { born_ns: Some(born_ns), ..job };
        match age {
            0 => self.prepare(cgroup, &job),
            1..8 => {
                let n = self.chance.about(2_000);
                self.world.calls(cgroup, &job, &[("read", n), ("write", n), ("rename", 2)]);
            }
            8 => {
                self.world.calls(cgroup, &job, &[("unlink", 1), ("exit_group", 1)]);
                self.world.detector.ended(&at(cgroup));
            }
            _ => {}
        }
    }

    fn restarted(&mut self) {
        let (life, age) = (self.second / 600, self.second % 600);
        let cgroup = 20_000 + life;
        let born_ns = self.world.now.boot_ns - age * SECOND;
        let who = Who { born_ns: Some(born_ns), ..who("queue-0", "StatefulSet/queue") };
        match age {
            0 => self.prepare(cgroup, &who),
            598 => {
                self.world.calls(cgroup, &who, &[("kill", 2), ("unlink", 1), ("exit_group", 1)]);
            }
            599 => self.world.detector.ended(&at(cgroup)),
            _ => {
                let n = self.chance.about(if age < 20 { 900 } else { 30 });
                self.world.calls(cgroup, &who, &[("read", n), ("futex", n)]);
            }
        }
    }

    fn service(&mut self) {
        let none: Arc<str> = "".into();
        let unit = Identity {
            pod_uid: none.clone(),
            namespace: none.clone(),
            pod_name: none.clone(),
            container_id: none.clone(),
            container: none.clone(),
            unit: "kubelet.service".into(),
            ..identity("", None)
        };
        let unit = Who { identity: Arc::new(unit), image: none, born_ns: None, ending: false };
        let n = self.chance.below(5);
        self.world.calls(60, &unit, &[("read", 50 * n), ("clone", n), ("execve", n)]);
        if self.is_in(60, 0, 1) {
            self.world.calls(60, &unit, &[("mount", 1)]);
            self.world.detector.told(&at(60), &unit, told("mount", "kubelet"));
        }
    }

    fn second(&mut self, web: &[(u64, Who)]) -> Vec<super::finding::Finding> {
        for (cgroup, who) in web {
            self.web(*cgroup, who);
        }
        self.database();
        self.job();
        self.restarted();
        self.service();
        self.second += 1;
        self.world.tick()
    }
}

fn replicas(node: &mut Node, from: u64, count: u64, image: &str) -> Vec<(u64, Who)> {
    let new = (from..from + count).map(|n| {
        let who = Who { image: image.into(), ..who(&format!("web-{n}"), "Deployment/web") };
        (n, node.born(who))
    });
    let new: Vec<_> = new.collect();
    for (cgroup, who) in &new {
        node.prepare(*cgroup, who);
    }
    new
}

#[test]
fn an_ordinary_hour_has_no_finding_and_each_injected_fact_is_found_within_five_seconds() {
    let world = World::new(Settings::default());
    let mut node = Node { world, chance: Chance(88_172_645_463_325_252), second: 0 };
    let mut web = replicas(&mut node, 100, 3, "web:1");
    let (learning, hour) = (31 * 60, 60 * 60);
    for second in 0..learning + hour {
        match second {
            2_400 => web.extend(replicas(&mut node, 200, 9, "web:1")),
            2_700 => {
                // Drained: told to end, then gone.
                web[0].1.ending = true;
                let drained = web[0].clone();
                node.world.calls(drained.0, &drained.1, &[("kill", 4), ("unlink", 1)]);
            }
            2_720 => node.world.detector.ended(&at(web.remove(0).0)),
            3_300 => {
                let (old, new) = (web.len() as u64, replicas(&mut node, 300, 3, "web:2"));
                for _ in 0..old.min(3) {
                    node.world.detector.ended(&at(web.remove(0).0));
                }
                web.extend(new);
            }
            _ => {}
        }
        let found = node.second(&web);
        assert_eq!(found, [], "{second} s");
    }
    let (_, learnt) = node.world.detector.learning_and_learnt();
    assert!(learnt >= 5, "{learnt} workloads are learnt, so there was something to find");

    let (cgroup, victim) = web[0].clone();
    assert_eq!(&*victim.image, "web:1");
    type Inject = fn(&mut World, u64, &Who);
    let injected: [(Kind, &str, Inject); 4] = [
        (Kind::New, "dup2", |world, cgroup, who| {
            world.detector.told(&at(cgroup), who, program("/bin/sh", 900));
            world.calls(cgroup, who, &[("clone", 1), ("execve", 1), ("dup2", 2), ("getppid", 1)]);
        }),
        (Kind::Sensitive, "ptrace", |world, cgroup, who| {
            world.detector.told(&at(cgroup), who, told("ptrace", "sh"));
            world.calls(cgroup, who, &[("ptrace", 1)]);
        }),
        (Kind::Rate, "clone", |world, cgroup, who| world.calls(cgroup, who, &[("clone", 2_500)])),
        (Kind::Errors, "EACCES", |world, cgroup, who| {
            world.detector.calls(&at(cgroup), who, [], Some(&[(13, 2_000)]));
        }),
    ];
    for (kind, what, inject) in injected {
        let seconds = (1..=5).find(|_| {
            inject(&mut node.world, cgroup, &victim);
            let found = node.second(&web);
            found.iter().any(|f| (f.kind, &*f.what) == (kind, what))
        });
        assert!(seconds.is_some(), "{kind:?} {what}: not found, but {:?}", node.world.found);
    }
}
