//! The commands, one file each.

mod advise;
mod completions;
mod history;
mod nodes;
mod query;
mod question;
mod status;
mod trace;

use std::io::IsTerminal;

use crate::{
    args::{Advise, Cli, Command, FilterArgs, Query, RecordArgs, Trace},
    exit::{Exit, Failure},
    notes::Notes,
    output::Look,
    target::{Need, Target},
};

/// Runs the one that was asked for.
pub(crate) async fn run(cli: &Cli, notes: &Notes) -> Result<Exit, Failure> {
    match &cli.command {
        Command::Trace(Trace::Network(args)) => trace::network(cli, args, notes).await,
        Command::Trace(Trace::Syscall(args)) => trace::syscall(cli, args, notes).await,
        Command::Query(Query::Flows(args)) => query::flows(cli, args, notes).await,
        Command::Query(Query::Pods(args)) => query::pods(cli, args, notes).await,
        Command::Query(Query::Syscalls(args)) => query::syscalls(cli, args, notes).await,
        Command::Query(Query::Anomalies(args)) => query::anomalies(cli, args, notes).await,
        Command::Advise(Advise::Seccomp(args)) => advise::seccomp(cli, args, notes).await,
        Command::Nodes(args) => nodes::run(cli, args, notes).await,
        Command::Status(args) => status::run(cli, args, notes).await,
        Command::Completions { shell } => completions::script(*shell),
        Command::Man { dir } => completions::manual(dir.as_deref()),
    }
}

/// How records are to look.
fn look(cli: &Cli, records: &RecordArgs) -> Look {
    Look {
        format: records.output,
        headers: !records.no_headers,
        color: cli.global.color.on(std::io::stdout().is_terminal()),
    }
}

/// The interface by which an agent is to filter. One of our own filters by what it attaches to.
fn interface_filter(target: &Target, interfaces: &[String]) -> Result<String, Failure> {
    match (target, interfaces) {
        (Target::Standalone { .. }, _) | (_, []) => Ok(String::new()),
        (_, [name]) if !name.ends_with('*') => Ok(name.clone()),
        _ => Err(Failure::Usage(String::from(
            "with a server, --interface takes one whole name: the agent chose what to attach to",
        ))),
    }
}

/// Refuses a filter that an agent cannot apply to this question.
fn no_interface_filter(
    target: &Target,
    interfaces: &[String],
    command: &str,
) -> Result<(), Failure> {
    if target.is_remote() && !interfaces.is_empty() {
        return Err(Failure::Usage(format!(
            "with a server, {command} has no --interface: it covers all that the agent attached to"
        )));
    }
    Ok(())
}

/// `--node`, where it is given.
fn node_need(node: Option<&String>) -> Option<Need> {
    let does = "chooses one of the nodes that a server knows; standalone mode is about this one";
    node.map(|_| Need { option: "--node", does })
}

/// The filters as a part of a sentence, empty without any.
fn filter_text(filter: &FilterArgs, interface: &str) -> String {
    let parts: Vec<_> = [
        ("namespace", filter.namespace.as_deref().unwrap_or_default()),
        ("pod", filter.pod.as_deref().unwrap_or_default()),
        ("node", filter.node.as_deref().unwrap_or_default()),
        ("interface", interface),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| format!("{name} {value}"))
    .collect();
    if parts.is_empty() { String::new() } else { format!(" for {}", parts.join(", ")) }
}
