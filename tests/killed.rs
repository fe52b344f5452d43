//! An agent that is killed or stopped leaves the node's traffic alone, and nothing of its own that
//! the next one does not clear away.

use std::{
    fs,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use orb8_agent::config::TcAttach;
use orb8_testkit::{Process, Program, program::UdpSend};
use orb8_tests::{
    AgentProcess, Client, Scene, Traced, address, assert_exact,
    hooks::{filters_at, has_clsact, is_orb8},
};

const PER_SECOND: u64 = 2_000;

/// Datagrams that flow while something happens.
struct Traffic {
    sender: Process,
    sink: Process,
}

impl Traffic {
    /// Datagrams for the given number of seconds.
    fn begin(scene: &Scene, seconds: u64) -> Result<Self> {
        let sink = scene.server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, 0))?;
        let port = sink.addr().context("the sink listens")?.port();
        let send = UdpSend {
            to: address(&scene.server, false, port),
            packets: PER_SECOND * seconds,
            size: 64,
            pps: Some(PER_SECOND),
            from_port: None,
            await_echo: false,
        };
        Ok(Self { sender: scene.client.spawn("app", &Program::UdpSend(send))?, sink })
    }

    /// Every datagram has arrived.
    fn end(self) -> Result<()> {
        self.end_but_for_qdiscs(0)
    }

    /// The kernel stops a device for some milliseconds while a clsact qdisc comes or goes, with or
    /// without orb8 (`dev_deactivate` in `qdisc_graft`), and drops what is sent to it meanwhile.
    fn end_but_for_qdiscs(mut self, changes: u64) -> Result<()> {
        const LOST_PER_CHANGE: u64 = PER_SECOND / 10;
        let sent = self.sender.wait_for(Duration::from_secs(30))?.packets;
        let arrived = self.sink.stop()?.packets;
        ensure!(
            (sent - changes * LOST_PER_CHANGE..=sent).contains(&arrived),
            "{arrived} of {sent} datagrams have arrived"
        );
        Ok(())
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
    let scene = Scene::start_inside()?;
    let agent = start(&scene, "tcx")?;
    let traffic = Traffic::begin(&scene, 3)?;
    let ids = programs_of(agent.pid())?;
    assert_eq!(scene.programs()?.iter().filter(|name| is_orb8(name)).count(), 4);
    std::thread::sleep(Duration::from_millis(500));
    agent.kill();
    assert_eq!(scene.programs()?, [""; 0]);
    ensure_unloaded(&ids)?;
    // The next one finds a clean node.
    let agent = start(&scene, "tcx")?;
    traffic.end()?;
    Traffic::begin(&scene, 1)?.end()?;
    counts_again(&scene, &agent)?;
    agent.terminate()?;
    Ok(())
}

#[test]
fn what_an_agent_killed_with_clsact_leaves_is_cleared_by_the_next() -> Result<()> {
    let scene = Scene::start_inside()?;
    let agent = start(&scene, "clsact")?;
    let traffic = Traffic::begin(&scene, 1)?;
    let ids = programs_of(agent.pid())?;
    std::thread::sleep(Duration::from_millis(300));
    agent.kill();
    traffic.end()?;
    assert_eq!(scene.programs()?.len(), 4, "clsact keeps filters of the dead");

    // Under traffic, whichever way the next one attaches.
    let traffic = Traffic::begin(&scene, 3)?;
    let next = start(&scene, "tcx")?;
    for veth in scene.veths() {
        assert_eq!(filters_at(&scene.node, veth)?, [""; 0]);
        assert!(!has_clsact(&scene.node, veth)?, "the dead agent had made it");
    }
    ensure_unloaded(&ids)?;
    let log = next.log()?;
    assert_eq!(log.matches("removed a leftover filter").count(), 4, "{log}");
    traffic.end_but_for_qdiscs(2)?;
    next.terminate()?;

    // And by clsact again.
    start(&scene, "clsact")?.kill();
    let next = start(&scene, "clsact")?;
    for veth in scene.veths() {
        assert_eq!(filters_at(&scene.node, veth)?, ["orb8_ingress", "orb8_egress"]);
    }
    Traffic::begin(&scene, 1)?.end()?;
    counts_again(&scene, &next)?;
    next.terminate()?;
    for veth in scene.veths() {
        assert!(!has_clsact(&scene.node, veth)?);
    }
    Ok(())
}

#[test]
fn filters_of_another_running_orb8_are_not_removed() -> Result<()> {
    let scene = Scene::start_inside()?;
    let first = Traced::start(&scene.node, |config| config.tc_attach = TcAttach::Clsact)?;
    let second = start(&scene, "clsact")?;
    for veth in scene.veths() {
        let filters = filters_at(&scene.node, veth)?;
        assert_eq!(filters.iter().filter(|name| is_orb8(name)).count(), 4, "{filters:?}");
    }
    Traffic::begin(&scene, 1)?.end()?;
    counts_again(&scene, &first)?;
    counts_again(&scene, &second)?;

    // Nor when the other goes.
    second.terminate()?;
    Traffic::begin(&scene, 1)?.end()?;
    counts_again(&scene, &first)?;
    first.stop()?;
    for veth in scene.veths() {
        assert_eq!(filters_at(&scene.node, veth)?, [""; 0]);
        assert!(!has_clsact(&scene.node, veth)?, "the last one takes the qdisc along");
    }
    Ok(())
}

/// A stop under traffic changes as many clsact qdiscs.
fn a_stopped_agent_leaves_nothing(how: &str, qdiscs: u64) -> Result<()> {
    let scene = Scene::start_inside()?;
    let agent = start(&scene, how)?;
    let traffic = Traffic::begin(&scene, 2)?;
    let ids = programs_of(agent.pid())?;
    let log = agent.terminate()?;
    assert!(log.contains("stopped"), "{log}");
    assert_eq!(scene.programs()?, [""; 0]);
    for veth in scene.veths() {
        assert!(!has_clsact(&scene.node, veth)?);
    }
    ensure_unloaded(&ids)?;
    traffic.end_but_for_qdiscs(qdiscs)
}

#[test]
fn an_agent_that_is_asked_to_stop_leaves_nothing_on_tcx() -> Result<()> {
    a_stopped_agent_leaves_nothing("tcx", 0)
}

#[test]
fn an_agent_that_is_asked_to_stop_leaves_nothing_on_clsact() -> Result<()> {
    a_stopped_agent_leaves_nothing("clsact", 2)
}
