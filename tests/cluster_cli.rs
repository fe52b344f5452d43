//! The command line of a cluster: the real `orb8` asks the real `orb8-server`, whose agents come, hang
//! and are gone.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_testkit::{SimAgent, SimNode};
use orb8_tests::binary;
use serde_json::Value;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);

/// A running server. It is killed when it is dropped.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    /// On a free port, which it logs.
    fn start(agents: &[&SimAgent]) -> Result<Self> {
        let agents: Vec<String> = agents.iter().map(|a| a.address().to_string()).collect();
        let mut process = Command::new(binary("orb8-server")?)
            .args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
            .args(["--query-timeout", "1s", "--agents", &agents.join(",")])
            .env("RUST_LOG", "info")
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(process.stderr.take().context("no log")?);
        let mut said = String::new();
        let address = loop {
            let from = said.len();
            ensure!(log.read_line(&mut said)? > 0, "it ended: {said}");
            let Some((_, rest)) = said[from..].split_once("grpc=") else { continue };
            break rest.split_whitespace().next().context("no address")?.to_owned();
        };
        // Or it would wait for somebody to read its log.
        thread::spawn(move || log.lines().for_each(drop));
        Ok(Self { process, address })
    }

    fn ask(&self, arguments: &[&str]) -> Result<Run> {
        let started = Instant::now();
        let output = Command::new(binary("orb8")?)
            .args(arguments)
            .args(["--server", &self.address])
            .env("HOME", "/nonexistent")
            .env_remove("KUBECONFIG")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .output()?;
        Run::new(output, started.elapsed())
    }

    /// Asks again until the nodes are in these states.
    fn wait_for_states(&self, states: &[(&str, &str)]) -> Result<Run> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let run = self.ask(&["nodes", "-o", "json"])?;
            let nodes: Vec<Value> = serde_json::from_str(&run.stdout)?;
            let is = |(name, state): &(&str, &str)| {
                nodes.iter().any(|node| node["name"] == *name && node["state"] == *state)
            };
            if nodes.len() == states.len() && states.iter().all(is) {
                return Ok(run);
            }
            ensure!(Instant::now() < deadline, "{run:#?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _ended = self.process.wait();
    }
}

/// What the command line left.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    took: Duration,
}

impl Run {
    fn new(output: Output, took: Duration) -> Result<Self> {
        Ok(Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
            took,
        })
    }

    fn last_line(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }

    fn headers(&self) -> Vec<&str> {
        self.stdout.lines().next().unwrap_or_default().split_whitespace().collect()
    }

    /// Shows it as a user saw it, with `--nocapture`.
    fn show(&self, what: &str) -> &Self {
        eprintln!("$ orb8 {what}\n{}{}[{:?}]\n", self.stdout, self.stderr, self.code);
        self
    }
}

fn node(name: &str) -> SimNode {
    SimNode { events: 5, ..SimNode::new(name, 4) }
}

#[test]
fn a_cluster_answers_as_one_and_says_who_is_missing() -> Result<()> {
    let runtime = Runtime::new()?;
    let start = |name: &str| runtime.block_on(SimAgent::start(node(name)));
    let (well, hung, gone) = (start("node-1")?, start("node-2")?, start("node-3")?);
    let server = Server::start(&[&well, &hung, &gone])?;
    server.wait_for_states(&[("node-1", "ready"), ("node-2", "ready"), ("node-3", "ready")])?;

    let nodes = server.ask(&["nodes"])?;
    nodes.show("nodes");
    ensure!(nodes.code == Some(0) && nodes.last_line() == "3/3 nodes ready", "{nodes:#?}");
    let headers = ["NODE", "STATE", "SINCE", "VERSION", "KERNEL", "SIGNALS", "RTT", "REASON"];
    ensure!(nodes.headers() == headers, "{nodes:#?}");

    let pods = server.ask(&["query", "pods", "--limit", "5"])?;
    pods.show("query pods --limit 5");
    ensure!(pods.code == Some(0), "{pods:#?}");
    ensure!(pods.last_line() == "3/3 nodes answered, 0 of 12 records lost", "{pods:#?}");
    ensure!(pods.headers()[..3] == ["NODE", "NAMESPACE", "POD"], "{pods:#?}");
    ensure!(pods.stdout.lines().count() == 6, "{pods:#?}");

    let one = server.ask(&["query", "flows", "--node", "node-2", "-o", "json"])?;
    let flows: Vec<Value> = serde_json::from_str(&one.stdout)?;
    ensure!(flows.len() == 4 && flows.iter().all(|flow| flow["node"] == "node-2"), "{one:#?}");
    ensure!(one.last_line() == "1/1 nodes answered, 0 of 4 records lost", "{one:#?}");

    let nowhere = server.ask(&["query", "pods", "--node", "node-9"])?;
    ensure!(nowhere.code == Some(1), "{nowhere:#?}");
    ensure!(nowhere.stderr.contains("known: node-1, node-2, node-3"), "{nowhere:#?}");
    let nobody = server.ask(&["query", "pods", "--pod", "nobody"])?;
    nobody.show("query pods --pod nobody");
    ensure!(nobody.code == Some(1) && nobody.stderr.contains("app-0-node-1-0"), "{nobody:#?}");

    let status = server.ask(&["status"])?;
    status.show("status");
    ensure!(status.stdout.contains("Nodes:    3/3 nodes ready"), "{status:#?}");
    let agent = server.ask(&["status", "--node", "node-2"])?;
    ensure!(agent.stdout.starts_with("Node:     node-2"), "{agent:#?}");

    let trace = server.ask(&["trace", "network", "--duration", "2s", "-o", "jsonl"])?;
    ensure!(trace.code == Some(0), "{trace:#?}");
    for name in ["node-1", "node-2", "node-3"] {
        ensure!(trace.stdout.contains(&format!("\"node\":\"{name}\"")), "{trace:#?}");
    }
    ensure!(trace.last_line().starts_with("3/3 nodes answered, 0 of "), "{trace:#?}");
    let table = server.ask(&["trace", "network", "--duration", "1s", "--pod", "app-0"])?;
    table.show("trace network --duration 1s --pod app-0");
    ensure!(table.headers()[..3] == ["TIME", "NODE", "NAMESPACE"], "{table:#?}");

    hung.faults(|faults| faults.hang = true);
    runtime.block_on(gone.kill());
    let pods = server.ask(&["query", "pods"])?;
    pods.show("query pods, with node-2 hung and node-3 gone");
    ensure!(pods.code == Some(3) && pods.took < Duration::from_secs(8), "{pods:#?}");
    ensure!(pods.last_line() == "1/3 nodes answered, 0 of 4 records lost", "{pods:#?}");
    ensure!(pods.stderr.contains("warning: node node-2 did not answer: "), "{pods:#?}");
    ensure!(pods.stderr.contains("warning: node node-3 was not reached: "), "{pods:#?}");
    ensure!(pods.stdout.contains("app-0-node-1-0"), "{pods:#?}");

    let states = [("node-1", "ready"), ("node-2", "silent"), ("node-3", "unreachable")];
    ensure!(server.wait_for_states(&states)?.code == Some(3), "nodes that are not ready");
    let nodes = server.ask(&["nodes"])?;
    nodes.show("nodes");
    ensure!(nodes.last_line() == "1/3 nodes ready", "{nodes:#?}");
    let status = server.ask(&["status", "--node", "node-2"])?;
    status.show("status --node node-2");
    ensure!(status.code == Some(3), "{status:#?}");
    ensure!(status.stderr.contains("node-2") && status.took < PATIENCE, "{status:#?}");
    let status = server.ask(&["status"])?;
    status.show("status");
    ensure!(status.code == Some(3) && status.stdout.contains("1/3 nodes ready"), "{status:#?}");

    let trace = server.ask(&["trace", "network", "--duration", "2s", "--pod", "app-0"])?;
    trace.show("trace network --duration 2s --pod app-0");
    ensure!(trace.code == Some(3), "{trace:#?}");
    ensure!(trace.last_line().starts_with("1/3 nodes answered, 0 of "), "{trace:#?}");
    for name in ["node-2", "node-3"] {
        ensure!(trace.stderr.contains(&format!("node {name} ")), "{trace:#?}");
    }
    let calls = server.ask(&["query", "syscalls", "--since", "1m"])?;
    ensure!(calls.code == Some(3) && calls.stderr.contains("no rows: "), "{calls:#?}");
    let anomalies = server.ask(&["query", "anomalies"])?;
    ensure!(anomalies.code == Some(3), "{anomalies:#?}");

    hung.faults(|faults| faults.hang = false);
    let (address, back) = (gone_address(&states, &server)?, node("node-3"));
    let _back = runtime.block_on(SimAgent::start_at(address.parse()?, back))?;
    server.wait_for_states(&[("node-1", "ready"), ("node-2", "ready"), ("node-3", "ready")])?;
    let pods = server.ask(&["query", "pods"])?;
    ensure!(pods.code == Some(0), "{pods:#?}");
    Ok(())
}

/// Where the node that is gone was.
fn gone_address(states: &[(&str, &str)], server: &Server) -> Result<String> {
    let (gone, _) = states.iter().find(|(_, state)| *state == "unreachable").context("none")?;
    let run = server.ask(&["nodes", gone, "-o", "json"])?;
    let nodes: Value = serde_json::from_str(&run.stdout)?;
    Ok(nodes[0]["address"].as_str().context("no address")?.to_owned())
}
