//! From what a user wrote (file, environment, flags) to what the server runs with. Every error is
//! found here, before anything binds, and all of them are told at once.

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use orb8_k8s::{KubernetesSource, watcher};
use serde::Deserialize;

use crate::{agents::Timing, cluster::AGENTS_REMEMBER, discovery::Source};

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
    /// Allow plain text on addresses that are not loopback
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
        let listen = self.address("listen", &self.listen, DEFAULT_GRPC_PORT, &mut problems);
        let metrics_listen = self.address(
            "metrics-listen",
            &self.metrics_listen,
            DEFAULT_METRICS_PORT,
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
        let config = Config {
            listen,
            metrics_listen,
            agents,
            kubernetes,
            knows_cluster,
            watch: watcher::Timing::default(),
            agents_remember: AGENTS_REMEMBER,
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
        fill(&mut self.kubeconfig, file.kubeconfig);
        fill(&mut self.query_timeout, file.query_timeout);
        fill(&mut self.max_rows, file.max_rows);
        fill(&mut self.max_streams, file.max_streams);
        self.insecure |= file.insecure;
    }

    /// How to reach the API, and whether the cluster is to be watched through it.
    fn kubernetes(&self, agents: &Source, problems: &mut Vec<String>) -> (KubernetesSource, bool) {
        if let Some(path) = self.kubeconfig.as_ref().filter(|path| !path.is_file()) {
            problems.push(format!("kubeconfig: no file {}", path.display()));
        }
        let is_pod = KubernetesSource::running_as_pod();
        let by_it = matches!(agents, Source::Kubernetes(_));
        let wanted = match self.kubernetes.as_deref() {
            None | Some("auto") => by_it || is_pod || self.kubeconfig.is_some(),
            Some("on") => true,
            Some("off") => false,
            Some(other) => {
                problems
                    .push(format!("kubernetes: {other:?} is unknown; expected auto, on or off"));
                false
            }
        };
        (KubernetesSource::choose(self.kubeconfig.clone(), is_pod), wanted)
    }

    fn address(
        &self,
        name: &str,
        written: &Option<String>,
        port: u16,
        problems: &mut Vec<String>,
    ) -> SocketAddr {
        let default = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let Some(written) = written else { return default };
        match written.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() || self.insecure => address,
            Ok(address) => {
                problems.push(format!(
                    "{name}: {address} is not a loopback address and would be served in plain \
                     text; listen on 127.0.0.1 or [::1], or say --insecure"
                ));
                address
            }
            Err(_) => {
                problems.push(format!(
                    "{name}: {written:?} is not an address; expected IP:PORT such as {default} or \
                     [::1]:{port}"
                ));
                default
            }
        }
    }
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
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let raw = RawConfig {
            listen: Some("0.0.0.0:8080".into()),
            metrics_listen: Some("nowhere".into()),
            agents: Some("a b".into()),
            query_timeout: Some("1h".into()),
            max_rows: Some("0".into()),
            kubernetes: Some("perhaps".into()),
            kubeconfig: Some("/no/such/file".into()),
            ..RawConfig::default()
        };
        let error = raw.resolve().unwrap_err().to_string();
        for part in [
            "listen: 0.0.0.0:8080 is not a loopback address",
            "metrics-listen: \"nowhere\"",
            "agents: \"a b\"",
            "query-timeout: \"1h\"",
            "max-rows: \"0\"",
            "kubernetes: \"perhaps\" is unknown; expected auto, on or off",
            "kubeconfig: no file /no/such/file",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(error.lines().count(), 7);
        let error = RawConfig::default().resolve().unwrap_err().to_string();
        assert!(error.starts_with("agents: not said where they are"), "{error}");
    }

    #[test]
    fn the_cluster_is_watched_where_its_api_is_asked_for_agents_or_that_is_said() {
        let knows = |agents: &str, kubernetes: Option<&str>| {
            let raw = RawConfig {
                agents: Some(agents.into()),
                kubernetes: kubernetes.map(str::to_owned),
                ..RawConfig::default()
            };
            raw.resolve().unwrap().knows_cluster
        };
        assert!(knows("kubernetes:a/b", None) && knows("kubernetes:a/b", Some("auto")));
        assert!(knows("10.0.0.1", Some("on")));
        assert!(!knows("kubernetes:a/b", Some("off")) && !knows("10.0.0.1", None));
    }
}
