//! `orb8-server`: arguments → configuration → server → wait → drain.

use std::process::ExitCode;

use clap::Parser;
use orb8_server::{Server, config::RawConfig};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// orb8's server: answers for every node of a cluster
#[derive(Parser)]
#[command(name = "orb8-server", version)]
struct Args {
    #[command(flatten)]
    config: RawConfig,
}

#[tokio::main]
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
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let server = Server::start(config).await?;
    tracing::info!(grpc = %server.grpc_addr(), metrics = %server.metrics_addr(), "serving");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    for task in server.stop().await.unfinished {
        tracing::warn!(task, "did not end in time");
    }
    tracing::info!("stopped");
    Ok(())
}
