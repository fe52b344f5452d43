//! The binary `orb8`: parse, run one command, leave with the exit code that says how it went.

mod answers;
mod args;
mod caps;
mod client;
mod cluster;
mod commands;
mod exit;
mod history;
mod interrupt;
mod node_notes;
mod notes;
mod output;
mod peer;
mod seccomp;
mod standalone;
mod summary;
mod target;

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::{
    args::Cli,
    exit::{Exit, Failure},
    notes::Notes,
    summary::Summary,
};

/// How long tasks of the runtime may take to end after the command is done.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap too; only real ones go to stderr. Nobody is
            // left to tell when the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Complete }.into();
        }
    };
    let notes = Notes::new(cli.global.quiet, cli.global.color.on(std::io::stderr().is_terminal()));
    log_to_stderr(&cli);
    match run(&cli, &notes) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if let Some(message) = failure.message() {
                notes.error(&message);
            }
            if matches!(failure, Failure::NoAnswer(_)) {
                notes.info(&Summary { asked: 1, ..Summary::default() }.to_string());
            }
            failure.exit().into()
        }
    }
}

fn run(cli: &Cli, notes: &Notes) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(commands::run(cli, notes));
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    result
}

/// `RUST_LOG` decides what is logged; without it warnings, or only errors with `--quiet`.
fn log_to_stderr(cli: &Cli) {
    // A change of a signal's state is told as a note already.
    let default = if cli.global.quiet { "error" } else { "warn,orb8_agent::status=off" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(cli.global.color.on(std::io::stderr().is_terminal()))
        .with_target(false)
        .compact()
        .init();
}
