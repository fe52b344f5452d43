//! An agent in this process, on a node.

use std::{net::SocketAddr, ops::Deref};

use anyhow::{Context as _, Result, ensure};
use orb8_agent::{
    Agent,
    config::{Config, RawConfig},
    k8s::runtime::RuntimeChoice,
};
use orb8_k8s::KubernetesSource;
use orb8_testkit::{KubeApi, Node};

use crate::{Client, Heard, Trace, client::runtime_in};

/// A running agent in a node's network namespace, and a client of it.
pub struct Traced {
    client: Client,
    agent: Option<Agent>,
    _names: tempfile::TempDir,
}

impl Deref for Traced {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Traced {
    /// Starts an agent that knows the node's pods by name, and that `change` may configure.
    pub fn start(node: &Node, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("pods.json");
        node.write_pod_list(&path)?;
        Self::start_naming(node, dir, |config| {
            config.pods = Some(path);
            change(config);
        })
    }

    /// Starts an agent that asks `api`, which is in the node's network namespace, for names.
    pub fn start_with_api(node: &Node, api: &KubeApi) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let kubeconfig = dir.path().join("kubeconfig");
        api.write_kubeconfig(&kubeconfig, None)?;
        Self::start_naming(node, dir, |config| {
            config.kubernetes = Some(KubernetesSource::Kubeconfig(Some(kubeconfig)));
        })
    }

    fn start_naming(
        node: &Node,
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let mut config = RawConfig::default().resolve()?;
        config.node_name = node.name().into();
        config.runtime = RuntimeChoice::Off;
        config.listen = None;
        config.metrics_listen = None;
        config.require_signal = true;
        // Most promises are the network's, and what else runs on this machine makes system calls.
        config.signals = vec!["network"];
        change(&mut config);
        let runtime = runtime_in(node.netns())?;
        // On a worker: the thread that waits here is not in the node's namespace.
        let started = runtime.block_on(runtime.spawn(async move {
            let agent = Agent::start(config).await?;
            let channel = agent.channel().await?;
            anyhow::Ok((agent, channel))
        }));
        let (agent, channel) = started??;
        Ok(Self { client: Client::new(runtime, channel), agent: Some(agent), _names: dir })
    }

    /// A client with a connection of its own.
    pub fn another_client(&self) -> Result<Client> {
        let (runtime, agent) = (self.client.runtime_handle(), self.agent()?);
        let channel = runtime.block_on(agent.channel())?;
        Ok(Client::new(runtime, channel))
    }

    /// Where the agent serves, if it was configured to.
    #[must_use]
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.agent.as_ref().and_then(Agent::grpc_addr)
    }

    /// Where the agent's metrics are, if it was configured to serve them.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.agent.as_ref().and_then(Agent::metrics_addr)
    }

    /// Stops the agent and gives what the trace heard to its end.
    pub fn stop_with(mut self, trace: Trace) -> Result<Heard> {
        self.stop_agent()?;
        trace.end(self.client.runtime())
    }

    /// Stops the agent.
    pub fn stop(mut self) -> Result<()> {
        self.stop_agent()
    }

    fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("stopped")
    }

    fn stop_agent(&mut self) -> Result<()> {
        let agent = self.agent.take().context("stopped twice")?;
        let runtime = self.client.runtime();
        let report = runtime.block_on(runtime.spawn(agent.stop()))?;
        ensure!(report.unfinished.is_empty(), "tasks did not end: {:?}", report.unfinished);
        Ok(())
    }
}
