//! Standalone mode: the same agent in this process, behind the same gRPC client.

use std::{env, fs};

use anyhow::Context;
use orb8_agent::{
    Agent,
    config::{self, RawConfig},
};
use tonic::transport::Channel;

use crate::{
    args::{AgentArgs, TcAttach},
    caps,
    exit::Failure,
    notes::Notes,
};

/// What the agent is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To see traffic: an agent that sees none is an error.
    Watch,
    /// To find out what works here: an agent that sees none says why.
    Preflight,
}

/// An agent that lives as long as the command.
pub(crate) struct LocalAgent(Agent);

impl LocalAgent {
    /// Checks what can be checked, then loads and attaches. The channel leads to the agent's
    /// service; no port is opened.
    ///
    /// # Errors
    /// A usage error for settings that make no sense, before anything is loaded; else what is
    /// missing, or what the agent says.
    pub(crate) async fn start(
        args: &AgentArgs,
        purpose: Purpose,
        notes: &Notes,
    ) -> Result<(LocalAgent, Channel), Failure> {
        let mut config = config(args)?;
        config.require_signal = purpose == Purpose::Watch;
        let status = fs::read_to_string("/proc/self/status")
            .context("cannot read /proc/self/status: standalone mode runs on Linux with /proc")?;
        for warning in caps::check(&status).map_err(anyhow::Error::new)? {
            notes.warning(&warning);
        }
        let agent = Agent::start(config).await.context("cannot start the agent")?;
        let channel = agent.channel().await.context("cannot talk to the agent in this process")?;
        Ok((LocalAgent(agent), channel))
    }

    /// Ends the agent: open streams get their last records, everything is detached.
    pub(crate) async fn stop(self) {
        self.0.stop().await;
    }
}

/// The agent's own rules decide what the settings mean.
fn config(args: &AgentArgs) -> Result<config::Config, Failure> {
    let from_environment = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let raw = RawConfig {
        interfaces: args.interface.clone(),
        ring_buffer_size: args
            .ring_buffer_size
            .clone()
            .or_else(|| from_environment("ORB8_RING_BUFFER_SIZE")),
        flow_table_size: args
            .flow_table_size
            .clone()
            .or_else(|| from_environment("ORB8_FLOW_TABLE_SIZE")),
        pods: args.pods.clone(),
        runtime: args.runtime.clone().or_else(|| from_environment("ORB8_RUNTIME")),
        ..RawConfig::default()
    };
    let mut config = raw.resolve().map_err(|error| Failure::Usage(error.to_string()))?;
    config.tc_attach = match args.tc_attach {
        None | Some(TcAttach::Auto) => config::TcAttach::Auto,
        Some(TcAttach::Tcx) => config::TcAttach::Tcx,
        Some(TcAttach::Clsact) => config::TcAttach::Clsact,
    };
    config.listen = None;
    config.metrics_listen = None;
    Ok(config)
}
