//! An agent that is killed or stopped leaves the node's traffic alone, and nothing of its own that
//! the next one does not clear away.

use std::{
    fs,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use aya::programs::loaded_programs;
use orb8_agent::config::TcAttach;
use orb8_testkit::{
    Node, NodeOptions, Pod, PodSpec, Process, Program, Summary, program::UdpSend,
};
use orb8_tests::{
    AgentProcess, Client, Traced, address, assert_exact,
    hooks::{filters_at, has_clsact, is_orb8, programs_at},
};

const PORT: u16 = 7001;

struct Scene {
    node: Node,
    client: Pod,
    server: Pod,
    sink: Process,
}

/// Datagrams that flow while something happens.
struct Traffic {
    sender: Process,
}

impl Scene {
    /// The calling thread is in the node's network namespace from here on.
    fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        node.enter()?;
        let client = node.start_pod(PodSpec::new("shop", "client"))?;
        let server = node.start_pod(PodSpec::new("shop", "server"))?;
        let sink = server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, PORT))?;
        Ok(Self { node, client, server, sink })
    }

    /// 2,000 datagrams a second for the given number of seconds.
    fn begin_traffic(&self, seconds: u64) -> Result<Traffic> {
        let send = UdpSend {
            to: address(&self.server, false, PORT),
            packets: 2_000 * seconds,
            size: 64,
            pps: Some(2_000),
            from_port: None,
            await_echo: false,
        };
        Ok(Traffic { sender: self.client.spawn("app", &Program::UdpSend(send))? })
    }

    fn programs(&self) -> Result<Vec<String>> {
        let mut names = programs_at(&self.node, self.client.veth())?;
        names.extend(programs_at(&self.node, self.server.veth())?);
        Ok(names)
    }

    fn veths(&self) -> [&str; 2] {
        [self.client.veth(), self.server.veth()]
    }

    /// Everything that was sent has arrived.
    fn ensure_all_arrived(mut self, traffic: &[Summary]) -> Result<()> {
        let sent: u64 = traffic.iter().map(|summary| summary.packets).sum();
        let arrived = self.sink.stop()?.packets;
        ensure!(sent > 0 && arrived == sent, "{arrived} of {sent} datagrams have arrived");
        Ok(())
    }
}

impl Traffic {
    fn end(&mut self) -> Result<Summary> {
        self.sender.wait_for(Duration::from_secs(30))
    }
}

fn start(scene: &Scene, how: &str) -> Result<AgentProcess> {
    let agent = AgentProcess::start(&scene.node, &["--tc-attach", how])?;
    for veth in scene.veths() {
        agent.wait_attached(veth)?;
    }
    Ok(agent)
}

/// Ids of the programs that a process holds open, from fdinfo.
fn programs_of(pid: u32) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Waits until the kernel has none of these programs: it frees them a moment after their last user.
fn ensure_unloaded(ids: &[u32]) -> Result<()> {
    ensure!(!ids.is_empty(), "the agent held no program");
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let loaded = loaded_programs().filter_map(Result::ok).map(|program| program.id());
        let left: Vec<u32> = loaded.filter(|id| ids.contains(id)).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "programs {left:?} are still loaded");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn counts_again(scene: &Scene, agent: &Client) -> Result<()> {
    for veth in scene.veths() {
        let now = agent.quiet_counters(veth)?;
        assert_exact(&now)?;
        ensure!(now.kernel_ingress_packets + now.kernel_egress_packets > 1_000, "{now:?}");
    }
    Ok(())
}

#[test]
fn a_killed_agent_with_tcx_leaves_nothing_and_costs_no_packet() -> Result<()> {
    let scene = Scene::start()?;
    let agent = start(&scene, "tcx")?;
    let mut traffic = scene.begin_traffic(3)?;
    let ids = programs_of(agent.pid())?;
    assert_eq!(scene.programs()?.iter().filter(|name| is_orb8(name)).count(), 4);
    std::thread::sleep(Duration::from_millis(500));
    agent.kill();
    assert_eq!(scene.programs()?, [""; 0]);
    ensure_unloaded(&ids)?;
    let first = traffic.end()?;
    // The next one finds a clean node.
    let agent = start(&scene, "tcx")?;
    let second = scene.begin_traffic(1)?.end()?;
    counts_again(&scene, &agent)?;
    agent.terminate()?;
    scene.ensure_all_arrived(&[first, second])
}

#[test]
fn what_an_agent_killed_with_clsact_leaves_is_cleared_by_the_next() -> Result<()> {
    let scene = Scene::start()?;
    let agent = start(&scene, "clsact")?;
    let mut traffic = scene.begin_traffic(4)?;
    let ids = programs_of(agent.pid())?;
    std::thread::sleep(Duration::from_millis(500));
    agent.kill();
    assert_eq!(scene.programs()?.len(), 4, "clsact keeps filters of the dead");

    // Under traffic, whichever way the next one attaches.
    let next = start(&scene, "tcx")?;
    for veth in scene.veths() {
        assert_eq!(filters_at(&scene.node, veth)?, [""; 0]);
        assert!(!has_clsact(&scene.node, veth)?, "the dead agent had made it");
    }
    ensure_unloaded(&ids)?;
    let log = next.log()?;
    assert_eq!(log.matches("removed a leftover filter").count(), 4, "{log}");
    let first = traffic.end()?;
    next.terminate()?;

    // And by clsact again.
    start(&scene, "clsact")?.kill();
    let next = start(&scene, "clsact")?;
    for veth in scene.veths() {
        assert_eq!(filters_at(&scene.node, veth)?, ["orb8_ingress", "orb8_egress"]);
    }
    let second = scene.begin_traffic(1)?.end()?;
    counts_again(&scene, &next)?;
    next.terminate()?;
    for veth in scene.veths() {
        assert!(!has_clsact(&scene.node, veth)?);
    }
    scene.ensure_all_arrived(&[first, second])
}

#[test]
fn filters_of_another_running_orb8_are_not_removed() -> Result<()> {
    let scene = Scene::start()?;
    let first = Traced::start(&scene.node, |config| config.tc_attach = TcAttach::Clsact)?;
    let second = start(&scene, "clsact")?;
    for veth in scene.veths() {
        let filters = filters_at(&scene.node, veth)?;
        assert_eq!(filters.iter().filter(|name| is_orb8(name)).count(), 4, "{filters:?}");
    }
    let sent = scene.begin_traffic(1)?.end()?;
    counts_again(&scene, &first)?;
    counts_again(&scene, &second)?;

    // Nor when the other goes.
    second.terminate()?;
    let more = scene.begin_traffic(1)?.end()?;
    counts_again(&scene, &first)?;
    first.stop()?;
    for veth in scene.veths() {
        assert_eq!(filters_at(&scene.node, veth)?, [""; 0]);
        assert!(!has_clsact(&scene.node, veth)?, "the last one takes the qdisc along");
    }
    scene.ensure_all_arrived(&[sent, more])
}

fn a_stopped_agent_leaves_nothing(how: &str) -> Result<()> {
    let scene = Scene::start()?;
    let agent = start(&scene, how)?;
    let mut traffic = scene.begin_traffic(2)?;
    let ids = programs_of(agent.pid())?;
    let log = agent.terminate()?;
    assert!(log.contains("stopped"), "{log}");
    assert_eq!(scene.programs()?, [""; 0]);
    for veth in scene.veths() {
        assert!(!has_clsact(&scene.node, veth)?);
    }
    ensure_unloaded(&ids)?;
    let sent = traffic.end()?;
    scene.ensure_all_arrived(&[sent])
}

#[test]
fn an_agent_that_is_asked_to_stop_leaves_nothing_on_tcx() -> Result<()> {
    a_stopped_agent_leaves_nothing("tcx")
}

#[test]
fn an_agent_that_is_asked_to_stop_leaves_nothing_on_clsact() -> Result<()> {
    a_stopped_agent_leaves_nothing("clsact")
}
