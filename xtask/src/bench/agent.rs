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

use super::{Build, Output};

/// One measured figure, beside its aim if it has one.
struct Figure {
    signals: &'static str,
    what: &'static str,
    value: f64,
    unit: &'static str,
    aim: Option<f64>,
}

/// The aims are of the network signal alone; both signals are what runs by default.
const SIGNALS: [(&str, bool); 2] = [("network", true), ("network,syscall", false)];

const MIB: f64 = 1_048_576.0;
/// Enough for several ticks to even out.
const MEASURED: Duration = Duration::from_secs(20);
const ACTIVE_FLOWS: u32 = 10_000;
const MANY_FLOWS: u32 = 65_536;

pub(super) fn run(output: Output, build: &Build) -> Result<()> {
    let bins = build.bins(&["orb8-agent", "orb8-cli", "orb8-testkit"])?;
    let mut figures = Vec::new();
    for (signals, has_aims) in SIGNALS {
        eprintln!("bench: an agent with --signals {signals}");
        for (what, value, unit, aim) in measure(&bins, signals)? {
            figures.push(Figure { signals, what, value, unit, aim: has_aims.then_some(aim) });
        }
    }
    print(output, &figures);
    Ok(())
}

/// What is measured, its value, unit and aim.
type Measured = (&'static str, f64, &'static str, f64);

fn measure(bins: &std::path::Path, signals: &str) -> Result<[Measured; 3]> {
    let node = Node::start(NodeOptions::default())?;
    let client = node.start_pod(PodSpec::new("bench", "client"))?;
    let server = node.start_pod(PodSpec::new("bench", "server"))?;
    let agent = Agent::start(&node, bins, signals)?;

    sleep(Duration::from_secs(3));
    let idle = agent.usage()?;

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
    eprintln!("bench: the agent tracks {} entries at the end", agent.entries()?);
    Ok([
        ("resident memory, idle", idle.0 / MIB, "MiB", 40.0),
        ("CPU, 10,000 active flows", share, "% of a core", 2.0),
        ("resident memory, 65,536 flows", full.0 / MIB, "MiB", 64.0),
    ])
}

fn print(output: Output, figures: &[Figure]) {
    match output {
        Output::Table => {
            println!(
                "{:<16} {:<30} {:>9}  {:<12} {:>5}",
                "SIGNALS", "AGENT", "MEASURED", "", "AIM"
            );
            for f in figures {
                let aim = f.aim.map(|aim| format!("≤ {aim:.0}")).unwrap_or_default();
                let Figure { signals, what, value, unit, .. } = f;
                println!("{signals:<16} {what:<30} {value:>9.2}  {unit:<12} {aim:>5}");
            }
        }
        Output::Json => {
            let rows: Vec<Value> = figures
                .iter()
                .map(|f| {
                    let Figure { signals, what, value, unit, aim } = f;
                    json!({"signals": signals, "what": what, "value": value, "unit": unit, "aim": aim})
                })
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
    fn start(node: &'a Node, bins: &std::path::Path, signals: &str) -> Result<Self> {
        let path = |name: &str| bins.join(name).display().to_string();
        let options = ["--signals", signals, "--node-name", node.name()].map(String::from);
        let command = [path("orb8-agent")].into_iter().chain(options).collect();
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
