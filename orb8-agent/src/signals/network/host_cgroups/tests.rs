//! Which cgroups are listed, and when.

use std::sync::Arc;

use orb8_k8s::pods::PodTable;

use super::*;
use crate::k8s::cgroup;

const HOST: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
const PLAIN: &str = "1d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
const UNKNOWN: &str = "2d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";

fn pods() -> PodTable {
    let pod = |name: &str, uid: &str, host: bool| {
        format!(
            "kind: Pod\nmetadata: {{namespace: shop, name: {name}, uid: {uid}}}\n\
             spec: {{hostNetwork: {host}}}\n"
        )
    };
    let text = [pod("host", HOST, true), pod("plain", PLAIN, false)].join("---\n");
    PodTable::parse(&text).unwrap()
}

fn found(path: &str) -> FoundCgroup {
    FoundCgroup { path: path.into(), identity: cgroup::parse(path) }
}

fn container(uid: &str) -> FoundCgroup {
    found(&format!("/kubepods/burstable/pod{uid}/{}", "7".repeat(64)))
}

fn there() -> Vec<(u64, FoundCgroup)> {
    vec![
        (1, container(HOST)),
        (2, container(PLAIN)),
        (3, container(UNKNOWN)),
        (4, found("/system.slice/sshd.service")),
    ]
}

fn listed(changes: &[Change]) -> Vec<u64> {
    let mut ids: Vec<u64> = changes
        .iter()
        .filter_map(|change| match change {
            Change::List(id, _) => Some(*id),
            Change::Unlist(_) => None,
        })
        .collect();
    ids.sort_unstable();
    ids
}

#[test]
fn where_the_kernel_tells_namespaces_what_is_likely_to_talk_is_listed_at_once_and_what_does() {
    let mut cgroups = HostCgroups::new(None);
    let now = Instant::now();
    assert_eq!(listed(&cgroups.step(there(), &pods(), now)), [1, 4]);
    assert!(cgroups.counts(1) && !cgroups.counts(2) && !cgroups.counts(3));
    // The pod that nobody knows, one that says otherwise, and one that is gone by now.
    for id in [3, 2, 5] {
        assert!(cgroups.talks(id));
        assert!(!cgroups.talks(id), "no news");
        assert!(cgroups.counts(id));
    }
    assert_eq!(listed(&cgroups.step(there(), &pods(), now + SETTLED)), [2, 3]);
    assert!(cgroups.counts(2) && cgroups.counts(3) && !cgroups.counts(5));
    assert_eq!(cgroups.step(there(), &pods(), now + SETTLED), []);
}

/// Pods that become known.
struct Later {
    pods: PodTable,
    known: bool,
}

impl PodLookup for Later {
    fn by_uid(&self, uid: &orb8_k8s::PodUid) -> Option<Arc<orb8_k8s::Pod>> {
        self.known.then(|| self.pods.by_uid(uid)).flatten()
    }
    fn by_container(&self, _: &orb8_k8s::ContainerId) -> Option<(Arc<orb8_k8s::Pod>, Arc<str>)> {
        None
    }
    fn by_ip(&self, _: std::net::IpAddr, _: i64) -> Option<Arc<orb8_k8s::Pod>> {
        None
    }
    fn generation(&self) -> u64 {
        u64::from(self.known)
    }
    fn namespaces(&self) -> Vec<Arc<str>> {
        Vec::new()
    }
    fn pods(&self) -> Vec<Arc<orb8_k8s::Pod>> {
        Vec::new()
    }
    fn source(&self) -> orb8_proto::PodSource {
        orb8_proto::PodSource::default()
    }
}

#[test]
fn a_pod_that_turns_out_to_be_on_the_host_network_is_listed() {
    let mut cgroups = HostCgroups::new(None);
    let now = Instant::now();
    let mut pods = Later { pods: pods(), known: false };
    assert_eq!(listed(&cgroups.step(there(), &pods, now)), [4]);
    pods.known = true;
    assert_eq!(listed(&cgroups.step(there(), &pods, now + SETTLED)), [1]);
}

#[test]
fn a_cgroup_that_is_gone_stays_listed_while_its_sockets_may_close() {
    let mut cgroups = HostCgroups::new(None);
    let now = Instant::now();
    cgroups.step(there(), &pods(), now);
    assert_eq!(cgroups.step([], &pods(), now + SETTLED), []);
    assert!(cgroups.counts(4));
    let later = now + SETTLED + LINGER;
    let mut changes = cgroups.step([], &pods(), later);
    changes.sort_by_key(|change| format!("{change:?}"));
    assert_eq!(changes, [1, 4].map(Change::Unlist));
    assert!(cgroups.known.is_empty());
}

/// A real cgroup with a process of this test in it, or without.
struct Dir(std::path::PathBuf, CgroupMount);

impl Dir {
    fn new(test: &str) -> Self {
        let mount = crate::k8s::cgroup_tree::CgroupTree::open().unwrap().mount().clone();
        let dir = mount.mount_point.join(format!("orb8-test-{test}-{}", std::process::id()));
        fs::create_dir(&dir).expect("making a cgroup takes root");
        Self(dir, mount)
    }

    fn path(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_str().unwrap())
    }

    fn looks(&self) -> Option<Looks> {
        Some(Looks::new(self.1.clone()).unwrap())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let start = Instant::now();
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn sleeper(dir: &Dir, netns: Option<&crate::netlink::scratch::Namespace>) -> std::process::Child {
    let mut command = std::process::Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(netns) = netns {
        command.args(["nsenter", &format!("--net=/proc/{}/ns/net", netns.pid())]);
    }
    let child = command.args(["sleep", "60"]).spawn().unwrap();
    if let Some(netns) = netns {
        let inode = |pid| stat(format!("/proc/{pid}/ns/net")).map(|s| s.st_ino).ok();
        let start = Instant::now();
        while inode(child.id()) != inode(netns.pid()) {
            assert!(start.elapsed() < Duration::from_secs(10), "nsenter");
        }
    }
    fs::write(dir.0.join("cgroup.procs"), child.id().to_string()).unwrap();
    child
}

fn end(mut child: std::process::Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn where_the_kernel_does_not_tell_a_cgroup_is_listed_by_its_processes() {
    let dir = Dir::new("here");
    let mut cgroups = HostCgroups::new(dir.looks());
    assert!(!cgroups.counts(1), "nothing is known yet");
    let there = || [(1, found(&dir.path()))];
    let start = Instant::now();
    assert_eq!(cgroups.step(there(), &pods(), start), [], "nobody is in it");
    let child = sleeper(&dir, None);
    assert_eq!(cgroups.step(there(), &pods(), start), [], "it is not time to look again");
    assert_eq!(listed(&cgroups.step(there(), &pods(), start + SETTLED)), [1]);
    end(child);
    for seconds in 2..100 {
        let now = start + Duration::from_secs(seconds);
        assert_eq!(cgroups.step(there(), &pods(), now), [], "sockets may be left");
    }
}

#[test]
fn where_the_kernel_does_not_tell_processes_of_other_namespaces_are_left_out() {
    let (dir, netns) = (Dir::new("elsewhere"), crate::netlink::scratch::Namespace::new());
    let mut cgroups = HostCgroups::new(dir.looks());
    let there = || [(1, found(&dir.path()))];
    let start = Instant::now();
    let child = sleeper(&dir, Some(&netns));
    for seconds in 0..10 {
        let now = start + Duration::from_secs(seconds);
        assert_eq!(cgroups.step(there(), &pods(), now), []);
    }
    end(child);
}

#[test]
fn where_the_kernel_does_not_tell_an_unknown_container_has_to_stay_here_for_a_while() {
    let dir = Dir::new("container");
    let mut cgroups = HostCgroups::new(dir.looks());
    // By its path it is a container of a pod that nobody knows.
    let identity = cgroup::parse(&format!("/pod{UNKNOWN}"));
    let unknown = FoundCgroup { path: dir.path().into(), identity };
    assert!(unknown.identity.is_some());
    let there = || [(1, unknown.clone())];
    let child = sleeper(&dir, None);
    let start = Instant::now();
    assert_eq!(cgroups.step(there(), &pods(), start), []);
    assert_eq!(cgroups.step(there(), &pods(), start + SETTLED / 2), []);
    assert_eq!(listed(&cgroups.step(there(), &pods(), start + SETTLED)), [1]);
    end(child);
}

#[test]
fn a_step_over_a_full_node_with_nothing_new_is_cheap_and_changes_nothing() {
    let many = || (0..3_000).map(|id| (id, found(&format!("/system.slice/s{id}.service"))));
    let mut cgroups = HostCgroups::new(None);
    let now = Instant::now();
    assert_eq!(cgroups.step(many(), &pods(), now).len(), 3_000);
    assert_eq!(cgroups.step(many(), &pods(), now + SETTLED), []);
}
