//! Interfaces that are made, renamed and left in bursts: none is overlooked, and an agent that ends in
//! the middle of one leaves nothing behind.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orb8_testkit::{Node, NodeOptions, Pod, PodSpec};
use orb8_tests::{AgentProcess, Client};

const LIMIT: Duration = Duration::from_secs(60);

/// An agent that follows a node with one pod.
fn start(node: &Node, pod: &Pod, arguments: &[&str]) -> Result<AgentProcess> {
    let agent = AgentProcess::start(node, &[&["--signals", "network"], arguments].concat())?;
    await_attached(&agent, &[pod.veth().to_owned()], 1)?;
    Ok(agent)
}

/// Runs a script on the node.
fn on_node(node: &Node, script: &str) -> Result<String> {
    let output = node.exec(&["sh", "-ec", script])?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{script}: {complaint}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes veths in one go, faster than anybody can attach to them. Each is up and in use by its
/// kernel, which looks for neighbours.
fn make(node: &Node, pod: &Pod, names: &[String], renamed: bool) -> Result<()> {
    let mut batch = String::new();
    for (at, name) in names.iter().enumerate() {
        let first = if renamed { format!("tmp{at}") } else { name.clone() };
        let peer = format!("peer name p-{name} netns {}", pod.sandbox_pid());
        batch += &format!("link add {first} type veth {peer}\n");
        if renamed {
            batch += &format!("link set {first} name {name}\n");
        }
        batch += &format!("link set {name} up\n");
    }
    on_node(node, &format!("ip -batch - <<END\n{batch}END"))?;
    Ok(())
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

/// Waits until as many of these are attached to.
fn await_attached(agent: &Client, names: &[String], count: usize) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let interfaces = agent.status()?.interfaces;
        let attached = interfaces.iter().filter(|i| !i.attached.is_empty());
        let attached: BTreeSet<&str> = attached.map(|i| &*i.name).collect();
        let missing: Vec<_> = names.iter().filter(|name| !attached.contains(&***name)).collect();
        if names.len() - missing.len() >= count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not attached to: {missing:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn interfaces_that_are_renamed_while_they_are_attached_to_are_attached_to() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("shop", "web"))?;
    let agent = start(&node, &pod, &[])?;
    let mut all = Vec::new();
    for round in 0..4 {
        let new = names(&format!("named{round}-"), 10);
        make(&node, &pod, &new, true)?;
        all.extend(new);
    }
    await_attached(&agent, &all, all.len())?;
    let status = agent.status()?;
    ensure!(status.interfaces.iter().all(|i| i.reason.is_empty()), "{:?}", status.interfaces);
    agent.terminate()?;
    Ok(())
}

/// What hangs on the node's interfaces.
fn qdiscs_and_filters(node: &Node, names: &[String]) -> Result<String> {
    let mut script = String::from("tc qdisc show | grep clsact || true; ");
    for name in names {
        script += &format!("tc filter show dev {name} ingress; tc filter show dev {name} egress; ");
    }
    on_node(node, &script)
}

#[test]
fn an_agent_that_ends_in_a_burst_leaves_no_filter() -> Result<()> {
    for how in ["clsact", "auto"] {
        let node = Node::start(NodeOptions::default())?;
        let pod = node.start_pod(PodSpec::new("shop", "web"))?;
        let agent = start(&node, &pod, &["--tc-attach", how])?;
        let new = names("burst", 80);
        make(&node, &pod, &new, false)?;
        await_attached(&agent, &new, 8)?;
        agent.terminate()?;
        let left = qdiscs_and_filters(&node, &new)?;
        ensure!(left.trim().is_empty(), "{how}: {left}");
    }
    Ok(())
}

#[test]
fn what_an_agent_killed_in_a_burst_leaves_is_cleared_by_the_next() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("shop", "web"))?;
    let agent = start(&node, &pod, &[])?;
    let new = names("burst", 40);
    make(&node, &pod, &new, false)?;
    await_attached(&agent, &new, 8)?;
    let interfaces = agent.status()?.interfaces;
    let how: Vec<_> = interfaces.iter().map(|i| (&*i.name, &*i.attached)).collect();
    agent.kill();
    let left = qdiscs_and_filters(&node, &new)?;
    ensure!(left.contains("orb8_ingress"), "nothing was left of {how:?}: {left}");
    let agent = start(&node, &pod, &["--tc-attach", "tcx"])?;
    await_attached(&agent, &new, new.len())?;
    let left = qdiscs_and_filters(&node, &new)?;
    // A qdisc without a filter could be anybody's: the one that was just being filled stays.
    ensure!(!left.contains("orb8") && left.matches("clsact").count() <= 1, "{left}");
    agent.terminate()?;
    Ok(())
}
