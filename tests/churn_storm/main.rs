//! Hundreds of pods on a node come and go all the time, on addresses and interfaces that are used
//! again at once, while the API is late and away: every byte finds its pod and its container.
//!
//! What was sent is known from the senders, who tell it when they end; the agent's answer is what a
//! subscriber heard. `ORB8_STORM_SECONDS=120` is the long form; `ORB8_STORM_PODS` is the population.
//!
//! What is sent before the kernel lets the agent attach is counted at its socket. How much that is
//! depends on how busy the machine is, with this test's own work too.

mod storm;
mod truth;
mod verdict;

use std::{
    net::Ipv6Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_proto::{PodQuery, StreamRequest};
use orb8_testkit::{KubeApi, Node, NodeOptions, Program};
use orb8_tests::{AgentProcess, Client};

use storm::{Size, Storm};
use verdict::{Names, Verdict};

/// Where all pods send to: a service of the node.
const PORT: u16 = 7001;
/// How late the API is.
const API_DELAY: Duration = Duration::from_secs(2);
/// Records wait for their owner for 3 s; the names of the last ones are as late as the API.
const SETTLE: Duration = Duration::from_secs(6);

/// The share of what was sent that is seen at least. The aim is 99.9 %, and met unless the machine is
/// so busy that the kernel forgets announcements.
const SEEN: f64 = 0.99;
/// One in so many containers may be missed. The aim is none, and met likewise.
const MISSED_OF: usize = 100;

/// The agent's memory may grow so much in the second half. In the short form what it keeps of pods that
/// are gone is not full by then.
fn growth(duration: Duration) -> u64 {
    if duration >= Duration::from_secs(120) { 4 << 20 } else { 8 << 20 }
}

/// Between two readings of the agent's memory.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);

fn number(variable: &str, default: u32) -> Result<u32> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text:?}: expected a number")),
        Err(_) => Ok(default),
    }
}

/// Waits until the agent has attached to this many interfaces. Each look asks for all of them.
fn await_interfaces(agent: &Client, count: u32) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let there = agent.status()?.interfaces.len();
        if there >= usize::try_from(count)? {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{there} of {count} interfaces are attached");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Resident memory, and when.
fn watch_memory(agent: &Client, until: Instant) -> Result<Vec<(Instant, u64)>> {
    let mut samples = Vec::new();
    while Instant::now() < until {
        let usage = agent.status()?.usage.unwrap_or_default();
        samples.push((Instant::now(), usage.resident_bytes));
        // Somebody asks now and then, as a dashboard does.
        agent.pods(PodQuery::default())?;
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Ok(samples)
}

/// The most after `from`, over the most before.
fn grown(samples: &[(Instant, u64)], from: Instant) -> u64 {
    let most = |late: bool| {
        let bytes = samples.iter().filter(|(at, _)| (*at >= from) == late).map(|(_, bytes)| *bytes);
        bytes.max().unwrap_or_default()
    };
    most(true).saturating_sub(most(false))
}

/// The last lines of a log.
fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[test]
fn every_byte_of_a_storm_of_pods_finds_its_pod_and_container() -> Result<()> {
    let size = Size {
        pods: number("ORB8_STORM_PODS", 500)?,
        per_second: number("ORB8_STORM_RATE", 20)?,
        duration: Duration::from_secs(number("ORB8_STORM_SECONDS", 30)?.into()),
    };
    let node = Node::start(NodeOptions::default())?;
    let api = KubeApi::start_in(&node.netns())?;
    node.report_to(&api)?;
    let _sink = node.spawn("sink", &Program::udp_sink(Ipv6Addr::UNSPECIFIED, PORT))?;
    let mut storm = Storm::new(&node, size)?;
    storm.populate()?;
    api.delay(API_DELAY);
    let agent = AgentProcess::start_with_api(&node, &api, &["--signals", "network"])?;
    await_interfaces(&agent, size.pods)?;
    let trace = agent.trace(StreamRequest::default())?;

    let begun = Instant::now();
    let client = Client::clone(&agent);
    let samples = std::thread::scope(|scope| -> Result<_> {
        let watcher = scope.spawn(|| watch_memory(&client, begun + size.duration));
        let cutter = scope.spawn(|| {
            for _ in 0..2 {
                std::thread::sleep(size.duration / 3);
                api.cut();
            }
        });
        storm.rage()?;
        cutter.join().expect("no panic");
        // Whether it answered in time is judged after what it counted.
        Ok(watcher.join().expect("no panic"))
    })?;
    storm.calm_down()?;
    std::thread::sleep(SETTLE);

    let named = agent.pods(PodQuery { limit: 1_000_000, ..PodQuery::default() })?;
    let status = agent.status()?;
    let log = agent.terminate()?;
    let heard = client.hear(trace)?;
    let truth = storm.truth();
    let verdict = Verdict::of(truth, &heard.flows);
    let names = Names::of(truth, &named);
    eprintln!("{} pods came, {} went; {verdict}", storm.started(), truth.pods());
    eprintln!("{names}");
    eprintln!("lost: {:?}; used: {:?}", status.losses, status.usage);
    eprintln!("{}", tail(&log, 40));
    for (heard, early, container) in verdict.over.iter().chain(verdict.short.iter().take(20)) {
        eprintln!("{heard} bytes heard, {early} early, of {container:?}");
    }

    for flow in verdict.strangers.iter().take(5) {
        eprintln!("of nobody that sent: {flow:?}");
    }

    let samples = samples?;
    let grown = grown(&samples, begun + size.duration / 2);
    let memory = samples.iter().map(|(_, bytes)| bytes >> 10).collect::<Vec<_>>();
    eprintln!("memory grew by {} KiB in the second half: {memory:?}", grown >> 10);
    ensure!(heard.last_report().records_lost == 0, "{:?}", heard.last_report());
    ensure!(verdict.to_wrong_pod == 0 && verdict.to_wrong_container == 0, "{verdict}");
    ensure!(verdict.to_nobody == 0 && verdict.to_no_container == 0, "{verdict}");
    ensure!(verdict.attributed() >= SEEN, "{verdict}");
    ensure!(verdict.missing.len() <= verdict.containers / MISSED_OF, "{verdict}");
    ensure!(names.wrong == 0, "{names}");
    ensure!(grown < growth(size.duration), "{samples:?}");
    Ok(())
}
