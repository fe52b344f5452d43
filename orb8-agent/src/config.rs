//! From what a user wrote (file, environment, flags) to what the agent runs with.
//!
//! [`RawConfig`] is what was written, [`Config`] what it means. Every error is found here, before
//! anything binds, loads or attaches, and all of them are told at once.

mod resolve;
#[cfg(test)]
mod tests;
mod values;

use std::{fmt, io, net::SocketAddr, path::PathBuf, time::Duration};

use orb8_k8s::KubernetesSource;
use orb8_probes::tracepoint;
use orb8_transport::ServerFiles;
use serde::Deserialize;

use crate::k8s::runtime::RuntimeChoice;

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
    /// By which kind of program system calls are counted: auto, typed, raw or classic [default: auto,
    /// the cheapest that this kernel does not preempt: classic from Linux 7.0 on]
    #[arg(long, env = "ORB8_TRACEPOINTS", value_name = "KIND")]
    pub tracepoints: Option<String>,
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
    /// Which of [`crate::signals::NAMES`] run.
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
    /// By which kind of program system calls are counted; `None`: the best one.
    pub tracepoints: Option<tracepoint::Kind>,
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
