//! How the agent of standalone mode is set up.

use std::path::PathBuf;

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};

/// How the agent of standalone mode is set up.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Standalone mode")]
pub(crate) struct AgentArgs {
    /// Interface to attach to, may be repeated and end with * [default: every veth]. With a server:
    /// the one interface whose records to show
    #[arg(long, value_name = "IF", value_parser = NonEmptyStringValueParser::new())]
    pub interface: Vec<String>,
    #[command(flatten)]
    pub names: NameArgs,
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
    #[command(flatten)]
    pub names: NameArgs,
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

/// Where it has the names of pods from.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Standalone mode")]
pub(crate) struct NameArgs {
    /// Pods by name, as `kubectl get pods -A -o json` prints them
    #[arg(long, value_name = "FILE")]
    pub pods: Option<PathBuf>,
    /// Container runtime that names pods: auto, off, or its socket [default: auto] [env:
    /// ORB8_RUNTIME]
    #[arg(long, value_name = "SOCKET")]
    pub runtime: Option<String>,
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
