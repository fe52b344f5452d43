//! Nothing stays behind: not after a stop, not after a killed holder, not after a killed owner.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use orb8_testkit::program::Hold;
use orb8_testkit::{Node, NodeOptions, Pod, PodSpec, Program};
use rustix::process::{Pid, Signal, kill_process};

/// What can be left of a node: processes, which also hold its namespaces, and a cgroup directory.
struct Traces {
    processes: Vec<(u32, String)>,
    cgroup: PathBuf,
}

impl Traces {
    fn of(node: &Node, pods: &[&Pod], programs: &[u32]) -> Self {
        let mut pids = vec![node.holder_pid()];
        pids.extend(pods.iter().map(|pod| pod.sandbox_pid()));
        pids.extend(programs);
        Self::new(&pids, node.cgroup_dir().to_owned())
    }

    fn new(pids: &[u32], cgroup: PathBuf) -> Self {
        let processes = pids.iter().map(|pid| (*pid, birth(*pid).unwrap())).collect();
        Self { processes, cgroup }
    }

    fn alive(&self) -> Vec<u32> {
        let alive = |(pid, born): &&(u32, String)| birth(*pid).as_ref() == Some(born);
        self.processes.iter().filter(alive).map(|(pid, _)| *pid).collect()
    }

    fn assert_no_process_within(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.alive().is_empty() {
            assert!(Instant::now() < deadline, "still there: {:?}", self.alive());
            sleep(Duration::from_millis(5));
        }
    }

    fn assert_gone(&self) {
        assert!(!self.cgroup.exists(), "{}", self.cgroup.display());
        self.assert_no_process_within(Duration::ZERO);
    }
}

/// When a process was started, in clock ticks; tells it from a later one with the same id. `None` when it is gone or
/// waits to be reaped.
fn birth(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18).map(str::to_owned))?
}

fn has_link(node: &Node, name: &str) -> bool {
    node.exec(&["ip", "link", "show", "dev", name]).unwrap().status.success()
}

#[test]
fn a_stopped_pod_leaves_no_cgroup_no_veth_and_no_process() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let pod = node.start_pod(PodSpec::new("shop", "web")).unwrap();
    let program = pod.spawn("app", &Program::Hold(Hold::default())).unwrap();
    let (veth, cgroup) = (pod.veth().to_owned(), pod.cgroup_dir("app").unwrap().to_owned());
    let traces = Traces::of(&node, &[&pod], &[program.pid()]);
    assert!(has_link(&node, &veth) && cgroup.exists());

    pod.stop().unwrap();
    assert!(!has_link(&node, &veth));
    assert!(!cgroup.exists() && !cgroup.parent().unwrap().exists());
    assert_eq!(traces.alive(), [node.holder_pid()]);
    drop(node);
    traces.assert_gone();
}

#[test]
fn pods_that_outlive_the_nodes_handle_are_cleaned_up_too() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let pods: Vec<Pod> =
        (0..3).map(|_| node.start_pod(PodSpec::new("shop", "web")).unwrap()).collect();
    let traces = Traces::of(&node, &pods.iter().collect::<Vec<_>>(), &[]);
    drop(node);
    assert!(traces.cgroup.exists());
    drop(pods);
    traces.assert_gone();
}

#[test]
fn killed_holders_are_cleaned_up_after() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let pod = node.start_pod(PodSpec::new("shop", "web")).unwrap();
    let other = node.start_pod(PodSpec::new("shop", "db")).unwrap();
    let program = pod.spawn("app", &Program::Hold(Hold::default())).unwrap();
    let traces = Traces::of(&node, &[&pod, &other], &[program.pid()]);

    kill(pod.sandbox_pid());
    pod.stop().unwrap();
    kill(node.holder_pid());
    sleep(Duration::from_millis(20));
    assert!(node.enter().is_err(), "the node is gone");
    drop((other, node, program));
    traces.assert_gone();
}

#[test]
fn a_killed_owner_takes_its_processes_along_and_the_next_node_removes_its_cgroups() {
    let mut owner =
        Command::new(env!("CARGO_BIN_EXE_orb8-testowner")).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut value = |key: &str| {
        let found = lines.find_map(|line| Some(line.strip_prefix(key)?.to_owned()));
        found.unwrap_or_else(|| panic!("the owner did not say {key}"))
    };
    let cgroup = PathBuf::from(value("cgroup="));
    let pids: Vec<u32> = value("pids=").split(' ').map(|pid| pid.parse().unwrap()).collect();
    let traces = Traces::new(&pids, cgroup);

    kill(owner.id());
    owner.wait().unwrap();
    traces.assert_no_process_within(Duration::from_secs(5));
    // Another test of this process may start a node in this moment, and sweep before us.
    let _node = Node::start(NodeOptions::default()).unwrap();
    traces.assert_gone();
}

#[test]
fn directories_of_dead_owners_are_swept_with_what_runs_in_them_and_those_of_the_living_are_not() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let mount = node.cgroup_dir().parent().unwrap();
    let sleeper = || Command::new("sleep").arg("60").spawn().unwrap();
    let (mut owner, mut other, mut left) = (sleeper(), sleeper(), sleeper());

    let stale = mount.join(format!("orb8-testkit-{}-1", owner.id()));
    let foreign = mount.join(format!("orb8-testkit-{}-1", other.id()));
    for dir in [&stale, &foreign] {
        fs::create_dir_all(dir.join("kubepods/burstable/pod1/abc")).unwrap();
    }
    let procs = stale.join("kubepods/burstable/pod1/abc/cgroup.procs");
    fs::write(procs, left.id().to_string()).unwrap();
    let former_life = mount.join(format!("orb8-testkit-{}-4000000", std::process::id()));
    fs::create_dir(&former_life).unwrap();
    end(&mut owner);

    let _next = Node::start(NodeOptions::default()).unwrap();
    let exist = [&stale, &foreign, &former_life, node.cgroup_dir()].map(Path::exists);
    end(&mut other);
    let _last = Node::start(NodeOptions::default()).unwrap();
    assert_eq!(exist, [false, true, false, true]);
    assert!(!foreign.exists(), "its owner is dead as well now");
    assert!(!left.wait().unwrap().success(), "killed, not ended");
}

#[test]
fn a_light_pod_comes_and_goes_in_a_fraction_of_a_second() {
    const ROUNDS: u32 = 20;
    let node = Node::start(NodeOptions::default()).unwrap();
    let round = || {
        let start = Instant::now();
        node.start_pod(PodSpec::new("churn", "pod")).unwrap().stop().unwrap();
        start.elapsed()
    };
    // The fastest one: other tests share the machine and the kernel's one lock for interfaces.
    let fastest = (0..ROUNDS).map(|_| round()).min().unwrap();
    assert!(fastest < Duration::from_millis(250), "{fastest:?}");

    for round in 0..ROUNDS {
        let veth = node.add_veth(&format!("churn{round}")).unwrap();
        assert!(veth.ifindex() > 0);
    }
    let links = node.exec(&["ip", "-o", "link"]).unwrap();
    assert_eq!(String::from_utf8(links.stdout).unwrap().lines().count(), 2, "lo and br0");
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
}

fn end(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}
