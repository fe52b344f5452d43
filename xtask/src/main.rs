//! `cargo xtask`: the commands of a developer of orb8, each in a file of its own.
#![expect(clippy::print_stdout, reason = "a developer's commands talk to the terminal")]

mod bench;
mod check;
mod codegen;
mod demo;
mod image;
mod leftovers;
mod step;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of orb8.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Formatting, lints, documentation, shell scripts, licences
    Check,
    /// Every test, then a look for what was left behind in the kernel, in cgroups and on disk
    Test(test::Args),
    /// A node of pods with real traffic, watched by orb8 and compared with the kernel's counters
    Demo,
    /// What the probes cost: nanoseconds over an empty program, program sizes
    Bench(bench::Args),
    /// Kernel tests on Debian's kernels, from 5.10 to the newest, in emulated machines (minutes)
    Vm(vm::Args),
    /// Container images of the agent and the server, from static binaries, without a Docker daemon
    Image(image::Args),
    /// Regenerate what is generated and committed: orb8-proto/src/gen
    Codegen,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check => check::run(),
        Command::Test(args) => test::run(&args),
        Command::Demo => demo::run(),
        Command::Bench(args) => bench::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Codegen => codegen::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
