//! `orb8-agent`: arguments → configuration → agent → wait → drain.

use std::process::ExitCode;

use clap::Parser;
use orb8_agent::{Agent, config::RawConfig};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// musl's own has one lock for all threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// orb8's node agent: traces this node and serves what it sees
#[derive(Parser)]
#[command(name = "orb8-agent", version)]
struct Args {
    #[command(flatten)]
    config: RawConfig,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let config = args.config.resolve()?;
    // Before anything is attached: a signal that comes now must not find it unguarded.
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let agent = Agent::start(config).await?;
    tracing::info!(grpc = ?agent.grpc_addr(), metrics = ?agent.metrics_addr(), "serving");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let report = agent.stop().await;
    for task in &report.unfinished {
        tracing::warn!(task, "did not end in time");
    }
    for loss in &report.losses {
        tracing::warn!(?loss, "lost");
    }
    tracing::info!("stopped");
    Ok(())
}
