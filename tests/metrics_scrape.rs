//! A real Prometheus scrapes an agent and a server as the monitors of `deploy/` would have it, and has
//! every series under its own labels.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orb8_testkit::{Node, NodeOptions, PodSpec, Process, Program, program::Exec};
use orb8_tests::{
    AgentProcess, address, binary,
    manifests::{file, object, test_tool},
};
use serde_json::{Value, json};

/// They have the node's network namespace for themselves.
const SERVER: SocketAddr = at(8080);
const SERVER_METRICS: SocketAddr = at(8081);
const PROMETHEUS: SocketAddr = at(9099);
/// Much more than it takes on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 7001;

const fn at(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Starts a program of the node; what it says on stderr goes to a file.
fn spawn(node: &Node, program: &str, command: Vec<String>, log: &str) -> Result<Process> {
    let script = format!("exec \"$0\" \"$@\" 2>{log}");
    let command = ["sh", "-c", &script].map(String::from).into_iter().chain(command).collect();
    node.spawn(program, &Program::Exec(Exec { command }))
}

/// What the operator makes of a monitor, with one target of a pod in `orb8-system`.
fn scrape_config(monitor: &Value, target: SocketAddr, node: &str) -> Result<Value> {
    let name = monitor["metadata"]["name"].as_str().context("a name")?;
    let endpoint = &monitor["spec"]["endpoints"][0];
    let rules = endpoint["relabelings"].as_array().context("relabelings")?;
    let renamed = |rule: &Value| -> Value {
        let names = [("sourceLabels", "source_labels"), ("targetLabel", "target_label")];
        let fields = rule.as_object().into_iter().flatten().map(|(name, value)| {
            let found = names.iter().find(|(ours, _)| ours == name);
            (found.map_or(name.as_str(), |(_, theirs)| theirs).to_owned(), value.clone())
        });
        Value::Object(fields.collect())
    };
    Ok(json!({
        "job_name": format!("serviceMonitor/orb8-system/{name}/0"),
        "honor_labels": endpoint["honorLabels"],
        "metrics_path": endpoint["path"],
        "scheme": endpoint["scheme"],
        "static_configs": [{
            "targets": [target.to_string()],
            "labels": {
                "namespace": "orb8-system",
                "pod": format!("{name}-x2x7k"),
                "container": name,
                "__meta_kubernetes_pod_node_name": node,
            },
        }],
        "relabel_configs": rules.iter().map(renamed).collect::<Vec<_>>(),
    }))
}

/// A running Prometheus.
struct Prometheus<'a> {
    agent: &'a AgentProcess,
    log: PathBuf,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl<'a> Prometheus<'a> {
    fn start(node: &Node, agent: &'a AgentProcess) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let monitors = file("components/prometheus/monitors.yaml")?;
        let targets = [("orb8-agent", agent.metrics_addr()), ("orb8-server", SERVER_METRICS)].map(
            |(name, target)| {
                let monitor = object(&monitors, &format!("ServiceMonitor/{name}"))?;
                scrape_config(monitor, target, node.name())
            },
        );
        let config = json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s" },
            "scrape_configs": targets.into_iter().collect::<Result<Vec<_>>>()?,
        });
        // JSON is YAML.
        let path = dir.path().join("prometheus.yaml");
        fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        let log = dir.path().join("log");
        let command = vec![
            test_tool("bin/prometheus")?.display().to_string(),
            format!("--config.file={}", path.display()),
            format!("--storage.tsdb.path={}", dir.path().join("data").display()),
            format!("--web.listen-address={PROMETHEUS}"),
            "--log.level=warn".into(),
        ];
        let process = spawn(node, "prometheus", command, &log.display().to_string())?;
        Ok(Self { agent, log, _process: process, _dir: dir })
    }

    /// The body of what it answers.
    fn get(&self, path: &str) -> Result<String> {
        // In 1.0 nothing comes in chunks.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {PROMETHEUS}\r\n\r\n");
        let answer = String::from_utf8(self.agent.send(PROMETHEUS, request.as_bytes())?)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the HTTP header")?;
        ensure!(head.contains(" 200 "), "{head}: {body}");
        Ok(body.to_owned())
    }

    /// The samples of a query, as labels and value.
    fn query(&self, query: &str) -> Result<Vec<(BTreeMap<String, String>, f64)>> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer: Value =
            serde_json::from_str(&self.get(&format!("/api/v1/query?query={escaped}"))?)?;
        let samples = answer["data"]["result"].as_array().context("a result")?.iter();
        let samples = samples.map(|sample| {
            let labels = serde_json::from_value(sample["metric"].clone())?;
            let value = sample["value"][1].as_str().context("a value")?.parse()?;
            Ok((labels, value))
        });
        samples.collect()
    }

    /// Asks until the first sample is at least `least`.
    fn wait_for(&self, query: &str, least: f64) -> Result<BTreeMap<String, String>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // It may not listen yet.
            let samples = self.query(query);
            match &samples {
                Ok(samples) => {
                    if let [(labels, value)] = &samples[..]
                        && *value >= least
                    {
                        return Ok(labels.clone());
                    }
                }
                Err(_) if Instant::now() < deadline => {}
                Err(error) => {
                    let said = fs::read_to_string(&self.log).unwrap_or_default();
                    bail!("{error:#}; Prometheus said:\n{said}");
                }
            }
            if Instant::now() > deadline {
                let targets = self.get("/api/v1/targets?state=active")?;
                bail!("{query}: no {least} in {samples:?}; {targets}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Whether promtool's linter is content with a text of metrics, and what it has to say.
fn linted(text: &str) -> Result<(bool, String)> {
    let mut promtool = Command::new(test_tool("bin/promtool")?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    promtool.stdin.take().context("its input")?.write_all(text.as_bytes())?;
    let done = promtool.wait_with_output()?;
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((done.status.success(), said.concat()))
}

#[test]
fn prometheus_has_the_agents_and_the_servers_series_under_their_own_labels() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let sender = node.start_pod(PodSpec::new("shop", "client-0").owner("StatefulSet", "client"))?;
    let sink = node.start_pod(PodSpec::new("shop", "sink").owner("DaemonSet", "sink"))?;
    let agent = AgentProcess::start(&node, &[])?;
    let dir = tempfile::tempdir()?;
    let mut command = vec![binary("orb8-server")?.display().to_string()];
    for (flag, value) in [
        ("--listen", SERVER.to_string()),
        ("--metrics-listen", SERVER_METRICS.to_string()),
        ("--agents", agent.grpc_addr().to_string()),
    ] {
        command.extend([flag.into(), value]);
    }
    let _server =
        spawn(&node, "orb8-server", command, &dir.path().join("log").display().to_string())?;
    let prometheus = Prometheus::start(&node, &agent)?;

    agent.wait_attached(sender.veth())?;
    agent.wait_attached(sink.veth())?;
    let _sink = sink.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, PORT))?;
    let send = Program::udp_send(address(&sink, false, PORT), 500, 1_000);
    sender.spawn("app", &send)?.wait()?;

    // 500 datagrams with Ethernet, IPv4 and UDP headers.
    let least = 500.0 * 1_042.0;
    let query = r#"orb8_network_bytes_total{pod="client-0",direction="egress"}"#;
    let labels = prometheus.wait_for(query, least)?;
    for (name, value) in [
        ("namespace", "shop"),
        ("workload", "StatefulSet/client"),
        ("job", "orb8-agent"),
        ("node", node.name()),
        ("owner", "pod"),
    ] {
        assert_eq!(labels.get(name).map(String::as_str), Some(value), "{name}: {labels:?}");
    }
    let query =
        r#"orb8_workload_network_bytes_total{workload="StatefulSet/client",direction="egress"}"#;
    let labels = prometheus.wait_for(query, least)?;
    let of_server = ["namespace", "job"].map(|name| labels.get(name).map(String::as_str));
    assert_eq!(of_server, [Some("shop"), Some("orb8-server")], "{labels:?}");
    // A sum of what the agents tell is what the server tells.
    let query = r#"sum(orb8_network_packets_total{namespace="shop",direction="egress"}) - on()
        orb8_namespace_network_packets_total{namespace="shop",direction="egress"} == 0"#;
    prometheus.wait_for(query, 0.0)?;
    prometheus.wait_for(r#"orb8_agent_up{job="orb8-server"}"#, 1.0)?;
    prometheus.wait_for(r#"sum(orb8_syscalls_total{namespace="shop",pod="client-0"})"#, 500.0)?;

    // Nothing was renamed, refused or there twice.
    assert_eq!(prometheus.query(r#"{exported_namespace!=""} or {exported_pod!=""}"#)?, []);
    assert_eq!(prometheus.query("up == 0")?, []);
    let refused = prometheus.get("/metrics")?;
    let refused: Vec<&str> = refused
        .lines()
        .filter(|line| line.starts_with("prometheus_target_scrapes_sample_"))
        .filter(|line| !line.ends_with(" 0"))
        .collect();
    assert_eq!(refused, [""; 0]);
    let metadata: Value =
        serde_json::from_str(&prometheus.get("/api/v1/metadata?metric=orb8_network_bytes")?)?;
    let told = &metadata["data"]["orb8_network_bytes"][0];
    assert_eq!((told["type"].as_str(), told["unit"].as_str()), (Some("counter"), Some("bytes")));

    for of in [agent.metrics_addr(), SERVER_METRICS] {
        let (_, text) = agent.get(of, "/metrics")?;
        assert_eq!(linted(&text)?, (true, String::new()), "{text}");
    }
    Ok(())
}
