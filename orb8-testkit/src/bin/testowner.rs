//! `orb8-testowner`: the owner of a node that is killed by a test of what is left then.
#![expect(clippy::print_stdout, reason = "a test reads it")]

use std::{
    thread::{scope, sleep},
    time::Duration,
};

use anyhow::{Result, anyhow};
use orb8_testkit::{Node, NodeOptions, PodSpec, Program, program::Exec};

fn main() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    // On a thread that ends: its end is not the owner's, and must not take the pod along.
    let pod = scope(|scope| scope.spawn(|| node.start_pod(PodSpec::new("shop", "web"))).join());
    let pod = pod.map_err(|_| anyhow!("the thread panicked"))??;
    sleep(Duration::from_millis(50));
    // One that does not look at its standard input, whose end the other programs take as a request to end.
    let deaf = Program::Exec(Exec { command: vec!["sleep".into(), "60".into()] });
    let program = pod.spawn("app", &deaf)?;
    println!("cgroup={}", node.cgroup_dir().display());
    println!("pids={} {} {}", node.holder_pid(), pod.sandbox_pid(), program.pid());
    sleep(Duration::from_secs(60));
    Ok(())
}
