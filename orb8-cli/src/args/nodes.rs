//! `orb8 nodes` and `orb8 status`.

use clap::{Args, builder::NonEmptyStringValueParser};

use super::{AgentArgs, RecordArgs};
use crate::output::Format;

pub(super) const EXAMPLES: &str = "\
Examples:
  orb8 nodes
  orb8 nodes worker- -o json | jq '.[] | select(.state != \"ready\") | .name'

Takes a server. A single agent answers for itself. Exits with 3 when a node is not ready.";

#[derive(Debug, Args)]
pub(crate) struct NodesArgs {
    /// Only nodes whose name starts like this
    #[arg(value_name = "PREFIX", value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
    #[command(flatten)]
    pub records: RecordArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// With a server: the agent of this node [default: the server itself]
    #[arg(long, value_name = "NODE", value_parser = NonEmptyStringValueParser::new())]
    pub node: Option<String>,
    /// How to write it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    #[command(flatten)]
    pub agent: AgentArgs,
}
