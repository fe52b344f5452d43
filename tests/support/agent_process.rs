//! The real `orb8-agent` binary, as a process on a node.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use orb8_agent::config::{DEFAULT_GRPC_PORT, DEFAULT_METRICS_PORT};
use orb8_testkit::{KubeApi, Node, Process, Program, program::Exec};
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Endpoint;

use crate::{Client, client::runtime_in};

const NAME: &str = "orb8-agent";
/// Loading and attaching takes well below a second on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running agent process, at its usual ports, and a client of it. Dropping it kills it.
pub struct AgentProcess {
    process: Process,
    client: Client,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Deref for AgentProcess {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl AgentProcess {
    /// Starts an agent that knows the node's pods by name, with more `arguments`.
    pub fn start(node: &Node, arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let pods = dir.path().join("pods.json");
        node.write_pod_list(&pods)?;
        Self::start_naming(node, dir, ("--pods", &pods), arguments)
    }

    /// Starts an agent that asks `api`, which is in the node's network namespace, for names.
    pub fn start_with_api(node: &Node, api: &KubeApi, arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let kubeconfig = dir.path().join("kubeconfig");
        api.write_kubeconfig(&kubeconfig, None)?;
        Self::start_naming(node, dir, ("--kubeconfig", &kubeconfig), arguments)
    }

    fn start_naming(
        node: &Node,
        dir: tempfile::TempDir,
        (flag, names): (&str, &Path),
        arguments: &[&str],
    ) -> Result<Self> {
        let log = dir.path().join("log");
        let script = format!("exec \"$0\" \"$@\" 2>{}", log.display());
        let mut command = ["sh", "-c", &script].map(String::from).to_vec();
        command.push(binary(NAME)?.display().to_string());
        command.extend(["--node-name".into(), node.name().into()]);
        command.extend([flag.into(), names.display().to_string()]);
        command.extend(arguments.iter().map(ToString::to_string));
        let process = node.spawn("orb8", &Program::Exec(Exec { command }))?;

        let runtime = runtime_in(node.netns())?;
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{DEFAULT_GRPC_PORT}"))?;
        let deadline = Instant::now() + START_LIMIT;
        let channel = loop {
            let endpoint = endpoint.clone();
            // On a worker: the thread that waits here is not in the node's namespace.
            let connecting = runtime.spawn(async move { endpoint.connect().await });
            match runtime.block_on(connecting)? {
                Ok(channel) => break channel,
                Err(error) if Instant::now() > deadline => {
                    let said = fs::read_to_string(&log).unwrap_or_default();
                    bail!("{NAME} does not serve: {error}; it said:\n{said}");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        Ok(Self { process, client: Client::new(runtime, channel), log, _dir: dir })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where the agent serves.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, DEFAULT_GRPC_PORT).into()
    }

    /// Where the agent's metrics are.
    #[must_use]
    pub fn metrics_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, DEFAULT_METRICS_PORT).into()
    }

    /// What it logged so far.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())
    }

    /// `kill -9`; it is gone when this returns.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// SIGTERM; it has ended without an error when this returns. Gives its log.
    pub fn terminate(mut self) -> Result<String> {
        let pid = i32::try_from(self.process.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process id")?, Signal::TERM)?;
        self.process.wait_for(Duration::from_secs(15))?;
        self.log()
    }
}

/// The program `name`: in `$ORB8_BIN_DIR` when that is set, else beside the running executable or one
/// directory above.
pub fn binary(name: &str) -> Result<PathBuf> {
    let places = match std::env::var_os("ORB8_BIN_DIR") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => {
            let exe = std::env::current_exe().context("cannot tell the running executable")?;
            exe.ancestors().skip(1).take(2).map(PathBuf::from).collect()
        }
    };
    let found = places.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} in {places:?}: build it with `cargo build --bins`"))
}
