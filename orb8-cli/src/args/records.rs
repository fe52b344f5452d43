//! Which records, and how they are written.

use clap::{Args, builder::NonEmptyStringValueParser};

use crate::output::Format;

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
    /// With a server: only this node
    #[arg(long, value_name = "NODE", value_parser = NonEmptyStringValueParser::new())]
    pub node: Option<String>,
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
