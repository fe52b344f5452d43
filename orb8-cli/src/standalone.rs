//! Standalone mode: the same agent in this process, behind the same gRPC client.

use std::{env, fs};

use anyhow::Context;
use orb8_agent::{
    Agent,
    config::{self, Config, RawConfig},
};
use tonic::transport::Channel;

use crate::{
    args::{AgentArgs, SyscallAgentArgs, TcAttach},
    caps,
    exit::Failure,
    notes::Notes,
};

/// What the agent is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To see what one signal tells: an agent that cannot is an error.
    Watch,
    /// To find out what works here: of every signal that does not, an agent says why.
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
        setup: &dyn Setup,
        purpose: Purpose,
        notes: &Notes,
    ) -> Result<(LocalAgent, Channel), Failure> {
        let mut config = setup.config()?;
        if purpose == Purpose::Watch {
            config.require_signal = true;
            config.signals = vec![setup.signal()];
        }
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

/// How the agent of a command is set up.
pub(crate) trait Setup {
    /// The first of the options given that means nothing to an agent that runs already.
    fn standalone_only(&self) -> Option<&'static str>;
    /// What the options mean. The agent's own rules decide.
    ///
    /// # Errors
    /// When they make no sense.
    fn config(&self) -> Result<Config, Failure>;
    /// The signal that the command is about.
    fn signal(&self) -> &'static str;
}

impl Setup for AgentArgs {
    fn standalone_only(&self) -> Option<&'static str> {
        given([
            ("--pods", self.names.pods.is_some()),
            ("--runtime", self.names.runtime.is_some()),
            ("--ring-buffer-size", self.ring_buffer_size.is_some()),
            ("--flow-table-size", self.flow_table_size.is_some()),
            ("--tc-attach", self.tc_attach.is_some()),
        ])
    }

    fn config(&self) -> Result<Config, Failure> {
        let mut config = resolve(RawConfig {
            interfaces: self.interface.clone(),
            ring_buffer_size: or_environment(&self.ring_buffer_size, "ORB8_RING_BUFFER_SIZE"),
            flow_table_size: or_environment(&self.flow_table_size, "ORB8_FLOW_TABLE_SIZE"),
            pods: self.names.pods.clone(),
            runtime: or_environment(&self.names.runtime, "ORB8_RUNTIME"),
            ..RawConfig::default()
        })?;
        config.tc_attach = match self.tc_attach {
            None | Some(TcAttach::Auto) => config::TcAttach::Auto,
            Some(TcAttach::Tcx) => config::TcAttach::Tcx,
            Some(TcAttach::Clsact) => config::TcAttach::Clsact,
        };
        Ok(config)
    }

    fn signal(&self) -> &'static str {
        "network"
    }
}

impl Setup for SyscallAgentArgs {
    fn standalone_only(&self) -> Option<&'static str> {
        given([
            ("--pods", self.names.pods.is_some()),
            ("--runtime", self.names.runtime.is_some()),
            ("--ring-buffer-size", self.ring_buffer_size.is_some()),
            ("--sample", self.sample.is_some()),
            ("--latency", self.latency),
        ])
    }

    fn config(&self) -> Result<Config, Failure> {
        let ring = or_environment(&self.ring_buffer_size, "ORB8_SYSCALL_RING_BUFFER_SIZE");
        resolve(RawConfig {
            syscall_ring_buffer_size: ring,
            syscall_sample: or_environment(&self.sample, "ORB8_SYSCALL_SAMPLE"),
            tracepoints: or_environment(&None, "ORB8_TRACEPOINTS"),
            latency: self.latency || self.ends,
            learn: or_environment(&None, "ORB8_LEARN"),
            anomaly_window: or_environment(&None, "ORB8_ANOMALY_WINDOW"),
            anomaly_quiet: or_environment(&None, "ORB8_ANOMALY_QUIET"),
            state_dir: or_environment(&None, "ORB8_STATE_DIR").map(Into::into),
            pods: self.names.pods.clone(),
            runtime: or_environment(&self.names.runtime, "ORB8_RUNTIME"),
            ..RawConfig::default()
        })
    }

    fn signal(&self) -> &'static str {
        "syscall"
    }
}

fn given<const N: usize>(options: [(&'static str, bool); N]) -> Option<&'static str> {
    options.into_iter().find_map(|(name, given)| given.then_some(name))
}

fn or_environment(given: &Option<String>, name: &str) -> Option<String> {
    given.clone().or_else(|| env::var(name).ok().filter(|value| !value.is_empty()))
}

/// No port is opened.
fn resolve(raw: RawConfig) -> Result<Config, Failure> {
    let mut config = raw.resolve().map_err(|error| Failure::Usage(error.to_string()))?;
    config.listen = None;
    config.metrics_listen = None;
    Ok(config)
}
