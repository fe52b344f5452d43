//! What the agent costs, as a process: memory when idle and with a full flow table, CPU while many
//! flows move. Its own figures, asked over its own protocol.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use orb8_testkit::{
    Node, NodeOptions, PodSpec, Process, Program,
    program::{Exec, Flows, HoldFlows, Proto},
};
use serde_json::{Value, json};

use super::Output;
use crate::step;

/// One measured figure beside its aim.
struct Figure {
    what: &'static str,
    value: f64,
    unit: &'static str,
    aim: f64,
}

const MIB: f64 = 1_048_576.0;
/// Enough for several ticks to even out.
const MEASURED: Duration = Duration::from_secs(20);
const ACTIVE_FLOWS: u32 = 10_000;
const MANY_FLOWS: u32 = 65_536;

pub(super) fn run(output: Output) -> Result<()> {
    let bins = step::build_bins(
        &[
            "--release",
            "--package",
            "orb8-agent",
            "--package",
            "orb8-cli",
            "--package",
            "orb8-testkit",
        ],
        "orb8-agent",
    )?;
    let node = Node::start(NodeOptions::default())?;
    let client = node.start_pod(PodSpec::new("bench", "client"))?;
    let server = node.start_pod(PodSpec::new("bench", "server"))?;
    let agent = Agent::start(&node, &bins)?;
    let mut figures = Vec::new();

    sleep(Duration::from_secs(3));
    let idle = agent.usage()?;
    figures.push(Figure {
        what: "resident memory, idle",
        value: idle.0 / MIB,
        unit: "MiB",
        aim: 40.0,
    });

    // Two pods, two directions of hook: every flow of the client is two in the kernel.
    let sink = orb8_testkit::program::UdpSink { bind: (server.ipv4(), 7000).into(), ports: 8 };
    let _sink = server.spawn("app", &Program::UdpSink(sink))?;
    let to = (server.ipv4(), 7000).into();
    let held = HoldFlows { to, count: ACTIVE_FLOWS / 2, pps: 20_000, size: 64, ports: 8 };
    let mut held = client.spawn("app", &Program::HoldFlows(held))?;
    sleep(Duration::from_secs(2));
    let (before, began) = (agent.usage()?, Instant::now());
    sleep(MEASURED);
    let after = agent.usage()?;
    let share = (after.1 - before.1) / began.elapsed().as_secs_f64() * 100.0;
    figures.push(Figure {
        what: "CPU, 10,000 active flows",
        value: share,
        unit: "% of a core",
        aim: 2.0,
    });
    held.stop()?;

    let many = Flows {
        to,
        count: MANY_FLOWS / 2,
        packets_per_flow: 1,
        size: 64,
        proto: Proto::Udp,
        ports: Some(8),
    };
    client.spawn("app", &Program::Flows(many))?.wait()?;
    sleep(Duration::from_secs(2));
    let full = agent.usage()?;
    figures.push(Figure {
        what: "resident memory, 65,536 flows",
        value: full.0 / MIB,
        unit: "MiB",
        aim: 64.0,
    });
    eprintln!("bench: the agent tracks {} entries at the end", agent.entries()?);
    print(output, &figures);
    Ok(())
}

fn print(output: Output, figures: &[Figure]) {
    match output {
        Output::Table => {
            println!("{:<34} {:>9}  {:<12} {:>6}", "AGENT", "MEASURED", "", "AIM");
            for f in figures {
                println!("{:<34} {:>9.2}  {:<12} ≤ {:.0}", f.what, f.value, f.unit, f.aim);
            }
        }
        Output::Json => {
            let rows: Vec<Value> = figures
                .iter()
                .map(|f| json!({"what": f.what, "value": f.value, "unit": f.unit, "aim": f.aim}))
                .collect();
            println!("{}", Value::Array(rows));
        }
    }
}

/// The release agent on the node, as a DaemonSet would run it.
struct Agent<'a> {
    node: &'a Node,
    orb8: String,
    _process: Process,
}

impl<'a> Agent<'a> {
    fn start(node: &'a Node, bins: &std::path::Path) -> Result<Self> {
        let path = |name: &str| bins.join(name).display().to_string();
        let command = vec![path("orb8-agent"), "--node-name".into(), node.name().into()];
        let process = node.spawn("orb8-agent", &Program::Exec(Exec { command }))?;
        let agent = Self { node, orb8: path("orb8"), _process: process };
        let deadline = Instant::now() + Duration::from_secs(20);
        while agent.status().is_err() {
            ensure!(Instant::now() < deadline, "the agent does not answer: {:?}", agent.status());
            sleep(Duration::from_millis(200));
        }
        Ok(agent)
    }

    fn status(&self) -> Result<Value> {
        let command = [&*self.orb8, "--server", "127.0.0.1:9090", "status", "-q", "-o", "json"];
        let out = self.node.exec(&command)?;
        let text = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "orb8 status: {text}");
        let answer: Value = serde_json::from_slice(&out.stdout)?;
        Ok(answer.get(0).unwrap_or(&answer).clone())
    }

    /// Resident bytes and CPU seconds.
    fn usage(&self) -> Result<(f64, f64)> {
        let status = self.status()?;
        let of = |name: &str| {
            status["usage"][name].as_f64().with_context(|| format!("no {name} in {status}"))
        };
        Ok((of("resident_bytes")?, of("cpu_seconds")?))
    }

    fn entries(&self) -> Result<u64> {
        let status = self.status()?;
        let maps = status["maps"].as_array().context("no maps in the status")?;
        let flows =
            maps.iter().filter(|m| m["name"].as_str().is_some_and(|n| n.starts_with("FLOWS")));
        Ok(flows.filter_map(|m| m["entries"].as_u64()).sum())
    }
}
