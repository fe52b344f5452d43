//! Working out what was written: file under environment under flags, and every problem at once.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use orb8_k8s::KubernetesSource;
use orb8_transport::{ServerFiles, listen_address};

use super::{
    Config, ConfigError, DEFAULT_ANOMALY_QUIET, DEFAULT_ANOMALY_WINDOW, DEFAULT_FLOW_TABLE_SIZE,
    DEFAULT_GRPC_PORT, DEFAULT_LEARN, DEFAULT_METRICS_PORT, DEFAULT_RING_BUFFER_SIZE,
    DEFAULT_SYSCALL_RING_BUFFER_SIZE, DEFAULT_SYSCALL_SAMPLE, PeerScope, RawConfig,
    values::{
        flow_table_size, host_name, or_report, patterns, ring_buffer_size, ring_size, sensitive,
        signals, state_dir, syscall_metrics, syscall_sample, tc_attach, time, tracepoints,
    },
};
use crate::k8s::runtime::RuntimeChoice;

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
        let kubernetes = self.kubernetes_source(KubernetesSource::running_as_pod(), &mut problems);
        let peers = self.peer_scope(kubernetes.is_some(), &mut problems);
        let tls = self.tls(&mut problems);
        let config = Config {
            node_name: self.node_name.clone().unwrap_or_else(host_name),
            listen: Some(address(
                "listen",
                self.listen.as_deref(),
                DEFAULT_GRPC_PORT,
                tls.is_some() || self.insecure,
                &mut problems,
            )),
            tls,
            metrics_listen: Some(address(
                "metrics-listen",
                self.metrics_listen.as_deref(),
                DEFAULT_METRICS_PORT,
                // Plain text for Prometheus and the kubelet: names of pods and counts, no addresses
                // and no peers.
                true,
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
            tracepoints: or_report(self.tracepoints.as_deref().map(tracepoints), &mut problems)
                .flatten(),
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
        fill(&mut self.tracepoints, file.tracepoints);
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

impl RawConfig {
    pub(super) fn kubernetes_source(
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
        wanted.then(|| KubernetesSource::choose(kubeconfig, running_as_pod))
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

fn read_file(path: &Path) -> Result<RawConfig, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("config {}: {e}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(RawConfig::default());
    }
    serde_saphyr::from_str(&text).map_err(|e| format!("config {}: {e}", path.display()))
}
