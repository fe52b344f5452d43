//! The command line of `orb8-testpod`, and which module performs which program.

mod calls;
mod dns;
mod flows;
mod hold;
mod http;
mod neighbour;
mod place;
mod report;
mod run_time;
mod talk;
mod tcp;
mod udp;

use std::os::unix::process::CommandExt;
use std::process;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use orb8_testkit::Program;

use place::Place;

/// Performs one program inside a pod of the orb8 testkit
#[derive(Parser)]
#[command(name = "orb8-testpod", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enter a cgroup and a network namespace, and perform a program there
    Run {
        #[command(flatten)]
        place: Place,
        /// Seconds after which a program that is no server gives up
        #[arg(long, default_value_t = 300)]
        timeout: u64,
        #[command(subcommand)]
        program: Program,
    },
}

pub(crate) fn main() -> Result<()> {
    let Command::Run { place, timeout, program } = Cli::parse().command;
    place.enter()?;
    let run_time = run_time::RunTime { supervised: place.parent.is_some() };
    if run_time.supervised {
        report::entered()?;
    }
    if program.ends() {
        run_time::give_up_after(timeout);
    }
    match program {
        Program::Hold(hold) => hold::hold(&hold, run_time),
        Program::UdpSink(sink) => udp::sink(&sink, run_time),
        Program::UdpSend(send) => udp::send(&send),
        Program::UdpTalk(talk) => talk::talk(&talk),
        Program::UdpEcho(echo) => udp::echo(&echo, run_time),
        Program::TcpSink(sink) => tcp::sink(&sink, run_time),
        Program::TcpSend(send) => tcp::send(&send),
        Program::HttpServer(server) => http::server(&server, run_time),
        Program::HttpClient(client) => http::client(&client),
        Program::DnsServer(server) => dns::server(&server, run_time),
        Program::DnsClient(client) => dns::client(&client),
        Program::Flows(flows) => flows::flows(&flows),
        Program::HoldFlows(flows) => flows::hold_flows(&flows, run_time),
        Program::Calls(made) => calls::calls(&made),
        Program::Spawn(spawn) => calls::spawn(&spawn),
        Program::Endings(endings) => calls::endings(&endings),
        Program::Exec(exec) => {
            let (name, arguments) = exec.command.split_first().context("no command")?;
            let error = process::Command::new(name).args(arguments).exec();
            Err(error).with_context(|| format!("cannot run {name}"))
        }
    }
}
