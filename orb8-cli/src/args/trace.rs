//! `orb8 trace`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{AgentArgs, FilterArgs, RecordArgs, SyscallAgentArgs, duration};

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

#[derive(Debug, Subcommand)]
pub(crate) enum Trace {
    /// Network flows
    #[command(after_help = TRACE_EXAMPLES)]
    Network(TraceNetworkArgs),
    /// System calls
    #[command(after_help = TRACE_SYSCALL_EXAMPLES)]
    Syscall(TraceSyscallArgs),
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
