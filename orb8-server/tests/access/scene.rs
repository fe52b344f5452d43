//! A server with TLS, an API that it asks, an agent, and clients.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use orb8_proto::{Peer, PeerKind, PodQuery, orbit_service_client::OrbitServiceClient};
use orb8_server::{
    Server,
    config::{Config, RawConfig},
};
use orb8_testkit::{
    KubeApi, SimAgent, SimNode,
    pki::{CertificateAuthority, Pair, write_file},
};
use orb8_transport::{Address, BearerToken, ClientFiles, ClientTls, Connector, Limits, broken_by};
use tempfile::TempDir;
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};

/// Long enough for a loaded machine; nothing waits that long otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Client = OrbitServiceClient<InterceptedService<Channel, BearerToken>>;

/// Everything that was logged in this process.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log, from the first call on.
pub(crate) fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        log
    })
}

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Whether a refusal was logged that says all of this.
    pub(crate) fn tells_of(&self, words: &[&str]) -> bool {
        let text = self.text();
        let mut refusals =
            text.lines().filter(|line| line.contains("WARN") && line.contains("refused"));
        refusals.any(|line| words.iter().all(|word| line.contains(word)))
    }
}

pub(crate) struct Scene {
    pub(crate) ca: CertificateAuthority,
    pub(crate) api: KubeApi,
    pub(crate) dir: TempDir,
    pub(crate) server: Server,
    pub(crate) agents: Vec<SimAgent>,
}

impl Scene {
    /// Where Kubernetes decides: `ann` may see namespace `ns-1`, and `root` everything.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| (), |_| ()).await
    }

    pub(crate) async fn start_with(
        raw: impl FnOnce(&mut RawConfig),
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut node = SimNode { events: 100, ..SimNode::new("node-1", 40) };
        node.flow.peer = Some(Peer {
            kind: PeerKind::Service.into(),
            namespace: "default".into(),
            name: "db".into(),
            ip: "10.0.0.2".into(),
            port: 80,
            ..Peer::default()
        });
        // Whom the agent does not know, and the server may.
        node.flow.backend = Some(Peer {
            kind: PeerKind::Unknown.into(),
            ip: "10.0.0.3".into(),
            port: 8080,
            ..Peer::default()
        });
        let agent = SimAgent::start(node).await.unwrap();
        let address = agent.address().to_string();
        let ca = CertificateAuthority::new("ca").unwrap();
        Self::of(ca, vec![agent], address, raw, change).await
    }

    pub(crate) async fn of(
        ca: CertificateAuthority,
        agents: Vec<SimAgent>,
        addresses: String,
        change_raw: impl FnOnce(&mut RawConfig),
        change: impl FnOnce(&mut Config),
    ) -> Self {
        log();
        let of_the_api = CertificateAuthority::new("kubernetes").unwrap();
        let api = KubeApi::start_with_tls(&of_the_api).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = let_in(&api, dir.path(), "of-the-server");
        api.add_token("token-of-ann", "ann", &["devs"]);
        api.grant("ann", "list", "pods", "ns-1");
        api.add_token("token-of-root", "root", &[]);
        api.grant("root", "list", "pods", "");
        api.grant("root", "list", "nodes", "");
        let (certificate, key) = ca.issue("localhost").unwrap().write(dir.path()).unwrap();
        let mut raw = RawConfig {
            listen: Some("127.0.0.1:0".into()),
            metrics_listen: Some("127.0.0.1:0".into()),
            agents: Some(addresses),
            auth: Some("kubernetes".into()),
            // It is asked who somebody is, and not what there is.
            kubernetes: Some("off".into()),
            kubeconfig: Some(kubeconfig),
            tls_cert: Some(certificate),
            tls_key: Some(key),
            tls_client_ca: Some(write_file(&dir.path().join("ca.crt"), &ca.pem()).unwrap()),
            ..RawConfig::default()
        };
        change_raw(&mut raw);
        let mut config = raw.resolve().unwrap();
        config.timing.ping = Duration::from_millis(100);
        config.timing.retry = Duration::from_millis(200);
        config.access.believed = Duration::from_millis(200);
        config.access.refused = Duration::from_millis(200);
        config.access.recheck = Duration::from_millis(100);
        change(&mut config);
        let server = Server::start(config).await.unwrap();
        let scene = Self { ca, api, dir, server, agents };
        scene.agents_settle().await;
        scene
    }

    /// Waits until nothing is unknown of the agents.
    async fn agents_settle(&self) {
        let unknown = |node: &Arc<orb8_server::agents::Node>| {
            node.health() == orb8_server::agents::Health::Connecting
        };
        until("the agents are known", async || {
            let all = self.server.agents().all();
            !all.is_empty() && !all.iter().any(unknown)
        })
        .await;
    }

    /// A client's side of TLS: it trusts `ca`, and shows `pair`.
    pub(crate) fn tls(&self, ca: &CertificateAuthority, pair: Option<&Pair>) -> ClientTls {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        ClientTls::load(client_files(&dir, ca, pair)).unwrap()
    }

    /// With a token, by TLS.
    pub(crate) fn client(&self, token: &str) -> Client {
        self.client_with(Some(self.tls(&self.ca, None)), token)
    }

    /// With a certificate and no token.
    pub(crate) fn holder(&self, pair: &Pair) -> Client {
        self.client_with(Some(self.tls(&self.ca, Some(pair))), "")
    }

    pub(crate) fn client_with(&self, tls: Option<ClientTls>, token: &str) -> Client {
        let token =
            if token.is_empty() { BearerToken::none() } else { BearerToken::word(token).unwrap() };
        OrbitServiceClient::with_interceptor(self.channel(tls), token)
    }

    /// Connects when it is used.
    pub(crate) fn channel(&self, tls: Option<ClientTls>) -> Channel {
        let patient = Limits { connect_time: PATIENCE, ..Limits::default() };
        let address = Address::from(self.server.grpc_addr());
        Connector::new(tls, patient).channel(&address).unwrap()
    }

    /// The server's metrics, those of this name.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = scraped(self.server.metrics_addr()).await;
        let line = text.lines().find(|line| line.starts_with(series));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no {series} in {text}"))
    }

    pub(crate) async fn end(self) {
        assert!(self.server.stop().await.unfinished.is_empty());
    }
}

/// Lets the server in with this token and no other, and writes what it needs for that. Gives the
/// kubeconfig.
pub(crate) fn let_in(api: &KubeApi, dir: &Path, token: &str) -> PathBuf {
    let kubeconfig = dir.join("kubeconfig");
    let credentials = write_file(&dir.join("credentials"), token).unwrap();
    api.write_kubeconfig(&kubeconfig, Some(&credentials)).unwrap();
    api.faults(|faults| faults.tokens = Some(vec![token.to_owned()]));
    kubeconfig
}

pub(crate) fn client_files(
    dir: &Path,
    ca: &CertificateAuthority,
    pair: Option<&Pair>,
) -> ClientFiles {
    let ca: PathBuf = write_file(&dir.join("ca.crt"), &ca.pem()).unwrap();
    let pair = pair.map(|pair| pair.write(dir).unwrap());
    ClientFiles { ca: Some(ca), pair, server_name: Some("localhost".into()) }
}

async fn scraped(address: std::net::SocketAddr) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: orb8\r\nConnection: close\r\n\r\n";
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The pods of a namespace; of all where it is empty.
pub(crate) fn pods_of(namespace: &str) -> PodQuery {
    PodQuery { namespace: namespace.into(), ..PodQuery::default() }
}

/// How many pods it sees; or the code, and what a person is told.
pub(crate) async fn pods(client: &mut Client, namespace: &str) -> Result<usize, (Code, String)> {
    let answer = client.query_pods(pods_of(namespace)).await.map_err(told)?;
    Ok(answer.into_inner().pods.len())
}

pub(crate) fn told(status: Status) -> (Code, String) {
    let text = broken_by(&status).unwrap_or_else(|| status.message().to_owned());
    (status.code(), text)
}

/// Waits for `what` to hold.
pub(crate) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
