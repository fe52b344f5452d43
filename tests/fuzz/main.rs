//! Bytes that no client sends, at every port of the server and of an agent: nothing breaks, nothing
//! grows, and a client that behaves is answered throughout.
//!
//! `ORB8_FUZZ_SECONDS=60` makes it last that long; ten seconds else.

mod attacks;
mod daemon;
mod frames;
mod target;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orb8_proto::{NodeQuery, PodQuery, orbit_service_client::OrbitServiceClient};
use orb8_testkit::{
    KubeApi,
    pki::{CertificateAuthority, write_file},
};
use orb8_transport::{Address, BearerToken, ClientFiles, ClientTls, Connector, Limits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tonic::service::interceptor::InterceptedService;

use self::{attacks::ATTACKS, daemon::Daemon, target::Target};

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Attackers at a time, of all kinds.
const ATTACKERS: usize = 48;
/// What allocators keep is no growth, and neither is what a few last connections hold.
const MOST_GROWTH_KIB: usize = 48 << 10;
const MOST_DESCRIPTORS: usize = 8;

/// What is under attack, and a client of each.
struct Scene {
    server: Daemon,
    agent: Daemon,
    targets: Vec<Target>,
    client: OrbitServiceClient<InterceptedService<tonic::transport::Channel, BearerToken>>,
    of_agent: OrbitServiceClient<tonic::transport::Channel>,
    _api: KubeApi,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let api = KubeApi::start()?;
        api.write_kubeconfig(&at("kubeconfig"), None)?;
        api.add_token("of-root", "root", &[]);
        api.grant("root", "list", "pods", "");
        let ca = CertificateAuthority::new("ca")?;
        let (certificate, key) = ca.issue("localhost")?.write(dir.path())?;
        let ca_file = write_file(&at("ca.crt"), &ca.pem())?;

        // Few flows: what the attack itself makes of them is not what is measured.
        let arguments = ["--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"];
        let traces = ["--signals=network", "--interface=no-such-veth*", "--flow-table-size=1024"];
        let names = ["--node-name=the-node", "--runtime=off", "--kubernetes=off"];
        let agent = Daemon::start("orb8-agent", &[&arguments[..], &traces, &names].concat())?;
        let agents = format!("--agents={}", agent.grpc);
        let [kubeconfig, cert, key, client_ca] = [
            ("kubeconfig", &at("kubeconfig")),
            ("tls-cert", &certificate),
            ("tls-key", &key),
            ("tls-client-ca", &ca_file),
        ]
        .map(|(flag, path)| format!("--{flag}={}", path.display()));
        let security = ["--auth=kubernetes", &agents, &kubeconfig, &cert, &key, &client_ca];
        let server = Daemon::start("orb8-server", &[&arguments[..], &security].concat())?;

        let targets = vec![
            Target::grpc(server.grpc, Some(&ca))?,
            Target::metrics(server.metrics),
            Target::grpc(agent.grpc, None)?,
            Target::metrics(agent.metrics),
        ];
        let patient = Limits { connect_time: PATIENCE, ..Limits::default() };
        let files =
            ClientFiles { ca: Some(ca_file), pair: None, server_name: Some("localhost".into()) };
        let tls = Connector::new(Some(ClientTls::load(files)?), patient);
        let channel = tls.channel(&Address::from(server.grpc))?;
        let token = BearerToken::word("of-root")?;
        let client = OrbitServiceClient::with_interceptor(channel, token);
        let channel = Connector::new(None, patient).channel(&Address::from(agent.grpc))?;
        let of_agent = OrbitServiceClient::new(channel);
        Ok(Self { server, agent, targets, client, of_agent, _api: api, _dir: dir })
    }

    /// Asks everything once, as somebody does who behaves; on connections of its own for `/healthz`.
    async fn ask(&self) -> Result<()> {
        let asking = async {
            let answer = self.client.clone().query_pods(PodQuery::default()).await;
            let answer = answer.context("the server")?.into_inner();
            let nodes = answer.coverage.context("no coverage")?.nodes;
            ensure!(nodes.len() == 1, "the server knows its agent: {nodes:?}");
            let answer = self.of_agent.clone().list_nodes(NodeQuery::default()).await;
            answer.context("the agent")?;
            for metrics in [self.server.metrics, self.agent.metrics] {
                healthy(metrics).await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, asking).await.context("no answer in time")?
    }

    /// Attacks for some time, while somebody behaves; gives how often.
    async fn attack(&self, time: Duration, seed: u64) -> Result<u64> {
        let (end, count) = (Instant::now() + time, Arc::new(AtomicU64::new(0)));
        let mut attackers = tokio::task::JoinSet::new();
        for number in 0..ATTACKERS {
            let target = self.targets[number % self.targets.len()].clone();
            let attack = ATTACKS[number / self.targets.len() % ATTACKS.len()];
            let count = Arc::clone(&count);
            let mut random = frames::Random::new(seed + number as u64);
            attackers.spawn(async move {
                while Instant::now() < end {
                    attacks::run(attack, &target, &mut random, end).await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut answers = 0;
        while Instant::now() < end {
            self.ask().await.with_context(|| format!("after {answers} answers"))?;
            answers += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        while let Some(ended) = attackers.join_next().await {
            ended?;
        }
        ensure!(answers > 0, "nobody was answered");
        Ok(count.load(Ordering::Relaxed))
    }
}

async fn healthy(at: SocketAddr) -> Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tcp = tokio::net::TcpStream::connect(at).await?;
    tcp.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{at}: {answer:?}");
    Ok(())
}

#[test]
fn noise_at_every_port_breaks_nothing_and_leaves_nothing() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let seconds = std::env::var("ORB8_FUZZ_SECONDS").ok().map(|s| s.parse()).transpose()?;
    let seconds: u64 = seconds.unwrap_or(10);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let scene = Scene::start()?;
        // The server has to have found its agent.
        let until = Instant::now() + PATIENCE;
        while let Err(error) = scene.ask().await {
            ensure!(Instant::now() < until, "{error:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What pools and tables keep after a first round is no growth.
        let time = Duration::from_secs(seconds.div_ceil(2));
        let warm = scene.attack(time, 1).await?;
        let daemons = [&scene.server, &scene.agent];
        let before: Vec<_> = daemons.iter().map(|d| d.settled()).collect::<Result<_>>()?;
        let attacks = scene.attack(time, 1_000_000).await?;
        ensure!(warm + attacks > 200, "{warm} and {attacks} attacks are no test");
        for (daemon, before) in daemons.into_iter().zip(before) {
            // Connections that were abandoned are given up some seconds later.
            let until = Instant::now() + PATIENCE;
            let after = loop {
                let after = daemon.settled()?;
                if after.descriptors <= before.descriptors + MOST_DESCRIPTORS {
                    break after;
                }
                if Instant::now() > until {
                    bail!("{}: {before:?} became {after:?}", daemon.name);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            let growth = after.memory_kib.saturating_sub(before.memory_kib);
            ensure!(
                growth <= MOST_GROWTH_KIB,
                "{}: {before:?} grew to {after:?} over {attacks} attacks",
                daemon.name
            );
            println!("{}: {before:?} to {after:?}, {attacks} attacks", daemon.name);
        }
        scene.ask().await?;
        let Scene { server, agent, .. } = scene;
        for daemon in [server, agent] {
            let log = daemon.terminate()?;
            ensure!(!log.contains("panicked"), "{log}");
            ensure!(
                log.lines().count() < 2_000,
                "the log is flooded: {} lines",
                log.lines().count()
            );
        }
        Ok(())
    })
}
