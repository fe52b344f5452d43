//! The command line, as typed: one file for each command, and what several of them take. What the
//! arguments mean together is decided where they are used.

mod advise;
mod agent;
mod nodes;
mod query;
mod records;
mod trace;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use orb8_transport::{Address, ClientArgs};

pub(crate) use self::{
    advise::{Advise, AdviseSeccompArgs},
    agent::{AgentArgs, SyscallAgentArgs, TcAttach},
    nodes::{NodesArgs, StatusArgs},
    query::{
        AnomalyKind, FlowOrder, HistoryArgs, PodOrder, Query, QueryAnomaliesArgs, QueryFlowsArgs,
        QueryPodsArgs, QuerySyscallsArgs, SyscallOrder, WindowArgs,
    },
    records::{FilterArgs, RecordArgs},
    trace::{Trace, TraceNetworkArgs, TraceSyscallArgs},
};
use crate::{output::Color, target::Mode};

const EXIT_CODES: &str = "\
Exit codes:
  0   complete: every record that was asked for is in the output
  1   failed
  3   partial: a node did not answer to the end, or records were lost
  64  wrong usage

Records go to standard output, everything else to standard error.
RUST_LOG sets what is logged, e.g. RUST_LOG=orb8_agent=debug.

Without --server the kubeconfig ($KUBECONFIG, else ~/.kube/config) is read. Where its
context has svc/orb8-server in namespace orb8-system, that is asked through a port-forward,
and nothing has to be exposed. TLS is spoken where --tls-ca names the CA of orb8's
certificates; the certificate has to be for orb8-server.orb8-system.svc, or for
--tls-server-name. Where no token is given, the server is shown the bearer token of the
kubeconfig's user, if that has one (token, tokenFile or exec).";

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
    /// Whom to ask [default: cluster if a server is named or the kubeconfig's context has one, else
    /// standalone]
    #[arg(long, global = true, value_enum)]
    pub mode: Option<Mode>,
    /// Address of a server, or of a single agent, with http:// or https:// before it or neither:
    /// then TLS is spoken if one of its options is given [env: ORB8_SERVER]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub server: Option<Address>,
    /// Context of the kubeconfig in which to look for svc/orb8-server, namespace orb8-system
    /// [default: the current one]
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "server")]
    pub context: Option<String>,
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
    /// Nodes that a server knows, and how their agents do
    #[command(after_help = nodes::EXAMPLES)]
    Nodes(NodesArgs),
    /// What an agent is, what works, what it lost and what it costs
    ///
    /// Of a server: itself and how many nodes are ready; with --node the agent of that node. In
    /// standalone mode an agent is started, asked and stopped, which shows what would work here.
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
