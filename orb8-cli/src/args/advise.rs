//! `orb8 advise`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};

use super::{SyscallAgentArgs, duration};

const ADVISE_EXAMPLES: &str = "\
Examples:
  orb8 --server node-1:9090 advise seccomp -n prod --pod web -o web.json
  orb8 --server node-1:9090 advise seccomp -n prod --pod web --container app --min-time 1h

A profile is refused when something may be missing: when no container with that name was watched from
its first call on, or not for --min-time, or calls were lost. --force writes it all the same, and says
in it why not to trust it. What only the container's runtime called, before the program was started,
is left out.";

#[derive(Debug, Subcommand)]
pub(crate) enum Advise {
    /// A seccomp profile (OCI JSON) that allows what a container was seen to call
    #[command(after_help = ADVISE_EXAMPLES)]
    Seccomp(AdviseSeccompArgs),
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
    /// With a server: only this node. Else pods of all nodes are put together
    #[arg(long, value_name = "NODE", value_parser = NonEmptyStringValueParser::new())]
    pub node: Option<String>,
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
