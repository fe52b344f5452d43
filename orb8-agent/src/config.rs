//! From what a user wrote (file, environment, flags) to what the agent runs with.
//!
//! [`RawConfig`] is what was written, [`Config`] what it means. Every error is found here, before
//! anything binds, loads or attaches, and all of them are told at once.

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use orb8_transport::ServerFiles;
use serde::Deserialize;

use crate::{
    k8s::{KubernetesSource, runtime::RuntimeChoice},
    signals::{self, syscall},
};

/// gRPC port of the agent.
pub const DEFAULT_GRPC_PORT: u16 = 9090;
/// Prometheus port of the agent.
pub const DEFAULT_METRICS_PORT: u16 = 9091;
/// `FLOW_EVENTS`: about 8,700 events. Too small costs trace lines under a storm of new flows, which
/// are counted; it never costs a total.
pub const DEFAULT_RING_BUFFER_SIZE: u32 = 1 << 20;
/// `SYSCALL_EVENTS`: some 2,500 events. Too small costs trace lines under a storm of calls, which are
/// counted; it never costs a count.
pub const DEFAULT_SYSCALL_RING_BUFFER_SIZE: u32 = 512 << 10;
/// Of frequent calls one in so many is told.
pub const DEFAULT_SYSCALL_SAMPLE: u32 = 100;
/// How long a workload is learnt: jobs within it come by a few times, and nobody waits for a day.
pub const DEFAULT_LEARN: Duration = Duration::from_secs(30 * 60);
/// Windows of rates: shorter ones are noisier.
pub const DEFAULT_ANOMALY_WINDOW: Duration = Duration::from_secs(10);
/// After this long without a sight an anomaly is over.
pub const DEFAULT_ANOMALY_QUIET: Duration = Duration::from_secs(5 * 60);
/// Largest ring that is accepted.
pub const MAX_RING_BUFFER_SIZE: u32 = 32 << 20;
/// Entries per address family. Too small costs flow detail, which is counted; never a total.
pub const DEFAULT_FLOW_TABLE_SIZE: u32 = 65_536;
/// Largest flow table that is accepted: about 150 bytes of kernel memory per entry.
pub const MAX_FLOW_TABLE_SIZE: u32 = 1 << 22;
/// How far back queries reach.
pub const WINDOW: Duration = Duration::from_secs(300);

/// What was written, in the configuration file (same names, `snake_case`), in the environment or
/// as flags. A flag beats the environment, which beats the file.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// Configuration file (YAML)
    #[arg(long = "config", env = "ORB8_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// Name of this node [default: the host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of the gRPC service [default: 127.0.0.1:9090]
    #[arg(long, env = "ORB8_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Address of /metrics, /healthz and /readyz [default: 127.0.0.1:9091]
    #[arg(long, env = "ORB8_METRICS_LISTEN", value_name = "ADDR:PORT")]
    pub metrics_listen: Option<String>,
    /// Certificate to serve gRPC over TLS with, and its chain (PEM); read again when it changes
    #[arg(long, env = "ORB8_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, env = "ORB8_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// CA certificates that those of clients have to come from (PEM): without one of theirs, nobody
    /// is let in
    #[arg(long, env = "ORB8_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Allow plain text on addresses that are not loopback
    #[arg(long, env = "ORB8_INSECURE")]
    pub insecure: bool,
    /// What to trace, of network and syscall [default: both]
    #[arg(long, env = "ORB8_SIGNALS", value_name = "A,B", value_delimiter = ',')]
    pub signals: Vec<String>,
    /// Trace this interface, and only those named; a trailing * matches any rest
    #[arg(long = "interface", value_name = "IF")]
    pub interfaces: Vec<String>,
    /// How to attach to interfaces: auto, tcx or clsact [default: auto]
    #[arg(long, env = "ORB8_TC_ATTACH", value_name = "HOW")]
    pub tc_attach: Option<String>,
    /// Bytes of the event ring: a power of two, at most 32 MiB [default: 1 MiB]
    #[arg(long, env = "ORB8_RING_BUFFER_SIZE", value_name = "BYTES")]
    pub ring_buffer_size: Option<String>,
    /// Flows that the kernel tracks per address family [default: 65536]
    #[arg(long, env = "ORB8_FLOW_TABLE_SIZE", value_name = "ENTRIES")]
    pub flow_table_size: Option<String>,
    /// Bytes of the event ring of system calls: a power of two, at most 32 MiB [default: 512 KiB]
    #[arg(long, env = "ORB8_SYSCALL_RING_BUFFER_SIZE", value_name = "BYTES")]
    pub syscall_ring_buffer_size: Option<String>,
    /// Of frequent system calls (read, write and their kin) tell one in N; each is counted. 0: none
    /// [default: 100]
    #[arg(long, env = "ORB8_SYSCALL_SAMPLE", value_name = "N")]
    pub syscall_sample: Option<String>,
    /// Watch how system calls end as well: errors and latencies, for another 300 ns or so per call
    #[arg(long, env = "ORB8_LATENCY")]
    pub latency: bool,
    /// System calls that are told even if nobody listens, by name, instead of those that are known
    /// to be sensitive (ptrace, bpf, mount, init_module, …)
    #[arg(long, env = "ORB8_SENSITIVE", value_name = "A,B", value_delimiter = ',')]
    pub sensitive: Vec<String>,
    /// How long the usual system calls of a workload are learnt, before what departs from them is
    /// reported [default: 30m]
    #[arg(long, env = "ORB8_LEARN", value_name = "TIME")]
    pub learn: Option<String>,
    /// Rates of system calls are compared by windows of this length [default: 10s]
    #[arg(long, env = "ORB8_ANOMALY_WINDOW", value_name = "TIME")]
    pub anomaly_window: Option<String>,
    /// An anomaly is over when nothing was seen of it for this long [default: 5m]
    #[arg(long, env = "ORB8_ANOMALY_QUIET", value_name = "TIME")]
    pub anomaly_quiet: Option<String>,
    /// Directory in which what was learnt is kept, so that a restart need not learn it again
    /// [default: none]
    #[arg(long, env = "ORB8_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Metrics of system calls by class (file, network, process, …) or by name, which is some ten
    /// times as many series [default: classes]
    #[arg(long, env = "ORB8_SYSCALL_METRICS", value_name = "BY")]
    pub syscall_metrics: Option<String>,
    /// Names of pods from a file, as `kubectl get pods -A -o json` prints it
    #[arg(long, env = "ORB8_PODS", value_name = "FILE")]
    pub pods: Option<PathBuf>,
    /// Names of pods from the Kubernetes API: auto (where this is a pod, and without --pods), on
    /// or off [default: auto]
    #[arg(long, env = "ORB8_KUBERNETES", value_name = "WHETHER")]
    pub kubernetes: Option<String>,
    /// How to reach the Kubernetes API [default: as the pod that this is, else KUBECONFIG, else
    /// ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Peers to know by name: node (this node and its pods) or cluster (all pods, Services, nodes
    /// and endpoints). Each agent with cluster watches all of them: that loads the API server, costs
    /// about 1 KB of memory for each, and takes the right to list and watch them [default: node]
    #[arg(long, env = "ORB8_PEERS", value_name = "WHOSE")]
    pub peers: Option<String>,
    /// Names from the container runtime, beside those of Kubernetes: auto (whichever is found,
    /// without --pods), off, or the path of its socket [default: auto]
    #[arg(long, env = "ORB8_RUNTIME", value_name = "SOCKET")]
    pub runtime: Option<String>,
}

/// How classifiers are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcAttach {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX links (Linux 6.6 and later) or nothing.
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

/// Which peers are known by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerScope {
    /// What the agent knows anyhow: this node and its pods.
    #[default]
    Node,
    /// The whole cluster, by watches of its own.
    Cluster,
}

/// How system calls are told apart in metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyscallMetrics {
    /// By class.
    #[default]
    Classes,
    /// By class and name.
    Names,
}

/// What the agent runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node in every record.
    pub node_name: String,
    /// Where gRPC is served; `None`: only over [`crate::Agent::channel`].
    pub listen: Option<SocketAddr>,
    /// What gRPC is served over TLS with; `None`: in plain text.
    pub tls: Option<ServerFiles>,
    /// Where metrics and health are served; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Which of [`signals::NAMES`] run.
    pub signals: Vec<&'static str>,
    /// Interface patterns; empty: every pod's veth, or the default route's interface where there
    /// is none.
    pub interfaces: Vec<String>,
    /// How classifiers are attached.
    pub tc_attach: TcAttach,
    /// Bytes of `FLOW_EVENTS`.
    pub ring_buffer_size: u32,
    /// Entries of `FLOWS_V4` and of `FLOWS_V6`.
    pub flow_table_size: u32,
    /// Bytes of `SYSCALL_EVENTS`.
    pub syscall_ring_buffer_size: u32,
    /// Of frequent system calls one in so many is told; 0: none.
    pub syscall_sample: u32,
    /// Watch how system calls end as well.
    pub syscall_latency: bool,
    /// System calls that are told even if nobody listens, by name.
    pub sensitive: Vec<&'static str>,
    /// How long a workload's system calls are learnt.
    pub learn: Duration,
    /// Rates of system calls are those of windows of this length.
    pub anomaly_window: Duration,
    /// An anomaly is over when nothing was seen of it for this long.
    pub anomaly_quiet: Duration,
    /// Where what was learnt is kept.
    pub state_dir: Option<PathBuf>,
    /// How system calls are told apart in metrics.
    pub syscall_metrics: SyscallMetrics,
    /// The static pod list.
    pub pods: Option<PathBuf>,
    /// The Kubernetes API that names pods, where there is no static list.
    pub kubernetes: Option<KubernetesSource>,
    /// Which peers are known by name.
    pub peers: PeerScope,
    /// The container runtime that names what the others do not.
    pub runtime: RuntimeChoice,
    /// How often the event ring is drained.
    pub event_interval: Duration,
    /// How often totals are read; the rhythm of trace records.
    pub tick: Duration,
    /// A flow without packets for this long has ended.
    pub flow_idle: Duration,
    /// Fail to start when no signal works, instead of saying so for ever: for a run that somebody
    /// watches.
    pub require_signal: bool,
    /// How long [`crate::Agent::stop`] waits for the last records to leave.
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
        let kubernetes = self.kubernetes_source(running_as_pod(), &mut problems);
        let peers = self.peer_scope(kubernetes.is_some(), &mut problems);
        let tls = self.tls(&mut problems);
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let config = Config {
            node_name: self.node_name.clone().unwrap_or_else(host_name),
            listen: Some(self.address(
                "listen",
                self.listen.as_deref(),
                loopback(DEFAULT_GRPC_PORT),
                Some(tls.is_some()),
                &mut problems,
            )),
            tls,
            metrics_listen: Some(self.address(
                "metrics-listen",
                self.metrics_listen.as_deref(),
                loopback(DEFAULT_METRICS_PORT),
                None,
                &mut problems,
            )),
            signals: signals(&self.signals, &mut problems),
            interfaces: patterns(&self.interfaces, &mut problems),
            tc_attach: or_report(self.tc_attach.as_deref().map(tc_attach), &mut problems)
                .unwrap_or_default(),
            ring_buffer_size: or_report(
                self.ring_buffer_size.as_deref().map(ring_buffer_size),
                &mut problems,
            )
            .unwrap_or(DEFAULT_RING_BUFFER_SIZE),
            flow_table_size: or_report(
                self.flow_table_size.as_deref().map(flow_table_size),
                &mut problems,
            )
            .unwrap_or(DEFAULT_FLOW_TABLE_SIZE),
            syscall_ring_buffer_size: or_report(
                self.syscall_ring_buffer_size
                    .as_deref()
                    .map(|written| ring_size("ORB8_SYSCALL_RING_BUFFER_SIZE", written)),
                &mut problems,
            )
            .unwrap_or(DEFAULT_SYSCALL_RING_BUFFER_SIZE),
            syscall_sample: or_report(
                self.syscall_sample.as_deref().map(syscall_sample),
                &mut problems,
            )
            .unwrap_or(DEFAULT_SYSCALL_SAMPLE),
            syscall_latency: self.latency,
            sensitive: sensitive(&self.sensitive, &mut problems),
            learn: time("learn", self.learn.as_deref(), DEFAULT_LEARN, &mut problems),
            anomaly_window: time(
                "anomaly-window",
                self.anomaly_window.as_deref(),
                DEFAULT_ANOMALY_WINDOW,
                &mut problems,
            ),
            anomaly_quiet: time(
                "anomaly-quiet",
                self.anomaly_quiet.as_deref(),
                DEFAULT_ANOMALY_QUIET,
                &mut problems,
            ),
            state_dir: state_dir(self.state_dir.take(), &mut problems),
            syscall_metrics: or_report(
                self.syscall_metrics.as_deref().map(syscall_metrics),
                &mut problems,
            )
            .unwrap_or_default(),
            kubernetes,
            peers,
            runtime: or_report(self.runtime.as_deref().map(RuntimeChoice::parse), &mut problems)
                .unwrap_or_default(),
            pods: self.pods,
            event_interval: Duration::from_millis(100),
            tick: Duration::from_secs(1),
            flow_idle: Duration::from_secs(60),
            require_signal: false,
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
        fill(&mut self.node_name, file.node_name);
        fill(&mut self.listen, file.listen);
        fill(&mut self.metrics_listen, file.metrics_listen);
        fill(&mut self.tls_cert, file.tls_cert);
        fill(&mut self.tls_key, file.tls_key);
        fill(&mut self.tls_client_ca, file.tls_client_ca);
        fill(&mut self.tc_attach, file.tc_attach);
        fill(&mut self.ring_buffer_size, file.ring_buffer_size);
        fill(&mut self.flow_table_size, file.flow_table_size);
        fill(&mut self.syscall_ring_buffer_size, file.syscall_ring_buffer_size);
        fill(&mut self.syscall_sample, file.syscall_sample);
        fill(&mut self.syscall_metrics, file.syscall_metrics);
        fill(&mut self.learn, file.learn);
        fill(&mut self.anomaly_window, file.anomaly_window);
        fill(&mut self.anomaly_quiet, file.anomaly_quiet);
        fill(&mut self.state_dir, file.state_dir);
        fill(&mut self.pods, file.pods);
        fill(&mut self.kubernetes, file.kubernetes);
        fill(&mut self.kubeconfig, file.kubeconfig);
        fill(&mut self.peers, file.peers);
        fill(&mut self.runtime, file.runtime);
        self.insecure |= file.insecure;
        self.latency |= file.latency;
        for (mine, others) in [
            (&mut self.interfaces, file.interfaces),
            (&mut self.signals, file.signals),
            (&mut self.sensitive, file.sensitive),
        ] {
            if mine.is_empty() {
                *mine = others;
            }
        }
    }

    fn tls(&self, problems: &mut Vec<String>) -> Option<ServerFiles> {
        let (certificate, key) = (self.tls_cert.clone(), self.tls_key.clone());
        ServerFiles::from_options("tls", certificate, key, self.tls_client_ca.clone())
            .unwrap_or_else(|error| {
                problems.push(error.to_string());
                None
            })
    }

    /// An address, and `encrypted`: whether TLS is spoken there; `None` where it never is.
    fn address(
        &self,
        name: &str,
        written: Option<&str>,
        default: SocketAddr,
        encrypted: Option<bool>,
        problems: &mut Vec<String>,
    ) -> SocketAddr {
        let Some(written) = written else { return default };
        let safe = self.insecure || encrypted == Some(true);
        match written.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() || safe => address,
            Ok(address) => {
                let by_tls =
                    if encrypted.is_some() { "give --tls-cert and --tls-key, " } else { "" };
                problems.push(format!(
                    "{name}: {address} is not a loopback address and would be served in plain \
                     text; listen on 127.0.0.1 or [::1], {by_tls}or say --insecure"
                ));
                address
            }
            Err(_) => {
                problems.push(format!(
                    "{name}: {written:?} is not an address; expected IP:PORT such as {default} or \
                     [::1]:{}",
                    default.port()
                ));
                default
            }
        }
    }
}

impl RawConfig {
    fn kubernetes_source(
        &self,
        running_as_pod: bool,
        problems: &mut Vec<String>,
    ) -> Option<KubernetesSource> {
        let kubeconfig = self.kubeconfig.clone();
        if let Some(path) = kubeconfig.as_ref().filter(|path| !path.is_file()) {
            problems.push(format!("kubeconfig: no file {}", path.display()));
        }
        let wanted = match self.kubernetes.as_deref() {
            None | Some("auto") => self.pods.is_none() && (running_as_pod || kubeconfig.is_some()),
            Some("off") => false,
            Some("on") => {
                if let Some(path) = &self.pods {
                    problems.push(format!(
                        "kubernetes: on, and pods: {}: expected one source of names",
                        path.display()
                    ));
                }
                true
            }
            Some(other) => {
                problems
                    .push(format!("kubernetes: {other:?} is unknown; expected auto, on or off"));
                false
            }
        };
        let source = match kubeconfig {
            None if running_as_pod => KubernetesSource::InCluster,
            path => KubernetesSource::Kubeconfig(path),
        };
        wanted.then_some(source)
    }
}

impl RawConfig {
    fn peer_scope(&self, asks_kubernetes: bool, problems: &mut Vec<String>) -> PeerScope {
        match self.peers.as_deref() {
            None | Some("node") => PeerScope::Node,
            Some("cluster") => {
                if !asks_kubernetes {
                    problems.push(
                        "peers: cluster takes the Kubernetes API, which is not asked for names; \
                         say --kubernetes on or --kubeconfig FILE"
                            .into(),
                    );
                }
                PeerScope::Cluster
            }
            Some(other) => {
                problems.push(format!("peers: {other:?} is unknown; expected node or cluster"));
                PeerScope::Node
            }
        }
    }
}

/// Whether a kubelet started this, with a service account.
fn running_as_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        && Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
}

fn read_file(path: &Path) -> Result<RawConfig, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("config {}: {e}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(RawConfig::default());
    }
    serde_saphyr::from_str(&text).map_err(|e| format!("config {}: {e}", path.display()))
}

fn or_report<T>(parsed: Option<Result<T, String>>, problems: &mut Vec<String>) -> Option<T> {
    parsed?.map_err(|problem| problems.push(problem)).ok()
}

/// A ring is a power of two and a multiple of the page, which is 64 KiB on some arm64 kernels.
fn ring_buffer_size(written: &str) -> Result<u32, String> {
    ring_size("ORB8_RING_BUFFER_SIZE", written)
}

fn ring_size(name: &str, written: &str) -> Result<u32, String> {
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    let expected = format!(
        "{name}: {written:?} is not a ring size; expected a number of bytes that is \
         a power of two from {page} (this machine's page) to {MAX_RING_BUFFER_SIZE} (32 MiB)"
    );
    match written.trim().parse::<u32>() {
        Ok(n) if n.is_power_of_two() && (page..=MAX_RING_BUFFER_SIZE).contains(&n) => Ok(n),
        _ => Err(expected),
    }
}

fn flow_table_size(written: &str) -> Result<u32, String> {
    match written.trim().parse::<u32>() {
        Ok(n) if (1..=MAX_FLOW_TABLE_SIZE).contains(&n) => Ok(n),
        _ => Err(format!(
            "ORB8_FLOW_TABLE_SIZE: {written:?} is not a table size; expected a number of entries \
             from 1 to {MAX_FLOW_TABLE_SIZE}"
        )),
    }
}

fn signals(written: &[String], problems: &mut Vec<String>) -> Vec<&'static str> {
    let known = |name: &String| signals::NAMES.into_iter().find(|known| known == name);
    for name in written.iter().filter(|name| known(name).is_none()) {
        let all = signals::NAMES.join(", ");
        problems.push(format!("signals: {name:?} is unknown; expected some of {all}"));
    }
    if written.is_empty() {
        signals::NAMES.into()
    } else {
        written.iter().filter_map(known).collect()
    }
}

fn syscall_sample(written: &str) -> Result<u32, String> {
    written.trim().parse().map_err(|_| {
        format!("syscall-sample: {written:?} is not a number; expected N, as in one of N")
    })
}

fn sensitive(written: &[String], problems: &mut Vec<String>) -> Vec<&'static str> {
    if written.is_empty() {
        return syscall::SENSITIVE.into();
    }
    let known = |name: &String| match syscall::names::find(name) {
        Ok(name) => Some(name),
        Err(unknown) => {
            problems.push(format!("sensitive: {unknown}"));
            None
        }
    };
    written.iter().filter_map(known).collect()
}

/// A time that is not too short to mean anything and not so long that it never comes.
fn time(
    name: &str,
    written: Option<&str>,
    default: Duration,
    problems: &mut Vec<String>,
) -> Duration {
    const RANGE: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);
    let Some(written) = written else { return default };
    match humantime::parse_duration(written.trim()) {
        Ok(time) if RANGE.contains(&time) => time,
        _ => {
            problems.push(format!(
                "{name}: {written:?} is not a time from 1s to 7d; expected one such as 10s, 30m or 2h"
            ));
            default
        }
    }
}

fn state_dir(written: Option<PathBuf>, problems: &mut Vec<String>) -> Option<PathBuf> {
    if let Some(dir) = written.as_ref().filter(|dir| !dir.is_dir()) {
        problems.push(format!("state-dir: no directory {}", dir.display()));
    }
    written
}

fn syscall_metrics(written: &str) -> Result<SyscallMetrics, String> {
    match written {
        "classes" => Ok(SyscallMetrics::Classes),
        "names" => Ok(SyscallMetrics::Names),
        _ => Err(format!("syscall-metrics: {written:?} is unknown; expected classes or names")),
    }
}

fn tc_attach(written: &str) -> Result<TcAttach, String> {
    match written {
        "auto" => Ok(TcAttach::Auto),
        "tcx" => Ok(TcAttach::Tcx),
        "clsact" => Ok(TcAttach::Clsact),
        _ => Err(format!("tc-attach: {written:?} is unknown; expected auto, tcx or clsact")),
    }
}

/// Names as the kernel allows them (`IFNAMSIZ`, net/core/dev.c), or a beginning and a `*`.
fn patterns(written: &[String], problems: &mut Vec<String>) -> Vec<String> {
    for pattern in written {
        let name = pattern.strip_suffix('*').unwrap_or(pattern);
        let fits = name.len() < 16 && !name.contains(|c: char| c == '/' || c.is_whitespace());
        if pattern.is_empty() || !fits || name.contains('*') {
            problems.push(format!(
                "interface: {pattern:?} is not an interface name; expected up to 15 characters \
                 such as eth0, or a beginning such as veth*"
            ));
        }
    }
    written.to_vec()
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".into() } else { name }
}

impl Config {
    /// Whether an interface called `name` is one of those asked for by name.
    #[must_use]
    pub fn names_interface(&self, name: &str) -> bool {
        self.interfaces.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern,
        })
    }

    /// Binds `address`, or says who may be in the way.
    pub(crate) fn bind(what: &str, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        let listener = std::net::TcpListener::bind(address).map_err(|e| {
            let hint = match e.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another program listens there (9090 is also Prometheus' and Cockpit's \
                     port): choose another with --listen or --metrics-listen"
                }
                _ => "",
            };
            io::Error::new(e.kind(), format!("{what} on {address}: {e}{hint}"))
        })?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

#[cfg(test)]
mod tests;
