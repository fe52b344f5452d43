//! An agent on a node of the testkit: started inside the node's network namespace, asked over the
//! protocol that everybody uses.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orb8_agent::{
    Agent,
    config::{Config, RawConfig},
};
use orb8_proto::{
    Direction, Event, FlowQuery, InterfaceStatus, LossReport, NetworkFlow, PodQuery, PodTraffic,
    StatusRequest, StatusResponse, StreamRequest, event, orbit_service_client::OrbitServiceClient,
};
use orb8_testkit::{Node, Pod};
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

/// No single question to an agent takes longer than this in a test.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running agent in a node's network namespace.
pub struct Traced {
    runtime: Runtime,
    agent: Option<Agent>,
    client: OrbitServiceClient<Channel>,
    _pod_list: tempfile::TempDir,
}

impl Traced {
    /// Starts an agent that knows the node's pods by name, and that `change` may configure.
    pub fn start(node: &Node, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("pods.json");
        node.write_pod_list(&path)?;
        let mut config = RawConfig::default().resolve()?;
        config.node_name = node.name().into();
        config.pods = Some(path);
        config.listen = None;
        config.metrics_listen = None;
        config.require_signal = true;
        change(&mut config);
        let netns = node.netns();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || netns.enter().expect("the node's namespace is there"))
            .build()?;
        // On a worker: the thread that waits here is not in the node's namespace.
        let started = runtime.block_on(runtime.spawn(async move {
            let agent = Agent::start(config).await?;
            let channel = agent.channel().await?;
            anyhow::Ok((agent, channel))
        }));
        let (agent, channel) = started??;
        let client = OrbitServiceClient::new(channel).max_decoding_message_size(256 << 20);
        Ok(Self { runtime, agent: Some(agent), client, _pod_list: dir })
    }

    /// Where the agent serves, if it was configured to.
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.agent.as_ref().and_then(Agent::grpc_addr)
    }

    /// Where the agent's metrics are, if it was configured to serve them.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.agent.as_ref().and_then(Agent::metrics_addr)
    }

    /// The agent's state now.
    pub fn status(&self) -> Result<StatusResponse> {
        let mut client = self.client.clone();
        self.runtime.block_on(async move {
            let answer = client.get_agent_status(StatusRequest {});
            Ok(tokio::time::timeout(PATIENCE, answer).await??.into_inner())
        })
    }

    /// Flows of the whole window.
    pub fn flows(&self, query: FlowQuery) -> Result<Vec<NetworkFlow>> {
        let mut client = self.client.clone();
        self.runtime.block_on(async move {
            let answer = client.query_flows(query);
            Ok(tokio::time::timeout(PATIENCE, answer).await??.into_inner().flows)
        })
    }

    /// Totals of the whole window.
    pub fn pods(&self, query: PodQuery) -> Result<Vec<PodTraffic>> {
        let mut client = self.client.clone();
        self.runtime.block_on(async move {
            let answer = client.query_pods(query);
            Ok(tokio::time::timeout(PATIENCE, answer).await??.into_inner().pods)
        })
    }

    /// Starts a trace in the background; it is active when this returns.
    pub fn trace(&self, request: StreamRequest) -> Result<Trace> {
        let mut client = self.client.clone();
        let stream = self.runtime.block_on(async move {
            anyhow::Ok(
                tokio::time::timeout(PATIENCE, client.stream_events(request)).await??.into_inner(),
            )
        })?;
        let reader = self.runtime.spawn(async move {
            let mut events = Vec::new();
            let mut stream = stream;
            while let Some(event) = stream.next().await {
                events.push(event?);
            }
            Ok(events)
        });
        Ok(Trace { reader })
    }

    /// Stops the agent and gives what the trace heard to its end.
    pub fn stop_with(mut self, trace: Trace) -> Result<Heard> {
        self.stop_agent()?;
        trace.end(&self.runtime)
    }

    /// What a trace with a duration of its own heard.
    pub fn hear(&self, trace: Trace) -> Result<Heard> {
        trace.end(&self.runtime)
    }

    /// Stops the agent.
    pub fn stop(mut self) -> Result<()> {
        self.stop_agent()
    }

    fn stop_agent(&mut self) -> Result<()> {
        let agent = self.agent.take().context("stopped twice")?;
        let report = self.runtime.block_on(self.runtime.spawn(agent.stop()))?;
        ensure!(report.unfinished.is_empty(), "tasks did not end: {:?}", report.unfinished);
        Ok(())
    }

    /// The agent's and the kernel's counters of `interface`, read while nothing moves.
    pub fn quiet_counters(&self, interface: &str) -> Result<InterfaceStatus> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut before = self.interface(interface)?;
        loop {
            std::thread::sleep(Duration::from_millis(300));
            let now = self.interface(interface)?;
            if now == before {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "{interface} is never quiet: {before:?} {now:?}");
            before = now;
        }
    }

    /// The state of `interface`.
    pub fn interface(&self, interface: &str) -> Result<InterfaceStatus> {
        let status = self.status()?;
        let names: Vec<String> = status.interfaces.iter().map(|i| i.name.clone()).collect();
        let found = status.interfaces.into_iter().find(|i| i.name == interface);
        found.with_context(|| format!("{interface} is not traced; there are {names:?}"))
    }

    /// Waits until `interface` is attached.
    pub fn wait_attached(&self, interface: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.interface(interface).is_err() {
            ensure!(Instant::now() < deadline, "{interface} is not attached");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Fails with the numbers unless the agent and the kernel agree on `interface`.
pub fn assert_exact(now: &InterfaceStatus) -> Result<()> {
    let ours = (now.ingress_packets, now.ingress_bytes, now.egress_packets, now.egress_bytes);
    let kernel = (
        now.kernel_ingress_packets,
        now.kernel_ingress_bytes,
        now.kernel_egress_packets,
        now.kernel_egress_bytes,
    );
    ensure!(
        ours == kernel,
        "{}: orb8 {ours:?}, kernel {kernel:?} (ingress packets, bytes, egress packets, bytes)",
        now.name
    );
    Ok(())
}

/// A trace that is being heard.
pub struct Trace {
    reader: JoinHandle<Result<Vec<Event>, tonic::Status>>,
}

impl Trace {
    fn end(self, runtime: &Runtime) -> Result<Heard> {
        let events = runtime.block_on(async { tokio::time::timeout(PATIENCE, self.reader).await });
        let mut heard = Heard::default();
        for event in events??? {
            match event.event {
                Some(event::Event::NetworkFlow(flow)) => heard.flows.push(flow),
                Some(event::Event::Loss(report)) => heard.report = Some(report),
                Some(event::Event::NodeStatus(_)) => heard.statuses += 1,
                None => bail!("an event without content"),
            }
        }
        Ok(heard)
    }
}

/// What a subscriber heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// Records, in order.
    pub flows: Vec<NetworkFlow>,
    /// The last loss report.
    pub report: Option<LossReport>,
    /// Node states.
    pub statuses: usize,
}

/// Packets and bytes.
pub type Sum = (u64, u64);

impl Heard {
    /// Sums per interface and direction over all records.
    pub fn sums(&self) -> BTreeMap<(String, Direction), Sum> {
        let mut sums = BTreeMap::new();
        for flow in &self.flows {
            let sum: &mut Sum = sums.entry((flow.interface.clone(), flow.direction())).or_default();
            sum.0 += flow.packets;
            sum.1 += flow.bytes;
        }
        sums
    }

    /// The sum for one interface, direction as the workload sees it.
    pub fn sum(&self, interface: &str, direction: Direction) -> Sum {
        self.sums().get(&(interface.to_owned(), direction)).copied().unwrap_or_default()
    }
}

/// The address of a server in `pod`, IPv4 or IPv6.
pub fn address(pod: &Pod, ipv6: bool, port: u16) -> SocketAddr {
    if ipv6 { (pod.ipv6(), port).into() } else { (pod.ipv4(), port).into() }
}
