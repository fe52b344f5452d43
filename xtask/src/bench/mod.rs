//! `cargo xtask bench`: what the probes cost, over an empty program of the same type in the same run.

mod agent;
mod cases;
mod cluster;
mod events;
mod gate;
mod measure;
mod probe;
mod report;
mod syscall;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::step::{self, cargo};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Nanoseconds per packet of the network probe, and the sizes of its programs
    Network(Network),
    /// Nanoseconds per system call of the syscall probe, over an empty program and beside bpftrace
    Syscall(syscall::Args),
    /// Memory and CPU of the agent, idle and with many flows
    Agent {
        /// How to print the result
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
        #[command(flatten)]
        build: Build,
    },
    /// What an agent delivers, loses and takes while very many events come
    Events(events::Args),
    /// Queries, scrapes and traces through a server of a thousand agents
    Cluster(cluster::Args),
    /// Agents for `cluster`, until standard input ends
    #[command(hide = true)]
    HostAgents(cluster::Host),
}

#[derive(clap::Args)]
struct Network {
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit with 1 where a program got larger, or slower against its floor, than the limits allow
    #[arg(long)]
    gate: bool,
    /// Rounds for each case; each runs the floor and the probe, and gives one difference
    #[arg(long, default_value_t = 101, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets in each half of a round
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    packets: u32,
}

/// For which target what is measured is built.
#[derive(clap::Args)]
struct Build {
    /// Target to build for, such as the x86_64-unknown-linux-musl of the images [default: this
    /// machine's]
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
}

impl Build {
    /// Builds the binaries of these packages, the agent's among them, and gives their folder.
    fn bins(&self, packages: &[&str]) -> Result<PathBuf> {
        let mut flags = vec!["--release"];
        flags.extend(packages.iter().flat_map(|package| ["--package", package]));
        flags.extend(self.target.iter().flat_map(|target| ["--target", target]));
        step::build_bins(&flags, "orb8-agent")
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if cfg!(debug_assertions) {
        return in_release();
    }
    match &args.what {
        What::Network(args) => network(args),
        What::Syscall(args) => syscall::run(args),
        What::Agent { output, build } => agent::run(*output, build),
        What::Events(args) => events::run(args),
        What::Cluster(args) => cluster::run(*args),
        What::HostAgents(args) => cluster::host(*args),
    }
}

/// The harness is on the clock too, so it has to be the optimised one.
fn in_release() -> Result<()> {
    eprintln!("bench: this is a debug build of xtask; building and running the release build");
    let status = cargo()
        .args(["run", "--quiet", "--release", "--package", "xtask", "--", "bench"])
        .args(std::env::args_os().skip(2))
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the benchmark in release failed: {status}");
    Ok(())
}

fn network(args: &Network) -> Result<()> {
    measure::stay_on_one_cpu()?;
    let sizes = probe::sizes()?;
    let mut costs = Vec::new();
    for case in cases::all() {
        eprintln!("bench: {}, {}", case.name, case.family);
        let cost = measure::cost(&case, args.rounds, args.packets);
        costs.push((case, cost.with_context(|| format!("{}, {}", case.name, case.family))?));
    }
    match args.output {
        Output::Table => report::table(args.rounds, args.packets, &costs, &sizes),
        Output::Json => report::json(args.rounds, args.packets, &costs, &sizes)?,
    }
    if args.gate { gate::check(&costs, &sizes) } else { Ok(()) }
}
