//! What departs from a workload's usual system calls is found, with real programs in its container; and
//! what does not is not.
//!
//! The workload is an HTTP server that a client in another pod asks five times a second, each time
//! by a new connection. It is learnt for 12 s, by windows of 1 s. What is injected into its container,
//! one after the other: a shell; a ptrace; processes forked as fast as they go; opens of a file that
//! is not to be read, some thousand a second.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use orb8_agent::config::Config;
use orb8_proto::{
    Anomaly, AnomalyKind, AnomalyQuery, AnomalyResponse, Baseline, BaselineState, StreamRequest,
};
use orb8_testkit::{
    Node, NodeOptions, Pod, PodSpec, Process, Program,
    program::{Bind, Exec, HttpClient},
};
use orb8_tests::{Client, Traced};

const LIMIT: Duration = Duration::from_secs(60);
const PORT: u16 = 8080;
/// What is injected has to be found within this time.
const FOUND_WITHIN: Duration = Duration::from_secs(5);

/// The number of ptrace(2), which perl can call as any other.
#[cfg(target_arch = "x86_64")]
const PTRACE: u32 = 101;
#[cfg(target_arch = "aarch64")]
const PTRACE: u32 = 117;

struct Scene {
    node: Node,
    web: Pod,
    _server: Process,
    _client: (Pod, Process),
}

impl Scene {
    /// A server that works, and nobody who watches it.
    fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        let web = PodSpec::new("shop", "web-5d9c7-x7k2p")
            .owner("ReplicaSet", "web-5d9c7")
            .label("pod-template-hash", "5d9c7");
        let web = node.start_pod(web)?;
        let bind = Bind { bind: (Ipv4Addr::UNSPECIFIED, PORT).into() };
        let server = web.spawn("app", &Program::HttpServer(bind))?;
        let client = node.start_pod(PodSpec::new("shop", "client"))?;
        let asking = HttpClient {
            to: SocketAddr::from((web.ipv4(), PORT)),
            requests: 1_000_000,
            every: 200,
            size: 1024,
            keep_alive: false,
        };
        let asking = client.spawn("app", &Program::HttpClient(asking))?;
        Ok(Self { node, web, _server: server, _client: (client, asking) })
    }

    fn inject(&self, command: &[&str]) -> Result<Process> {
        let command = command.iter().map(ToString::to_string).collect();
        self.web.spawn("app", &Program::Exec(Exec { command }))
    }
}

fn learning(config: &mut Config) {
    config.signals = vec!["syscall"];
    config.learn = Duration::from_secs(12);
    config.anomaly_window = Duration::from_secs(1);
    config.anomaly_quiet = Duration::from_secs(8);
}

fn query(client: &Client, active_only: bool) -> Result<AnomalyResponse> {
    let query = AnomalyQuery {
        namespace: "shop".into(),
        pod_name: "web".into(),
        active_only,
        ..AnomalyQuery::default()
    };
    Ok(client.call(|mut c| async move { c.query_anomalies(query).await })?)
}

/// Asks until the answer is as wanted.
fn wait<T>(
    client: &Client,
    limit: Duration,
    what: &str,
    wanted: impl Fn(&AnomalyResponse) -> Option<T>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        let answer = query(client, false)?;
        if let Some(found) = wanted(&answer) {
            return Ok(found);
        }
        ensure!(begun.elapsed() < limit, "not in time: {what}: {answer:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn baseline(answer: &AnomalyResponse) -> Option<&Baseline> {
    answer.baselines.iter().find(|baseline| baseline.workload == "Deployment/web")
}

fn windows_when_learnt(client: &Client) -> Result<u32> {
    wait(client, LIMIT, "the workload is learnt", |answer| {
        let baseline = baseline(answer).filter(|b| b.state() == BaselineState::Learnt);
        baseline.map(|baseline| baseline.windows)
    })
}

/// The finding of this kind and call, which began no later than allowed.
fn found(
    client: &Client,
    injected: SystemTime,
    kind: AnomalyKind,
    calls: &[&str],
) -> Result<Anomaly> {
    let anomaly = wait(client, LIMIT, &format!("{kind:?} of {calls:?}"), |answer| {
        let mut all = answer.anomalies.iter();
        all.find(|a| a.kind() == kind && calls.contains(&&*a.syscall)).cloned()
    })?;
    let injected = injected.duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
    let after = i128::from(anomaly.since_ns) - i128::try_from(injected)?;
    let limit = i128::try_from(FOUND_WITHIN.as_nanos())?;
    ensure!(after <= limit, "found after {} ms: {anomaly:#?}", after / 1_000_000);
    eprintln!("{kind:?} of {} after {} ms", anomaly.syscall, after / 1_000_000);
    Ok(anomaly)
}

#[test]
fn a_shell_a_ptrace_and_storms_of_forks_and_errors_are_found_in_a_web_server_and_nothing_else()
-> Result<()> {
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |config| {
        learning(config);
        // Errors are seen where the ends of calls are.
        config.syscall_latency = true;
        config.metrics_listen = Some((Ipv4Addr::LOCALHOST, 0).into());
        config.listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    })?;
    let request = StreamRequest { signals: vec!["syscall".into()], ..StreamRequest::default() };
    let heard = traced.trace(request)?;
    let learnt = windows_when_learnt(&traced)?;
    // As much again of the same.
    wait(&traced, LIMIT, "the workload goes on", |answer| {
        baseline(answer).filter(|baseline| baseline.windows > learnt + 10).map(|_| ())
    })?;
    let anomalies = query(&traced, false)?.anomalies;
    ensure!(anomalies.is_empty(), "found in ordinary work: {anomalies:#?}");

    let injected = SystemTime::now();
    scene.inject(&["/bin/sh", "-c", "id; ls / >/dev/null; exit 0"])?.wait_for(LIMIT).ok();
    let shell = found(&traced, injected, AnomalyKind::NewSyscall, &["execve"])?;
    ensure!(shell.evidence.iter().any(|text| text.contains("/bin/sh")), "{shell:#?}");
    ensure!(shell.container_id == scene.web.container_id("app")?, "{shell:#?}");
    ensure!((&*shell.pod_name, &*shell.container) == (scene.web.name(), "app"), "{shell:#?}");
    ensure!((&*shell.namespace, &*shell.workload) == ("shop", "Deployment/web"), "{shell:#?}");

    let injected = SystemTime::now();
    // PTRACE_TRACEME, by a process that ends at once.
    let traces = format!("syscall({PTRACE}, 0, 0, 0, 0)");
    scene.inject(&["perl", "-e", &traces])?.wait_for(LIMIT).ok();
    let ptrace = found(&traced, injected, AnomalyKind::SensitiveSyscall, &["ptrace"])?;
    ensure!(ptrace.occurrences == 1, "{ptrace:#?}");
    ensure!(ptrace.evidence[0].starts_with("perl (pid "), "{ptrace:#?}");

    let injected = SystemTime::now();
    let forks = "for (1..4000) { my $p = fork; exit 0 unless $p; waitpid($p, 0) }";
    scene.inject(&["perl", "-e", forks])?.wait_for(LIMIT).ok();
    let storm = found(&traced, injected, AnomalyKind::Rate, &["clone", "fork", "vfork", "clone3"])?;
    ensure!(storm.value > 30.0 && storm.value > 3.0 * storm.normal, "{storm:#?}");

    let injected = SystemTime::now();
    let opens = "$) = $> = 65534; for (1..40000) { open(my $f, '<', '/etc/shadow') }";
    scene.inject(&["perl", "-e", opens])?.wait_for(LIMIT).ok();
    let errors = found(&traced, injected, AnomalyKind::ErrorStorm, &["EACCES"])?;
    ensure!(errors.value > 30.0 && errors.value > 3.0 * errors.normal, "{errors:#?}");

    wait(&traced, LIMIT, "all is over", |answer| {
        answer.anomalies.iter().all(|a| a.cleared_ns > a.since_ns).then_some(())
    })?;
    ensure!(query(&traced, true)?.anomalies.is_empty());
    let (orb8, at) = (orb8_tests::command_line()?, traced.grpc_addr().context("it serves")?);
    let (orb8, at) = (orb8.to_str().context("a path")?, at.to_string());
    let kind = ["--kind", "sensitive-syscall", "-o", "json"];
    let command =
        [&[orb8, "--server", &at, "query", "anomalies", "-n", "shop"][..], &kind].concat();
    let shown = scene.node.exec(&command)?;
    let json: serde_json::Value = serde_json::from_slice(&shown.stdout)
        .with_context(|| String::from_utf8_lossy(&shown.stderr).into_owned())?;
    let rows = json.as_array().context("an array")?;
    ensure!(rows.iter().all(|row| row["kind"] == "sensitive_syscall"), "{json:#}");
    ensure!(rows.iter().any(|row| row["id"] == ptrace.id.as_str()), "{json:#}");
    let at = traced.metrics_addr().context("metrics are served")?;
    let metrics = traced.metrics(at)?;
    for kind in ["new_syscall", "sensitive_syscall", "rate", "error_storm"] {
        let labels = format!("namespace=\"shop\",workload=\"Deployment/web\",kind=\"{kind}\"");
        let count = metrics.get(&format!("orb8_anomalies_total{{{labels}}}"));
        ensure!(count.is_some_and(|n| *n >= 1.0), "{kind}: {count:?} in {metrics:#?}");
        let active = metrics.get(&format!("orb8_anomalies_active{{kind=\"{kind}\"}}"));
        ensure!(active == Some(&0.0), "{kind}: {active:?}");
    }
    let heard = traced.stop_with(heard)?;
    ensure!(heard.anomalies.len() < 2 * 16, "one cause, many findings: {:#?}", heard.anomalies);
    for anomaly in [shell, ptrace, storm, errors] {
        let told: Vec<_> = heard.anomalies.iter().filter(|a| a.id == anomaly.id).collect();
        ensure!(told.len() == 2, "told when it began and when it was over: {told:#?}");
        ensure!((told[0].cleared_ns, told[1].cleared_ns > 0) == (0, true), "{told:#?}");
    }
    Ok(())
}

fn with_state(scene: &Scene, dir: &Path) -> Result<Traced> {
    Traced::start(&scene.node, |config| {
        learning(config);
        config.state_dir = Some(dir.to_owned());
    })
}

#[test]
fn what_was_learnt_is_known_after_a_restart_and_a_broken_file_is_learnt_over() -> Result<()> {
    let scene = Scene::start()?;
    let dir = tempfile::tempdir()?;
    let traced = with_state(&scene, dir.path())?;
    windows_when_learnt(&traced)?;
    traced.stop()?;

    let traced = with_state(&scene, dir.path())?;
    let known = baseline(&query(&traced, false)?).map(Baseline::state);
    ensure!(known == Some(BaselineState::Learnt), "{known:?}");
    let injected = SystemTime::now();
    scene.inject(&["/bin/sh", "-c", "id; exit 0"])?.wait_for(LIMIT).ok();
    found(&traced, injected, AnomalyKind::NewSyscall, &["execve"])?;
    traced.stop()?;

    for file in std::fs::read_dir(dir.path())? {
        let path = file?.path();
        let text = std::fs::read(&path)?;
        std::fs::write(&path, &text[..text.len() / 2])?;
    }
    let traced = with_state(&scene, dir.path())?;
    let state = wait(&traced, LIMIT, "the workload is met again", |answer| {
        baseline(answer).map(Baseline::state)
    })?;
    ensure!(state == BaselineState::Learning, "{state:?}");
    traced.stop()
}
