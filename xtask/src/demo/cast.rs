//! The node of the demo: who its pods are, what they say in the background and in the burst.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result};
use orb8_testkit::{
    Node, NodeOptions, Pod, PodSpec, Process, Program, Qos,
    program::{Bind, DnsClient, DnsServer, HttpClient, TcpSend},
};
use tempfile::TempDir;

/// The file that names the pods, as an API server would.
pub(super) const POD_LIST: &str = "pods.json";

const HTTP: u16 = 8080;
const DNS: u16 = 53;
const BULK: u16 = 9000;

/// Bytes of the bulk transfer: enough that segmentation offload has something to do.
pub(super) const BULK_BYTES: u64 = 256 << 20;

/// Bytes per second of the loader while it only makes background noise.
const BACKGROUND_RATE: u64 = 8 << 20;

/// Requests of a client that is stopped long before it is through.
const ENDLESS: u64 = 1_000_000;

/// The node, its pods, and the servers in them. All end when this is dropped.
pub(super) struct Cast {
    web: Pod,
    checkout: Pod,
    catalog: Pod,
    loader: Pod,
    trainer: Pod,
    coredns: Pod,
    _servers: Vec<Process>,
    folder: TempDir,
    pub(super) node: Node,
}

impl Cast {
    pub(super) fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        let pod = |namespace: &str, name: &str, qos, container: &str| {
            let spec = PodSpec::new(namespace, name).qos(qos).containers(&[container]);
            node.start_pod(spec).with_context(|| format!("pod {namespace}/{name}"))
        };
        let web = pod("shop", "web", Qos::Burstable, "nginx")?;
        let checkout = pod("shop", "checkout", Qos::Burstable, "app")?;
        let catalog = pod("shop", "catalog", Qos::BestEffort, "app")?;
        let loader = pod("ml-training", "loader", Qos::Burstable, "loader")?;
        let trainer = pod("ml-training", "trainer", Qos::Guaranteed, "trainer")?;
        let coredns = pod("kube-system", "coredns", Qos::Burstable, "coredns")?;

        let dns = DnsServer {
            bind: SocketAddr::new(coredns.ipv4().into(), DNS),
            record: [("web.shop", &web), ("trainer.ml-training", &trainer)]
                .map(|(name, pod)| format!("{name}.svc.cluster.local={}", pod.ipv4()))
                .to_vec(),
        };
        let http = |address: IpAddr| Program::HttpServer(Bind { bind: (address, HTTP).into() });
        let servers = vec![
            web.spawn("nginx", &http(web.ipv4().into()))?,
            web.spawn("nginx", &http(web.ipv6().into()))?,
            trainer.spawn("trainer", &Program::tcp_sink(trainer.ipv4(), BULK))?,
            coredns.spawn("coredns", &Program::DnsServer(dns))?,
        ];

        let folder = tempfile::Builder::new().prefix("orb8-demo-").tempdir()?;
        node.write_pod_list(&folder.path().join(POD_LIST))?;
        Ok(Self {
            web,
            checkout,
            catalog,
            loader,
            trainer,
            coredns,
            _servers: servers,
            folder,
            node,
        })
    }

    /// Says who is there.
    pub(super) fn introduce(&self) {
        let does = [
            "HTTP server",
            "HTTP client of web, over IPv4",
            "HTTP client of web, over IPv6",
            "bulk TCP to trainer, and DNS",
            "TCP sink",
            "DNS server",
        ];
        println!("  {:<22}{:<18}{:<16}does", "pod", "interface", "address");
        for (pod, does) in self.pods().iter().zip(does) {
            let name = full_name(pod);
            println!("  {name:<22}{:<18}{:<16}{does}", pod.veth(), pod.ipv4());
        }
    }

    /// Where [`POD_LIST`] is.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn pods(&self) -> [&Pod; 6] {
        [&self.web, &self.checkout, &self.catalog, &self.loader, &self.trainer, &self.coredns]
    }

    /// Steady traffic, until what is returned is dropped.
    pub(super) fn chatter(&self) -> Result<Vec<Process>> {
        self.speak(ENDLESS, 50, 120, Some(BACKGROUND_RATE), ENDLESS * BACKGROUND_RATE)
    }

    /// A bounded burst as fast as it goes, to its end. Every byte of it is on the way or counted
    /// when this returns.
    pub(super) fn burst(&self) -> Result<()> {
        for client in &mut self.speak(200, 2, 5, None, BULK_BYTES)? {
            client.wait()?;
        }
        Ok(())
    }

    fn speak(
        &self,
        requests: u64,
        every_ms: u64,
        dns_every_ms: u64,
        rate: Option<u64>,
        bytes: u64,
    ) -> Result<Vec<Process>> {
        let http = |to: IpAddr, size| {
            let to = (to, HTTP).into();
            let every = every_ms;
            Program::HttpClient(HttpClient { to, requests, every, size, keep_alive: false })
        };
        let dns = DnsClient {
            to: (IpAddr::from(self.coredns.ipv4()), DNS).into(),
            name: ["web.shop", "trainer.ml-training"]
                .map(|name| format!("{name}.svc.cluster.local"))
                .to_vec(),
            requests,
            every: dns_every_ms,
        };
        let bulk = TcpSend { to: (IpAddr::from(self.trainer.ipv4()), BULK).into(), bytes, rate };
        Ok(vec![
            self.checkout.spawn("app", &http(self.web.ipv4().into(), 2_000))?,
            self.catalog.spawn("app", &http(self.web.ipv6().into(), 20_000))?,
            self.loader.spawn("loader", &Program::DnsClient(dns))?,
            self.loader.spawn("loader", &Program::TcpSend(bulk))?,
        ])
    }
}

/// `namespace/name`.
pub(super) fn full_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace(), pod.name())
}
