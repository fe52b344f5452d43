//! `orb8 query`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum, builder::RangedU64ValueParser};

use super::{AgentArgs, FilterArgs, RecordArgs, SyscallAgentArgs, duration};

const QUERY_EXAMPLES: &str = "\
Examples:
  orb8 query pods --duration 10s
  orb8 --server node-1:9090 query flows -n prod --since 1m --sort-by packets --limit 20";

const QUERY_PODS_EXAMPLES: &str = "\
Examples:
  orb8 query pods --duration 10s
  orb8 --mode cluster query pods -n prod --since 1m --sort-by packets --limit 20
  orb8 query pods --since 24h --history http://prometheus:9090

Agents keep five minutes. With --history, totals of longer windows come from a Prometheus
that scrapes the agents: increase() of orb8_network_bytes_total and of
orb8_network_packets_total, which is good to a scrape interval at either end and knows no
flows. A Prometheus that is named by ORB8_HISTORY is asked only for windows that begin more
than five minutes ago.";

const QUERY_SYSCALLS_EXAMPLES: &str = "\
Examples:
  orb8 query syscalls --pod web --duration 10s
  orb8 --server node-1:9090 query syscalls -n prod --since 2m --sort-by calls --limit 20";

const ANOMALY_EXAMPLES: &str = "\
Examples:
  orb8 --server node-1:9090 query anomalies --active
  orb8 --server node-1:9090 query anomalies -n prod --kind new-syscall,sensitive-syscall -o json

An agent learns what each workload calls (30 minutes, --learn of the agent), then reports calls that
it never made, and rates of calls and of errors far above all that it had. Sensitive calls (ptrace,
mount, setns, bpf, …) are reported at any time. An anomaly is over when it was not seen for 5 minutes.";

#[derive(Debug, Subcommand)]
pub(crate) enum Query {
    /// Network flows, one row per flow
    #[command(after_help = QUERY_EXAMPLES)]
    Flows(QueryFlowsArgs),
    /// Network totals, one row per pod
    #[command(after_help = QUERY_PODS_EXAMPLES)]
    Pods(QueryPodsArgs),
    /// System calls, one row per container and call
    #[command(after_help = QUERY_SYSCALLS_EXAMPLES)]
    Syscalls(QuerySyscallsArgs),
    /// What departs from the system calls that workloads usually make
    #[command(after_help = ANOMALY_EXAMPLES)]
    Anomalies(QueryAnomaliesArgs),
}

#[derive(Debug, Args)]
pub(crate) struct QueryFlowsArgs {
    #[command(flatten)]
    pub window: WindowArgs,
    /// What the largest comes first by
    #[arg(long, value_enum, default_value_t, value_name = "BY", help_heading = "Output")]
    pub sort_by: FlowOrder,
    #[command(flatten)]
    pub agent: AgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct QueryPodsArgs {
    #[command(flatten)]
    pub window: WindowArgs,
    /// What the largest comes first by; names go from A to Z
    #[arg(long, value_enum, default_value_t, value_name = "BY", help_heading = "Output")]
    pub sort_by: PodOrder,
    #[command(flatten)]
    pub history: HistoryArgs,
    #[command(flatten)]
    pub agent: AgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct QuerySyscallsArgs {
    #[command(flatten)]
    pub window: WindowArgs,
    /// Only these calls
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = "Filters")]
    pub syscall: Vec<String>,
    /// Only the container of this name
    #[arg(long, value_name = "NAME", help_heading = "Filters")]
    pub container: Option<String>,
    /// What the largest comes first by; names go from A to Z. Errors and latencies take an agent that
    /// watches the ends of calls
    #[arg(long, value_enum, default_value_t, value_name = "BY", help_heading = "Output")]
    pub sort_by: SyscallOrder,
    #[command(flatten)]
    pub agent: SyscallAgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct QueryAnomaliesArgs {
    #[command(flatten)]
    pub window: WindowArgs,
    /// Only these kinds
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',', help_heading = "Filters")]
    pub kind: Vec<AnomalyKind>,
    /// Only those that last
    #[arg(long, help_heading = "Filters")]
    pub active: bool,
    #[command(flatten)]
    pub agent: SyscallAgentArgs,
}

/// What all queries take.
#[derive(Debug, Args)]
pub(crate) struct WindowArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// With a server: the window reaches back this far [default: all that agents keep]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Time")]
    pub since: Option<Duration>,
    /// With a server: the window ends this long ago [default: now]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Time")]
    pub until: Option<Duration>,
    /// In standalone mode: watch for this time, then answer [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Time")]
    pub duration: Option<Duration>,
    /// Rows at most [default: the server's or agent's own limit]
    #[arg(
        long,
        value_name = "N",
        value_parser = RangedU64ValueParser::<u32>::new().range(1..),
        help_heading = "Output"
    )]
    pub limit: Option<u32>,
    #[command(flatten)]
    pub records: RecordArgs,
}

/// Where longer windows come from.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "History")]
pub(crate) struct HistoryArgs {
    /// Base URL of a Prometheus that scrapes the agents; takes --since [env: ORB8_HISTORY]
    #[arg(long, value_name = "URL")]
    pub history: Option<String>,
    /// CA certificates that the Prometheus' has to come from (PEM) [default: those of the system]
    #[arg(long, env = "ORB8_HISTORY_CA", value_name = "FILE")]
    pub history_ca: Option<PathBuf>,
    /// File with a bearer token for the Prometheus
    #[arg(long, env = "ORB8_HISTORY_TOKEN_FILE", value_name = "FILE")]
    pub history_token_file: Option<PathBuf>,
}

/// `--kind` of anomalies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AnomalyKind {
    /// Never made while the workload was learnt
    NewSyscall,
    /// Can do harm
    SensitiveSyscall,
    /// Far more calls than usual
    Rate,
    /// Far more errors than usual
    ErrorStorm,
}

/// `--sort-by` of flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlowOrder {
    #[default]
    Bytes,
    Packets,
    Time,
}

/// `--sort-by` of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PodOrder {
    #[default]
    Bytes,
    Packets,
    Flows,
    Name,
}

/// `--sort-by` of system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SyscallOrder {
    #[default]
    Calls,
    Errors,
    Latency,
    Name,
}
