//! A cluster of three nodes: real agents on three kernels' worth of namespaces, two servers that find
//! them by the Kubernetes API, and the command line. Whatever is cut, killed or hung is named, and
//! comes back by itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_testkit::{
    KubeApi, Node, NodeOptions, Pod, PodSpec, Process, Program,
    program::{Exec, HttpClient},
};
use orb8_tests::{AgentProcess, address, binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(40);
/// Of the control plane, on its loopback interface; every node has a way there.
const API: Ipv4Addr = Ipv4Addr::new(172, 31, 255, 1);
const SERVERS: [&str; 2] = ["127.0.0.1:8080", "127.0.0.1:8082"];
/// What a server may take where agents are silent. The rest is the command line and a busy machine.
const DEADLINE: Duration = Duration::from_secs(8);
const NAMES: [&str; 3] = ["node-1", "node-2", "node-3"];

/// A node, with two pods that talk and an agent.
struct Worker {
    agent: Option<AgentProcess>,
    _traffic: [Process; 2],
    _pods: [Pod; 2],
    node: Node,
    /// The control plane's end of its link.
    link: String,
    ip: Ipv4Addr,
}

impl Worker {
    fn start(plane: &Node, api: &KubeApi, number: u8) -> Result<Self> {
        let name = format!("node-{number}");
        let node = Node::start(NodeOptions { name: Some(name), ..NodeOptions::default() })?;
        let (link, there) = (format!("to-{number}"), Ipv4Addr::new(172, 31, number, 1));
        let ip = Ipv4Addr::new(172, 31, number, 2);
        let holder = node.holder_pid().to_string();
        run(plane, &format!("ip link add {link} type veth peer name uplink netns {holder}"))?;
        run(plane, &format!("ip addr add {there}/30 dev {link}"))?;
        run(plane, &format!("ip link set {link} up"))?;
        run(&node, &format!("ip addr add {ip}/30 dev uplink"))?;
        run(&node, "ip link set uplink up")?;
        run(&node, &format!("ip route add default via {there}"))?;
        node.report_to(api)?;

        let pod = |name: &str| node.start_pod(PodSpec::new("shop", &format!("{name}-{number}")));
        let pods = [pod("web")?, pod("client")?];
        let to = address(&pods[0], false, 8_000);
        let server = pods[0].spawn("app", &Program::HttpServer(bind(8_000)))?;
        let requests =
            HttpClient { to, requests: 1_000_000, every: 20, size: 100, keep_alive: false };
        let client = pods[1].spawn("app", &Program::HttpClient(requests))?;
        let agent = Some(start_agent(&node, api)?);
        Ok(Self { agent, _traffic: [server, client], _pods: pods, node, link, ip })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.agent.as_ref().context("no agent")?.pid();
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

fn bind(port: u16) -> orb8_testkit::program::Bind {
    orb8_testkit::program::Bind { bind: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)) }
}

fn start_agent(node: &Node, api: &KubeApi) -> Result<AgentProcess> {
    let arguments = ["--listen", "0.0.0.0:9090", "--insecure", "--signals", "network"];
    AgentProcess::start_with_api(node, api, &arguments)
}

fn run(node: &Node, command: &str) -> Result<()> {
    let words: Vec<&str> = command.split(' ').collect();
    let output = node.exec(&words)?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The Service of the agents, as Kubernetes has it.
fn endpoints(api: &KubeApi, workers: &[Worker]) -> Result<()> {
    let ready = json!({ "ready": true, "serving": true, "terminating": false });
    let endpoints = workers.iter().map(|worker| {
        json!({ "addresses": [worker.ip], "nodeName": worker.node.name(), "conditions": ready })
    });
    api.apply(json!({ "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "orb8-agent-1", "namespace": "orb8-system",
            "labels": { "kubernetes.io/service-name": "orb8-agent" } },
        "ports": [{ "name": "grpc", "port": 9090 }],
        "endpoints": endpoints.collect::<Vec<_>>() }))?;
    Ok(())
}

fn start_server(plane: &Node, dir: &Path, number: usize, log: &Path) -> Result<Process> {
    let kubeconfig = dir.join("kubeconfig").display().to_string();
    let metrics = format!("127.0.0.1:{}", 8_081 + 2 * number);
    let script = format!("exec \"$0\" \"$@\" 2>{}", log.display());
    let mut command = ["sh", "-c", &script].map(String::from).to_vec();
    command.push(binary("orb8-server")?.display().to_string());
    command.extend(
        ["--listen", SERVERS[number], "--metrics-listen", &metrics, "--kubeconfig", &kubeconfig]
            .map(String::from),
    );
    command
        .extend(["--agents", "kubernetes:orb8-system/orb8-agent", "--insecure"].map(String::from));
    plane.spawn(&format!("orb8-server-{number}"), &Program::Exec(Exec { command }))
}

/// What the command line left.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    took: Duration,
}

impl Run {
    fn last_line(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }

    /// Nodes of the rows.
    fn nodes(&self) -> Result<Vec<String>> {
        let rows: Vec<Value> = serde_json::from_str(&self.stdout)?;
        let mut nodes: Vec<_> =
            rows.iter().filter_map(|row| Some(row["node"].as_str()?.to_owned())).collect();
        nodes.sort();
        nodes.dedup();
        Ok(nodes)
    }
}

fn orb8(plane: &Node, server: &str, arguments: &[&str]) -> Result<Run> {
    let program = binary("orb8")?.display().to_string();
    let mut command = vec!["env", "HOME=/nonexistent", &*program, "--server", server];
    command.extend(arguments);
    let started = Instant::now();
    let output = plane.exec(&command)?;
    let text = |bytes| String::from_utf8(bytes);
    Ok(Run {
        code: output.status.code(),
        stdout: text(output.stdout)?,
        stderr: text(output.stderr)?,
        took: started.elapsed(),
    })
}

/// Asks for pods of a server until the answer is as it should be.
fn ask_until(
    plane: &Node,
    server: &str,
    what: &str,
    is_right: impl Fn(&Run) -> Result<bool>,
) -> Result<Run> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let run = orb8(plane, server, &["query", "pods", "-n", "shop", "-o", "json"])?;
        ensure!(run.took < DEADLINE, "{what}: {run:#?}");
        if is_right(&run)? {
            return Ok(run);
        }
        ensure!(Instant::now() < deadline, "{what}: {run:#?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Everybody answers, at both servers.
fn all_answer(plane: &Node, when: &str) -> Result<()> {
    for server in SERVERS {
        ask_until(plane, server, when, |run| Ok(run.code == Some(0) && run.nodes()? == NAMES))?;
    }
    Ok(())
}

/// Both servers answer in time with what there is, and name the node that does not answer.
fn names_missing(plane: &Node, missing: &str, when: &str) -> Result<()> {
    for server in SERVERS {
        let run = ask_until(plane, server, when, |run| {
            Ok(run.code == Some(3) && run.stderr.contains(&format!("node {missing} ")))
        })?;
        eprintln!("{when}:\n{}", run.stderr);
        ensure!(run.last_line().starts_with("2/3 nodes answered"), "{when}: {run:#?}");
        let there: Vec<_> = NAMES.into_iter().filter(|name| *name != missing).collect();
        ensure!(run.nodes()? == there, "{when}: {run:#?}");
    }
    Ok(())
}

#[test]
fn whatever_is_cut_killed_or_hung_is_named_and_comes_back_by_itself() -> Result<()> {
    let plane = Node::start(NodeOptions { name: Some("plane".into()), ..NodeOptions::default() })?;
    run(&plane, &format!("ip addr add {API}/32 dev lo"))?;
    let api = KubeApi::start_at(&plane.netns(), API)?;
    let dir = tempfile::tempdir()?;
    api.write_kubeconfig(&dir.path().join("kubeconfig"), None)?;
    let mut workers = Vec::new();
    for number in 1..=3 {
        workers.push(Worker::start(&plane, &api, number)?);
    }
    endpoints(&api, &workers)?;
    let logs = [dir.path().join("server-0"), dir.path().join("server-1")];
    let mut servers = Vec::new();
    for (number, log) in logs.iter().enumerate() {
        servers.push(start_server(&plane, dir.path(), number, log)?);
    }
    all_answer(&plane, "at first")?;
    let nodes = orb8(&plane, SERVERS[0], &["nodes"])?;
    eprintln!("{}{}", nodes.stdout, nodes.stderr);
    let pods = orb8(&plane, SERVERS[0], &["query", "pods"])?;
    eprintln!("{}{}", pods.stdout, pods.stderr);

    run(&plane, &format!("ip link set {} down", workers[0].link))?;
    names_missing(&plane, "node-1", "node-1 is cut off")?;
    run(&plane, &format!("ip link set {} up", workers[0].link))?;
    all_answer(&plane, "node-1 is back")?;

    workers[1].agent.take().context("no agent")?.kill();
    names_missing(&plane, "node-2", "the agent of node-2 is killed")?;
    workers[1].agent = Some(start_agent(&workers[1].node, &api)?);
    all_answer(&plane, "the agent of node-2 is started again")?;

    workers[2].signal(Signal::STOP)?;
    names_missing(&plane, "node-3", "the agent of node-3 hangs")?;
    // So does a trace say it, whose records are of the others.
    let arguments = ["trace", "network", "-n", "shop", "--duration", "3s", "-o", "jsonl"];
    let trace = orb8(&plane, SERVERS[1], &arguments)?;
    workers[2].signal(Signal::CONT)?;
    ensure!(trace.code == Some(3) && trace.stderr.contains("node node-3 "), "{:#?}", trace.stderr);
    for name in ["node-1", "node-2"] {
        ensure!(trace.stdout.contains(&format!("\"node\":\"{name}\"")), "{:#?}", trace.stderr);
    }
    all_answer(&plane, "the agent of node-3 goes on")?;

    // A replica is as good as the other one.
    servers.remove(0).kill();
    let run = orb8(&plane, SERVERS[0], &["query", "pods"])?;
    ensure!(run.code == Some(1) && run.stderr.contains(SERVERS[0]), "{run:#?}");
    let run = orb8(&plane, SERVERS[1], &["query", "pods", "-n", "shop", "-o", "json"])?;
    ensure!(run.code == Some(0) && run.nodes()? == NAMES, "{run:#?}");
    for worker in &mut workers {
        worker.agent.take().context("no agent")?.terminate()?;
    }
    Ok(())
}
