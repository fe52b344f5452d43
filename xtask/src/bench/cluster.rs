//! A server and very many agents: time of queries, of a scrape, and what it delivers of merged
//! traces. The agents are real gRPC servers with made-up pods, in processes of their own.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use orb8_proto::{
    NodeOutcome, NodeQuery, NodeState, PodQuery, StreamRequest, event,
    orbit_service_client::OrbitServiceClient,
};
use orb8_testkit::{SimAgent, SimNode};
use tonic::transport::Channel;

use super::Output;
use crate::step::cargo;

/// The cluster.
#[derive(Clone, Copy, clap::Args)]
pub(super) struct Args {
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Agents
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    agents: u32,
    /// Pods of each
    #[arg(long, default_value_t = 500)]
    pods: u32,
    /// An agent takes up to so many milliseconds to answer
    #[arg(long, default_value_t = 100)]
    jitter: u64,
    /// One agent in so many never answers
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    hung: u32,
    /// Queries of each kind
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    queries: u32,
    /// Records a second of each agent's trace
    #[arg(long, default_value_t = 100)]
    events: u32,
    /// Seconds of the trace
    #[arg(long, default_value_t = 20)]
    seconds: u32,
}

/// Part of the agents, in this process.
#[derive(Clone, Copy, clap::Args)]
pub(super) struct Host {
    #[arg(long)]
    first: u32,
    #[arg(long)]
    count: u32,
    #[arg(long)]
    pods: u32,
    #[arg(long)]
    jitter: u64,
    #[arg(long)]
    hung: u32,
    #[arg(long)]
    events: u32,
}

const PROCESSES: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves agents until standard input ends.
pub(super) fn host(args: Host) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let mut agents = Vec::new();
        for n in args.first..args.first + args.count {
            let mut node = SimNode::new(&format!("node-{n:04}"), args.pods);
            node.events = args.events;
            let agent = SimAgent::start(node).await?;
            agent.faults(|faults| {
                faults.jitter = Duration::from_millis(args.jitter);
                faults.hang = n % args.hung == args.hung - 1;
            });
            println!("{}", agent.address());
            agents.push(agent);
        }
        println!();
        let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        end.await??;
        Ok(())
    })
}

/// A process of the bench; it is ended with this.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

pub(super) fn run(args: Args) -> Result<()> {
    let built = cargo().args(["build", "--quiet", "--release", "-p", "orb8-server"]).status()?;
    ensure!(built.success(), "the server does not build");
    let (hosts, addresses) = start_agents(args)?;
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("server.yaml");
    std::fs::write(&config, format!("agents: \"{}\"\n", addresses.join(",")))?;
    let (server, grpc, metrics) = start_server(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(args, grpc, metrics, server.0.id()))?;
    drop((server, hosts));
    match args.output {
        Output::Table => figures.table(args),
        Output::Json => println!("{}", figures.json(args)),
    }
    Ok(())
}

fn start_agents(args: Args) -> Result<(Vec<Started>, Vec<String>)> {
    let (mut hosts, mut addresses) = (Vec::new(), Vec::new());
    let this = std::env::current_exe()?;
    for process in 0..PROCESSES {
        let first = args.agents * process / PROCESSES;
        let count = args.agents * (process + 1) / PROCESSES - first;
        let mut child = Command::new(&this)
            .args(["bench", "host-agents"])
            .args(["--first", &first.to_string(), "--count", &count.to_string()])
            .args(["--pods", &args.pods.to_string(), "--jitter", &args.jitter.to_string()])
            .args(["--hung", &args.hung.to_string(), "--events", &args.events.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start agents")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        hosts.push(Started(child));
        for line in lines {
            match line? {
                line if line.is_empty() => break,
                line => addresses.push(line),
            }
        }
    }
    ensure!(addresses.len() == args.agents as usize, "{} agents started", addresses.len());
    Ok((hosts, addresses))
}

fn start_server(config: &Path) -> Result<(Started, SocketAddr, SocketAddr)> {
    let binary = std::env::current_exe()?.with_file_name("orb8-server");
    let mut child = Command::new(&binary)
        .args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--config"])
        .arg(config)
        .env("NO_COLOR", "1")
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let mut lines = BufReader::new(child.stderr.take().context("no output")?).lines();
    let server = Started(child);
    let serving = loop {
        match lines.next() {
            Some(line) => {
                let line = line?;
                if line.contains("serving") {
                    break line;
                }
            }
            None => bail!("the server ended"),
        }
    };
    std::thread::spawn(move || lines.for_each(drop));
    let address = |name: &str| -> Result<SocketAddr> {
        let text = serving.split(&format!("{name}=")).nth(1).context("no address")?;
        Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
    };
    Ok((server, address("grpc")?, address("metrics")?))
}

#[derive(Default)]
struct Figures {
    top: Times,
    namespace: Times,
    answered: usize,
    rows: u64,
    scrape: Duration,
    scrape_bytes: usize,
    delivered: u64,
    lost: u64,
    out_of_order: u64,
    stream_cpu: f64,
    resident: u64,
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn quantile(&mut self, q: f64) -> Duration {
        self.0.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into some hundred times"
        )]
        let at = ((self.0.len() as f64 * q).ceil() as usize).clamp(1, self.0.len());
        self.0[at - 1]
    }
}

async fn measure(
    args: Args,
    grpc: SocketAddr,
    metrics: SocketAddr,
    server: u32,
) -> Result<Figures> {
    let mut client = OrbitServiceClient::connect(format!("http://{grpc}"))
        .await?
        .max_decoding_message_size(64 << 20);
    wait_until_known(&mut client, args).await?;
    let mut figures = Figures::default();
    for n in 0..args.queries {
        let top = PodQuery { limit: 20, ..PodQuery::default() };
        let began = Instant::now();
        let answer = client.query_pods(top).await?.into_inner();
        figures.top.0.push(began.elapsed());
        let coverage = answer.coverage.unwrap_or_default();
        let answered = coverage.nodes.iter().filter(|n| n.outcome() == NodeOutcome::Answered);
        (figures.answered, figures.rows) = (answered.count(), coverage.rows_matched);
        ensure!(answer.pods.len() == 20, "{} rows", answer.pods.len());

        let namespace = format!("ns-{}", n % 10);
        let query = PodQuery { namespace, limit: 100, ..PodQuery::default() };
        let began = Instant::now();
        let answer = client.query_pods(query).await?.into_inner();
        figures.namespace.0.push(began.elapsed());
        ensure!(answer.pods.len() == 100, "{} rows", answer.pods.len());
    }
    let began = Instant::now();
    let scrape = tokio::task::spawn_blocking(move || scrape(metrics)).await??;
    (figures.scrape, figures.scrape_bytes) = (began.elapsed(), scrape.len());
    ensure!(
        scrape.contains("\norb8_sweep_agents"),
        "no metrics: {}",
        &scrape[..scrape.len().min(200)]
    );
    trace(&mut client, args, server, &mut figures).await?;
    figures.resident = peak_resident(server)?;
    Ok(figures)
}

async fn wait_until_known(client: &mut OrbitServiceClient<Channel>, args: Args) -> Result<()> {
    let began = Instant::now();
    loop {
        let nodes = client.list_nodes(NodeQuery::default()).await?.into_inner().nodes;
        let count = |state| nodes.iter().filter(|n| n.state() == state).count();
        let hung = (args.agents / args.hung) as usize;
        if count(NodeState::Ready) + hung == args.agents as usize
            && count(NodeState::Silent) == hung
        {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "{} agents are ready", count(NodeState::Ready));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn scrape(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: orb8\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

async fn trace(
    client: &mut OrbitServiceClient<Channel>,
    args: Args,
    server: u32,
    figures: &mut Figures,
) -> Result<()> {
    let duration_ns = Some(i64::from(args.seconds) * 1_000_000_000);
    let cpu = cpu_seconds(server)?;
    let request = StreamRequest { duration_ns, ..StreamRequest::default() };
    let mut stream = client.stream_events(request).await?.into_inner();
    let mut last = 0;
    while let Some(event) = stream.message().await? {
        match event.event {
            Some(event::Event::NetworkFlow(_)) => {
                figures.delivered += 1;
                figures.out_of_order += u64::from(event.timestamp_ns < last);
                last = event.timestamp_ns;
            }
            Some(event::Event::Loss(report)) => figures.lost = report.records_lost,
            _ => {}
        }
    }
    figures.stream_cpu = (cpu_seconds(server)? - cpu) / f64::from(args.seconds);
    Ok(())
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("an odd stat file")?.1.split_whitespace();
    let ticks: u32 = fields.skip(11).take(2).filter_map(|f| f.parse::<u32>().ok()).sum();
    Ok(f64::from(ticks) / 100.0)
}

fn peak_resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

impl Figures {
    fn table(mut self, args: Args) {
        let Args { agents, pods, jitter, hung, queries, events, seconds, .. } = args;
        println!(
            "{agents} agents with {pods} pods each, up to {jitter} ms to answer, one in {hung} hung; \
             {queries} queries of each kind; all of it on this machine\n"
        );
        let ms = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
        println!("{:<44}{:>10}{:>10}", "", "median", "p99");
        for (name, times) in [
            ("query pods, the first 20 of all", &mut self.top),
            ("query pods, the first 100 of a namespace", &mut self.namespace),
        ] {
            let (median, p99) = (times.quantile(0.5), times.quantile(0.99));
            println!("{name:<44}{:>10}{:>10}", ms(median), ms(p99));
        }
        println!("\nnodes that answered      {:>12} of {agents}", self.answered);
        println!("rows behind an answer    {:>12}", self.rows);
        println!(
            "scrape of the cluster    {:>12}   {} KiB",
            ms(self.scrape),
            self.scrape_bytes / 1024
        );
        let rate = self.delivered / u64::from(seconds.max(1));
        println!(
            "merged trace             {rate:>10}/s   of {}/s wanted, {} lost and counted, {} out of \
             order",
            u64::from(events) * u64::from(agents - agents / hung),
            self.lost,
            self.out_of_order
        );
        println!("server's CPU in it       {:>12.2} cores", self.stream_cpu);
        println!("server's memory, peak    {:>8.1} MiB", self.resident as f64 / 1048576.0);
    }

    fn json(mut self, args: Args) -> String {
        let mut ms =
            |q, of: fn(&mut Self) -> &mut Times| of(&mut self).quantile(q).as_secs_f64() * 1e3;
        let times = [
            ms(0.5, |f| &mut f.top),
            ms(0.99, |f| &mut f.top),
            ms(0.5, |f| &mut f.namespace),
            ms(0.99, |f| &mut f.namespace),
        ];
        serde_json::json!({
            "agents": args.agents,
            "answered": self.answered,
            "top_median_ms": times[0],
            "top_p99_ms": times[1],
            "namespace_median_ms": times[2],
            "namespace_p99_ms": times[3],
            "scrape_ms": self.scrape.as_secs_f64() * 1e3,
            "trace_records": self.delivered,
            "trace_lost": self.lost,
            "trace_out_of_order": self.out_of_order,
            "trace_cpu": self.stream_cpu,
            "resident_bytes": self.resident,
        })
        .to_string()
    }
}
