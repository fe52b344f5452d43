//! The command line, as typed. What the arguments mean together is decided where they are used.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{NonEmptyStringValueParser, RangedU64ValueParser},
};
use clap_complete::Shell;
use orb8_transport::{Address, ClientArgs};

use crate::{
    output::{Color, Format},
    target::Mode,
};

const EXIT_CODES: &str = "\
Exit codes:
  0   complete: every record that was asked for is in the output
  1   failed
  3   partial: a node did not answer to the end, or records were lost
  64  wrong usage

Records go to standard output, everything else to standard error.
RUST_LOG sets what is logged, e.g. RUST_LOG=orb8_agent=debug.";

const TRACE_EXAMPLES: &str = "\
Examples:
  orb8 trace network -n prod --pod web --duration 10s
  orb8 trace network --interface 'veth*' -o jsonl | jq .bytes
  orb8 --server node-1:9090 trace network --fields pod_name,bytes,state

A record is written when a flow starts, every second while it moves, and when it ends. Its counters
are what came since the flow's last record: their sum over all records is the total.
Times in tables are UTC.";

const TRACE_SYSCALL_EXAMPLES: &str = "\
Examples:
  orb8 trace syscall -n prod --pod web --duration 10s
  orb8 trace syscall --syscall execve,connect -o jsonl | jq '.path, .args'

Without --syscall: calls that say what a program is about (execve, open, connect, …), each, and of
frequent ones (read, write and their kin) one in a hundred, which says how many it stands for. Every
call is counted all the same: see query syscalls.";

const QUERY_SYSCALLS_EXAMPLES: &str = "\
Examples:
  orb8 query syscalls --pod web --duration 10s
  orb8 --server node-1:9090 query syscalls -n prod --since 2m --sort-by calls --limit 20";

const QUERY_EXAMPLES: &str = "\
Examples:
  orb8 query pods --duration 10s
  orb8 --server node-1:9090 query flows -n prod --since 1m --sort-by packets --limit 20";

const ANOMALY_EXAMPLES: &str = "\
Examples:
  orb8 --server node-1:9090 query anomalies --active
  orb8 --server node-1:9090 query anomalies -n prod --kind new-syscall,sensitive-syscall -o json

An agent learns what each workload calls (30 minutes, --learn of the agent), then reports calls that
it never made, and rates of calls and of errors far above all that it had. Sensitive calls (ptrace,
mount, setns, bpf, …) are reported at any time. An anomaly is over when it was not seen for 5 minutes.";

const ADVISE_EXAMPLES: &str = "\
Examples:
  orb8 --server node-1:9090 advise seccomp -n prod --pod web -o web.json
  orb8 --server node-1:9090 advise seccomp -n prod --pod web --container app --min-time 1h

A profile is refused when something may be missing: when no container with that name was watched from
its first call on, or not for --min-time, or calls were lost. --force writes it all the same, and says
in it why not to trust it. What only the container's runtime called, before the program was started,
is left out.";

/// eBPF observability for Kubernetes: network flows and system calls, named by pod, each accounted for
#[derive(Debug, Parser)]
#[command(name = "orb8", version, after_long_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Whom to ask [default: cluster if there is a server address, else standalone]
    #[arg(long, global = true, value_enum)]
    pub mode: Option<Mode>,
    /// Address of a running agent, with http:// or https:// before it or neither: then TLS is
    /// spoken if one of its options is given [env: ORB8_SERVER]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub server: Option<Address>,
    /// Write nothing but errors to standard error
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// When to colour
    #[arg(long, global = true, value_enum, default_value_t)]
    pub color: Color,
    #[command(flatten)]
    pub connection: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Follow what happens, record by record
    #[command(subcommand)]
    Trace(Trace),
    /// Totals of a window of time
    #[command(subcommand)]
    Query(Query),
    /// What to configure, by what was seen
    #[command(subcommand)]
    Advise(Advise),
    /// What an agent is, what works, what it lost and what it costs
    ///
    /// In standalone mode an agent is started, asked and stopped, which shows what would work here.
    Status(StatusArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell that is to read it
        shell: Shell,
    },
    /// Print the manual page, or write one per command
    Man {
        /// Write all pages into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Trace {
    /// Network flows
    #[command(after_help = TRACE_EXAMPLES)]
    Network(TraceNetworkArgs),
    /// System calls
    #[command(after_help = TRACE_SYSCALL_EXAMPLES)]
    Syscall(TraceSyscallArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Query {
    /// Network flows, one row per flow
    #[command(after_help = QUERY_EXAMPLES)]
    Flows(QueryFlowsArgs),
    /// Network totals, one row per pod
    #[command(after_help = QUERY_EXAMPLES)]
    Pods(QueryPodsArgs),
    /// System calls, one row per container and call
    #[command(after_help = QUERY_SYSCALLS_EXAMPLES)]
    Syscalls(QuerySyscallsArgs),
    /// What departs from the system calls that workloads usually make
    #[command(after_help = ANOMALY_EXAMPLES)]
    Anomalies(QueryAnomaliesArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Advise {
    /// A seccomp profile (OCI JSON) that allows what a container was seen to call
    #[command(after_help = ADVISE_EXAMPLES)]
    Seccomp(AdviseSeccompArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TraceNetworkArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// End after this time [default: at Ctrl-C]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Time")]
    pub duration: Option<Duration>,
    #[command(flatten)]
    pub records: RecordArgs,
    #[command(flatten)]
    pub agent: AgentArgs,
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
    pub agent: AgentArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TraceSyscallArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Only these calls [default: those that are worth telling]
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = "Filters")]
    pub syscall: Vec<String>,
    /// Only calls that failed: takes an agent that watches their ends
    #[arg(long, help_heading = "Filters")]
    pub errors: bool,
    /// End after this time [default: at Ctrl-C]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Time")]
    pub duration: Option<Duration>,
    #[command(flatten)]
    pub records: RecordArgs,
    #[command(flatten)]
    pub agent: SyscallAgentArgs,
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

#[derive(Debug, Args)]
pub(crate) struct AdviseSeccompArgs {
    /// Pods whose name starts like this; what several of one workload call is put together
    #[arg(long, value_name = "PREFIX", value_parser = NonEmptyStringValueParser::new())]
    pub pod: String,
    /// Only this namespace
    #[arg(short, long, value_name = "NS", value_parser = NonEmptyStringValueParser::new())]
    pub namespace: Option<String>,
    /// The container, where a pod has several
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub container: Option<String>,
    /// How long it has to have been watched
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10m")]
    pub min_time: Duration,
    /// Write a profile even if something may be missing in it
    #[arg(long)]
    pub force: bool,
    /// Write it into this file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// In standalone mode: watch for this time, then answer [default: the time of --min-time]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    #[command(flatten)]
    pub agent: SyscallAgentArgs,
}

/// What all queries take.
#[derive(Debug, Args)]
pub(crate) struct WindowArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// With a server: the window reaches back this far [default: all that the agent keeps]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Time")]
    pub since: Option<Duration>,
    /// In standalone mode: watch for this time, then answer [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Time")]
    pub duration: Option<Duration>,
    /// Rows at most [default: the agent's own limit]
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

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// How to write it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    #[command(flatten)]
    pub agent: AgentArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct FilterArgs {
    /// Only this namespace
    #[arg(short, long, value_name = "NS", value_parser = NonEmptyStringValueParser::new())]
    pub namespace: Option<String>,
    /// All namespaces, which is the default
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Only pods whose name starts like this
    #[arg(long, value_name = "PREFIX", value_parser = NonEmptyStringValueParser::new())]
    pub pod: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct RecordArgs {
    /// How to write records
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Only these fields, in this order; a wrong name lists all
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    pub fields: Vec<String>,
    /// No line of headers above a table
    #[arg(long)]
    pub no_headers: bool,
}

/// How the agent of standalone mode is set up.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Standalone mode")]
pub(crate) struct AgentArgs {
    /// Interface to attach to, may be repeated and end with * [default: every veth]. With a server:
    /// the one interface whose records to show
    #[arg(long, value_name = "IF", value_parser = NonEmptyStringValueParser::new())]
    pub interface: Vec<String>,
    /// Pods by name, as `kubectl get pods -A -o json` prints them
    #[arg(long, value_name = "FILE")]
    pub pods: Option<PathBuf>,
    /// Container runtime that names pods: auto, off, or its socket [default: auto] [env:
    /// ORB8_RUNTIME]
    #[arg(long, value_name = "SOCKET")]
    pub runtime: Option<String>,
    /// Size of the kernel's event buffer, a power of two [env: ORB8_RING_BUFFER_SIZE]
    #[arg(long, value_name = "BYTES")]
    pub ring_buffer_size: Option<String>,
    /// Flows that the kernel keeps apart at a time [env: ORB8_FLOW_TABLE_SIZE]
    #[arg(long, value_name = "N")]
    pub flow_table_size: Option<String>,
    /// How to attach to interfaces [default: auto]
    #[arg(long, value_enum, value_name = "HOW")]
    pub tc_attach: Option<TcAttach>,
}

/// How the agent of standalone mode is set up for system calls.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Standalone mode")]
pub(crate) struct SyscallAgentArgs {
    /// Pods by name, as `kubectl get pods -A -o json` prints them
    #[arg(long, value_name = "FILE")]
    pub pods: Option<PathBuf>,
    /// Container runtime that names pods: auto, off, or its socket [default: auto] [env:
    /// ORB8_RUNTIME]
    #[arg(long, value_name = "SOCKET")]
    pub runtime: Option<String>,
    /// Size of the kernel's event buffer, a power of two [env: ORB8_SYSCALL_RING_BUFFER_SIZE]
    #[arg(long, value_name = "BYTES")]
    pub ring_buffer_size: Option<String>,
    /// Of frequent calls (read, write and their kin) show one in N; each is counted [default: 100]
    /// [env: ORB8_SYSCALL_SAMPLE]
    #[arg(long, value_name = "N")]
    pub sample: Option<String>,
    /// Watch how calls end as well, with what result and after how long. --errors, and --sort-by of
    /// errors or latency, do so anyhow
    #[arg(long)]
    pub latency: bool,
    /// The command wants it.
    #[arg(skip)]
    pub ends: bool,
}

/// `--tc-attach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TcAttach {
    /// TCX where the kernel has it, else clsact
    Auto,
    /// TCX links only
    Tcx,
    /// A clsact qdisc only
    Clsact,
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

/// A time that is longer than nothing and that an agent accepts.
fn duration(text: &str) -> Result<Duration, String> {
    // The longest that an agent accepts.
    const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
    let wrong = "expected a time like 10s, 2m or 1h30m";
    let time = humantime::parse_duration(text).map_err(|error| format!("{wrong}: {error}"))?;
    if time.is_zero() {
        Err(format!("{wrong}, longer than zero"))
    } else if time > LONGEST {
        Err(format!("{wrong}, at most seven days"))
    } else {
        Ok(time)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_positive_and_bounded() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "10", "0s", "-1s", "ten", "8d", "900y", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn global_options_are_taken_before_and_after_the_command() {
        for line in ["orb8 --server a:1 trace network", "orb8 trace network --server a:1"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.global.server.unwrap().to_string(), "a:1");
        }
    }
}
