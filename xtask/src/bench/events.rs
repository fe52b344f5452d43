//! An agent under very many events, with three subscribers of which one does not read: what the ring
//! loses, whether totals stay exact, what each subscriber gets and is told, and memory.

use std::{
    path::Path,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use orb8_proto::{
    Event, Loss, LossReport, StatusRequest, StreamRequest, SyscallQuery, event,
    orbit_service_client::OrbitServiceClient,
};
use orb8_testkit::{
    Netns, Node, NodeOptions, PodSpec, Process, Program,
    program::{Calls, Exec},
};
use serde_json::json;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::{Build, Output};

/// The load.
#[derive(clap::Args)]
pub(super) struct Args {
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Events a second
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// For how long
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=240))]
    seconds: u32,
    #[command(flatten)]
    build: Build,
}

/// The call that is made; nobody else makes it while it is counted.
const CALL: &str = "timerfd_create";
const AGENT: &str = "http://127.0.0.1:9090";
/// What an agent may hold while it is under this load.
const MEMORY: f64 = 100.0;
const MIB: f64 = 1_048_576.0;

type Client = OrbitServiceClient<Channel>;

/// What one subscriber got.
#[derive(Default)]
struct Got {
    records: u64,
    /// As it was told in the end.
    last: LossReport,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let bins = args.build.bins(&["orb8-agent", "orb8-testkit"])?;
    let node = Node::start(NodeOptions::default())?;
    let pod = node.start_pod(PodSpec::new("bench", "caller"))?;
    let dir = tempfile::tempdir()?;
    let pods = dir.path().join("pods.json");
    node.write_pod_list(&pods)?;
    let _agent = start(&node, &bins, &pods)?;
    let (runtime, mut client) = connect(&node.netns())?;

    let time = Duration::from_secs(args.seconds.into());
    // Until some time after the last event.
    let whole = time + Duration::from_secs(4);
    let others = subscribe(node.netns(), "bench", whole, Duration::ZERO)?;
    let quick = subscribe(node.netns(), "", whole, Duration::ZERO)?;
    let stuck = subscribe(node.netns(), "", whole, whole + Duration::from_secs(1))?;
    let times = args.rate * args.seconds;
    let (only, per_second) = (Some(CALL.to_owned()), Some(args.rate));
    let calls = Calls { threads: 1, times, only, per_second };
    let began = Instant::now();
    let mut caller = pod.spawn("app", &Program::Calls(calls))?;
    let mut resident = 0;
    while began.elapsed() < time {
        thread::sleep(Duration::from_secs(2));
        let status = runtime.block_on(client.get_agent_status(StatusRequest::default()))?;
        resident = resident.max(status.into_inner().usage.unwrap_or_default().resident_bytes);
    }
    caller.wait()?;
    let took = began.elapsed();

    let ended = |subscriber: JoinHandle<Result<Got>>| {
        subscriber.join().map_err(|_| anyhow!("a subscriber panicked"))?
    };
    let got = [ended(quick)?, ended(others)?, ended(stuck)?];
    let query = SyscallQuery { syscalls: vec![CALL.into()], ..SyscallQuery::default() };
    let answer = runtime.block_on(client.query_syscalls(query))?.into_inner();
    let counted: u64 = answer.syscalls.iter().map(|row| row.calls).sum();
    let status = runtime.block_on(client.get_agent_status(StatusRequest::default()))?.into_inner();
    let usage = status.usage.unwrap_or_default();
    let refused = of_ring(&status.losses);
    let made = u64::from(times);
    report(args.output, made, took, counted, refused, resident, usage.cpu_seconds, &got);
    ensure!(counted == made, "{counted} calls counted of {made}");
    ensure!(got[2].last.records_lost > 0, "the subscriber that does not read was told of no loss");
    Ok(())
}

fn start(node: &Node, bins: &Path, pods: &Path) -> Result<Process> {
    let (path, pods) = (bins.join("orb8-agent"), pods.display().to_string());
    let path = path.display().to_string();
    let command = vec![path, "--node-name".into(), node.name().into(), "--pods".into(), pods];
    node.spawn("orb8-agent", &Program::Exec(Exec { command }))
}

/// A client in the node's network namespace, as soon as the agent serves.
fn connect(netns: &Netns) -> Result<(Runtime, Client)> {
    let inside = netns.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .on_thread_start(move || inside.enter().expect("the node's namespace is there"))
        .build()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // On a worker: this thread is not in the namespace.
        let connecting = runtime.spawn(async { OrbitServiceClient::connect(AGENT).await });
        match runtime.block_on(connecting)? {
            Ok(client) => return Ok((runtime, client.max_decoding_message_size(64 << 20))),
            Err(error) => {
                ensure!(Instant::now() < deadline, "the agent does not serve: {error}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Subscribes for `whole`, in a thread that begins to read after `silence`.
fn subscribe(
    netns: Netns,
    namespace: &'static str,
    whole: Duration,
    silence: Duration,
) -> Result<JoinHandle<Result<Got>>> {
    let (runtime, mut client) = connect(&netns)?;
    let request = StreamRequest {
        namespace: namespace.into(),
        signals: vec!["syscall".into()],
        syscalls: vec![CALL.into()],
        duration_ns: Some(i64::try_from(whole.as_nanos())?),
        ..StreamRequest::default()
    };
    let mut stream = runtime.block_on(client.stream_events(request))?.into_inner();
    Ok(thread::spawn(move || {
        thread::sleep(silence);
        let mut got = Got::default();
        while let Some(Event { event, .. }) = runtime.block_on(stream.message())? {
            match event.context("an empty event")? {
                event::Event::Loss(report) => got.last = report,
                event::Event::NodeStatus(_) => {}
                _ => got.records += 1,
            }
        }
        Ok(got)
    }))
}

fn of_ring(losses: &[Loss]) -> u64 {
    let ring = losses.iter().filter(|l| l.signal == "syscall" && l.reason == "ring_full");
    ring.map(|loss| loss.records).sum()
}

#[expect(clippy::too_many_arguments, reason = "the figures of one table")]
fn report(
    output: Output,
    made: u64,
    took: Duration,
    counted: u64,
    refused: u64,
    resident: u64,
    cpu_seconds: f64,
    got: &[Got; 3],
) {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let float = |n: u64| n as f64;
    let rate = float(made) / took.as_secs_f64();
    let lost = 100.0 * float(refused) / float(made);
    let resident = float(resident) / MIB;
    if let Output::Json = output {
        let subscribers = got
            .iter()
            .map(|one| json!({ "records": one.records, "told_lost": one.last.records_lost }));
        let subscribers: Vec<_> = subscribers.collect();
        println!(
            "{}",
            json!({ "events_per_second": rate, "calls": made, "counted": counted,
                "ring_lost_percent": lost, "resident_mib": resident, "cpu_seconds": cpu_seconds,
                "subscribers": subscribers })
        );
        return;
    }
    let met = |is_met| if is_met { "met" } else { "missed" };
    println!("{:<44} {rate:>14.0}", "events a second, as they were made");
    println!("{:<44} {:>14}  of {made}", "calls counted", counted);
    println!("{:<44} {lost:>14.4}  < 0.1: {}", "% refused by the ring", met(lost < 0.1));
    println!(
        "{:<44} {resident:>14.1}  <= {MEMORY}: {}",
        "MiB resident, at most",
        met(resident <= MEMORY)
    );
    println!("{:<44} {cpu_seconds:>14.1}", "seconds of CPU");
    for (who, one) in
        ["who reads all", "who reads one namespace", "who does not read"].iter().zip(got)
    {
        let told = one.last.records_lost;
        println!(
            "{:<44} {:>14}  and told of {told} lost",
            format!("records of {who}"),
            one.records
        );
    }
}
