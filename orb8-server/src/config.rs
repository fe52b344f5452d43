//! From what a user wrote (file, environment, flags) to what the server runs with. Every error is
//! found here, before anything binds, and all of them are told at once.

mod kubernetes;
mod security;

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use orb8_k8s::{KubernetesSource, watcher};
use orb8_transport::{ClientFiles, ServerFiles, listen_address};
use serde::Deserialize;

use crate::{
    access::{self, Authority},
    agents::Timing,
    cluster::AGENTS_REMEMBER,
    discovery::Source,
};

/// gRPC port of the server.
pub const DEFAULT_GRPC_PORT: u16 = 8080;
/// Prometheus port of the server.
pub const DEFAULT_METRICS_PORT: u16 = 8081;
/// Most rows of one answer.
pub const DEFAULT_MAX_ROWS: u32 = 100_000;
/// Most streams at a time.
pub const DEFAULT_MAX_STREAMS: u32 = 64;

/// What was written, in the configuration file (same names, `snake_case`), in the environment or as
/// flags. A flag beats the environment, which beats the file.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// Configuration file (YAML)
    #[arg(long = "config", env = "ORB8_SERVER_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// Address of the gRPC service [default: 127.0.0.1:8080]
    #[arg(long, env = "ORB8_SERVER_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Address of /metrics, /healthz and /readyz [default: 127.0.0.1:8081]
    #[arg(long, env = "ORB8_SERVER_METRICS_LISTEN", value_name = "ADDR:PORT")]
    pub metrics_listen: Option<String>,
    /// Where the agents are: HOST:PORT,HOST:PORT,…, dns:NAME, or kubernetes:NAMESPACE/SERVICE, both
    /// with :PORT where that is not the agents' usual one
    #[arg(long, env = "ORB8_AGENTS", value_name = "WHERE")]
    pub agents: Option<String>,
    /// Nodes, places of pods and names of peers from the Kubernetes API: auto (where the agents are
    /// found by it, this is a pod, or --kubeconfig is given), on or off [default: auto]
    #[arg(long, env = "ORB8_SERVER_KUBERNETES", value_name = "WHETHER")]
    pub kubernetes: Option<String>,
    /// How to reach the Kubernetes API [default: as the pod that this is, else KUBECONFIG, else
    /// ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Who decides what a client may see: none, certificates or kubernetes [default: certificates
    /// with --tls-client-ca; else none, on loopback and with --insecure only]
    #[arg(long, env = "ORB8_SERVER_AUTH", value_name = "WHO")]
    pub auth: Option<String>,
    /// Serve gRPC by TLS, with this certificate and its chain (PEM; read again when it changes)
    #[arg(long, env = "ORB8_SERVER_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, env = "ORB8_SERVER_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// CA certificates of clients (PEM); with --auth kubernetes a client may show a token instead
    #[arg(long, env = "ORB8_SERVER_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Ask agents by TLS, and trust these CA certificates (PEM) [default: those of the system]
    #[arg(long, env = "ORB8_AGENT_TLS_CA", value_name = "FILE")]
    pub agent_tls_ca: Option<PathBuf>,
    /// Certificate to show to agents (PEM; read again when it changes)
    #[arg(long, env = "ORB8_AGENT_TLS_CERT", value_name = "FILE")]
    pub agent_tls_cert: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, env = "ORB8_AGENT_TLS_KEY", value_name = "FILE")]
    pub agent_tls_key: Option<PathBuf>,
    /// Name that the agents' certificates are for [default: orb8-agent.orb8-system.svc]
    #[arg(long, env = "ORB8_AGENT_TLS_SERVER_NAME", value_name = "NAME")]
    pub agent_tls_server_name: Option<String>,
    /// Allow plain-text gRPC, and questions by nobody in particular, on addresses that are not loopback
    #[arg(long, env = "ORB8_INSECURE")]
    pub insecure: bool,
    /// How long agents have to answer a query [default: 2s]
    #[arg(long, env = "ORB8_QUERY_TIMEOUT", value_name = "TIME")]
    pub query_timeout: Option<String>,
    /// Most rows of one answer [default: 100000]
    #[arg(long, env = "ORB8_MAX_ROWS", value_name = "ROWS")]
    pub max_rows: Option<String>,
    /// Most streams at a time [default: 64]
    #[arg(long, env = "ORB8_MAX_STREAMS", value_name = "STREAMS")]
    pub max_streams: Option<String>,
}

/// What the server runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where metrics and health are served.
    pub metrics_listen: SocketAddr,
    /// Where the agents are.
    pub agents: Source,
    /// How to reach the Kubernetes API.
    pub kubernetes: KubernetesSource,
    /// Whether the cluster is watched, for its nodes, the places of pods and the names of peers.
    pub knows_cluster: bool,
    /// How patient its watches are.
    pub watch: watcher::Timing,
    /// For how long agents may have rows of a pod that is gone.
    pub agents_remember: Duration,
    /// What gRPC is served with; `None`: plain text.
    pub tls: Option<ServerFiles>,
    /// What agents are asked with; `None`: plain text.
    pub agent_tls: Option<ClientFiles>,
    /// Who decides what a client may see.
    pub authority: Authority,
    /// For how long that counts.
    pub access: access::Timing,
    /// How long agents have to answer.
    pub query_timeout: Duration,
    /// Most rows of one answer.
    pub max_rows: u32,
    /// Most streams at a time.
    pub max_streams: u32,
    /// How agents are asked how they are.
    pub timing: Timing,
    /// How long [`crate::Server::stop`] waits for answers to leave.
    pub shutdown_deadline: Duration,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl RawConfig {
    /// Reads the file, if one is named, and works out what everything means.
    pub fn resolve(mut self) -> Result<Config, ConfigError> {
        let mut problems = Vec::new();
        if let Some(path) = self.file.take() {
            match read_file(&path) {
                Ok(file) => self.under(file),
                Err(problem) => problems.push(problem),
            }
        }
        let tls = self.server_tls(&mut problems);
        let encrypted = tls.is_some() || self.insecure;
        let listen =
            address("listen", self.listen.as_deref(), DEFAULT_GRPC_PORT, encrypted, &mut problems);
        // Names of namespaces and workloads at the most, and nobody is asked who it is.
        let metrics_listen = address(
            "metrics-listen",
            self.metrics_listen.as_deref(),
            DEFAULT_METRICS_PORT,
            true,
            &mut problems,
        );
        let agents = match self.agents.as_deref().map(str::parse) {
            Some(Ok(source)) => source,
            Some(Err(error)) => {
                let error: crate::discovery::SourceError = error;
                problems.push(error.to_string());
                Source::List(Default::default())
            }
            None => {
                problems.push(
                    "agents: not said where they are; expected --agents HOST:PORT,…, --agents \
                     dns:NAME or --agents kubernetes:NAMESPACE/SERVICE"
                        .into(),
                );
                Source::List(Default::default())
            }
        };
        let (kubernetes, knows_cluster) = self.kubernetes(&agents, &mut problems);
        let authority = self.authority(listen, tls.is_some(), &mut problems);
        let config = Config {
            listen,
            metrics_listen,
            agent_tls: self.agent_tls(&agents, &mut problems),
            agents,
            kubernetes,
            knows_cluster,
            watch: watcher::Timing::default(),
            agents_remember: AGENTS_REMEMBER,
            tls: tls.map(|files| security::as_asked_by(authority, files)),
            authority,
            access: access::Timing::default(),
            query_timeout: query_timeout(self.query_timeout.as_deref(), &mut problems),
            max_rows: number("max-rows", &self.max_rows, DEFAULT_MAX_ROWS, &mut problems),
            max_streams: number(
                "max-streams",
                &self.max_streams,
                DEFAULT_MAX_STREAMS,
                &mut problems,
            ),
            timing: Timing::default(),
            shutdown_deadline: Duration::from_secs(5),
        };
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }

    /// Fills what is not set from `file`.
    fn under(&mut self, file: Self) {
        fn fill<T>(mine: &mut Option<T>, other: Option<T>) {
            if mine.is_none() {
                *mine = other;
            }
        }
        fill(&mut self.listen, file.listen);
        fill(&mut self.metrics_listen, file.metrics_listen);
        fill(&mut self.agents, file.agents);
        fill(&mut self.kubernetes, file.kubernetes);
        fill(&mut self.auth, file.auth);
        fill(&mut self.kubeconfig, file.kubeconfig);
        fill(&mut self.tls_cert, file.tls_cert);
        fill(&mut self.tls_key, file.tls_key);
        fill(&mut self.tls_client_ca, file.tls_client_ca);
        fill(&mut self.agent_tls_ca, file.agent_tls_ca);
        fill(&mut self.agent_tls_cert, file.agent_tls_cert);
        fill(&mut self.agent_tls_key, file.agent_tls_key);
        fill(&mut self.agent_tls_server_name, file.agent_tls_server_name);
        fill(&mut self.query_timeout, file.query_timeout);
        fill(&mut self.max_rows, file.max_rows);
        fill(&mut self.max_streams, file.max_streams);
        self.insecure |= file.insecure;
    }
}

/// An address, and whether it may be one that others reach.
fn address(
    name: &'static str,
    written: Option<&str>,
    port: u16,
    open: bool,
    problems: &mut Vec<String>,
) -> SocketAddr {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    listen_address(name, written, default, open).unwrap_or_else(|error| {
        problems.push(error.to_string());
        default
    })
}

fn read_file(path: &Path) -> Result<RawConfig, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("config {}: {e}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(RawConfig::default());
    }
    serde_saphyr::from_str(&text).map_err(|e| format!("config {}: {e}", path.display()))
}

fn query_timeout(written: Option<&str>, problems: &mut Vec<String>) -> Duration {
    const DEFAULT: Duration = Duration::from_secs(2);
    let Some(written) = written else { return DEFAULT };
    let range = Duration::from_millis(50)..=Duration::from_secs(60);
    match humantime::parse_duration(written) {
        Ok(time) if range.contains(&time) => time,
        _ => {
            problems.push(format!(
                "query-timeout: {written:?} is not a time that an answer may take; expected 50ms \
                 to 60s"
            ));
            DEFAULT
        }
    }
}

fn number(name: &str, written: &Option<String>, default: u32, problems: &mut Vec<String>) -> u32 {
    const MOST: u32 = 10_000_000;
    match written.as_deref().map(str::parse::<u32>) {
        None => default,
        Some(Ok(n)) if (1..=MOST).contains(&n) => n,
        Some(_) => {
            let written = written.as_deref().unwrap_or_default();
            problems.push(format!("{name}: {written:?} is no number from 1 to {MOST}"));
            default
        }
    }
}

#[cfg(test)]
mod tests;
