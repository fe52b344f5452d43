//! `orb8 query pods --history` of a real Prometheus, which scrapes series of known growth.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orb8_tests::{binary, manifests::test_tool};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
/// A second, of `prod/web` in each direction.
const BYTES_IN: u64 = 100_000;
const BYTES_OUT: u64 = 5_000;
const PACKETS_IN: u64 = 100;

/// Counters that grow with the time since `started`, in the form of an agent's.
fn metrics(started: Instant) -> String {
    let mut text = String::new();
    let seconds = started.elapsed().as_secs_f64();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small numbers"
    )]
    let total = |a_second: u64| (seconds * a_second as f64) as u64;
    for (name, series) in [
        (
            "bytes",
            [("web", "ingress", BYTES_IN), ("web", "egress", BYTES_OUT), ("idle", "egress", 0)],
        ),
        ("packets", [("web", "ingress", PACKETS_IN), ("web", "egress", 0), ("idle", "egress", 0)]),
    ] {
        text.push_str(&format!("# TYPE orb8_network_{name}_total counter\n"));
        for (pod, direction, a_second) in series {
            text.push_str(&format!(
                "orb8_network_{name}_total{{namespace=\"prod\",pod=\"{pod}\",owner=\"pod\",\
                 workload=\"Deployment/{pod}\",direction=\"{direction}\"}} {}\n",
                total(a_second)
            ));
        }
    }
    text
}

/// Serves them for as long as the test runs.
fn exporter() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let started = Instant::now();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A scraper that hangs up comes again.
            let _gone = answer(stream, &metrics(started));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, text: &str) -> Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let n = stream.read(&mut piece)?;
        ensure!(n > 0, "hung up");
        request.extend_from_slice(&piece[..n]);
    }
    let length = text.len();
    Ok(write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{text}"
    )?)
}

/// A running Prometheus. It is killed when it is dropped.
struct Prometheus {
    process: Child,
    url: String,
}

impl Prometheus {
    fn start(dir: &Path, scraped: SocketAddr) -> Result<Self> {
        let config = dir.join("prometheus.yml");
        let target = format!(
            "global: {{ scrape_interval: 500ms }}\nscrape_configs:\n- job_name: orb8-agent\n  \
             static_configs:\n  - {{ targets: ['{scraped}'], labels: {{ node: node-1 }} }}\n"
        );
        fs::write(&config, target)?;
        // It takes no port 0.
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = fs::File::create(dir.join("log"))?;
        let process = Command::new(prometheus()?)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={free}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { process, url: format!("http://{free}") })
    }

    fn ask(&self, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
        let output = Command::new(binary("orb8")?)
            .args(["query", "pods", "--history", &self.url])
            .args(arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .output()?;
        let text = |bytes| Ok::<_, anyhow::Error>(String::from_utf8(bytes)?);
        Ok((output.status.code(), text(output.stdout)?, text(output.stderr)?))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _ended = self.process.wait();
    }
}

/// Debian's, or the one that scripts/test-tools.sh brought beside promtool.
fn prometheus() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("prometheus"));
    match found.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Ok(fs::canonicalize(test_tool("bin/promtool")?)?.with_file_name("prometheus")),
    }
}

#[test]
fn totals_of_the_past_are_those_that_prometheus_has_scraped() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let prometheus = Prometheus::start(dir.path(), exporter()?)?;
    let near = |value: &Value, a_second: u64| {
        let expected = 10 * a_second;
        value.as_u64().is_some_and(|value| (expected * 8 / 10..expected * 12 / 10).contains(&value))
    };
    // Ten seconds have to have been scraped first, and it has to have started.
    let deadline = Instant::now() + PATIENCE;
    let row = loop {
        let (code, stdout, stderr) = prometheus.ask(&["--since", "10s", "-o", "json"])?;
        let rows: Value = serde_json::from_str(&stdout).unwrap_or_default();
        if code == Some(0) && near(&rows[0]["ingress_bytes"], BYTES_IN) {
            ensure!(stderr.contains("rows from Prometheus, the last 10s"), "{stderr}");
            ensure!(rows.as_array().is_some_and(|rows| rows.len() == 1), "{rows}");
            break rows[0].clone();
        }
        ensure!(Instant::now() < deadline, "{code:?} {stdout} {stderr}");
        thread::sleep(Duration::from_millis(250));
    };
    ensure!(near(&row["egress_bytes"], BYTES_OUT), "{row}");
    ensure!(near(&row["ingress_packets"], PACKETS_IN), "{row}");
    ensure!(row["pod_name"] == "web" && row["node"] == "node-1", "{row}");
    ensure!(row["workload"] == "Deployment/web", "{row}");

    let filter = ["--since", "10s", "-n", "prod", "--pod", "we", "--node", "node-1"];
    let (code, stdout, stderr) = prometheus.ask(&filter)?;
    ensure!(code == Some(0) && stdout.contains("prod        web"), "{stdout}{stderr}");
    // Whatever is typed, PromQL takes it for a name.
    for name in ["w\"eb", "w\\eb", "w.b", "(we", "web|", "\u{1f980}", "a\tb", "we{"] {
        let (code, stdout, stderr) = prometheus.ask(&["--since", "10s", "--pod", name])?;
        ensure!(code == Some(1) && stdout.is_empty(), "{name:?}: {stdout}{stderr}");
        ensure!(stderr.contains("known: prod/idle, prod/web"), "{name:?}: {stderr}");
    }
    let past = ["--since", "2h", "--until", "1h"];
    let (code, _, stderr) = prometheus.ask(&past)?;
    ensure!(code == Some(0) && stderr.contains("from 2h to 1h ago"), "{stderr}");
    ensure!(stderr.contains("has no orb8_network_bytes_total in this window"), "{stderr}");
    Ok(())
}
