//! A client of an agent's service and of its metrics, inside the node's network namespace.

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use orb8_proto::{
    Event, FlowQuery, InterfaceStatus, NetworkFlow, PodQuery, PodTraffic, StatusRequest,
    StatusResponse, StreamRequest, orbit_service_client::OrbitServiceClient,
};
use orb8_testkit::Netns;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    time::timeout,
};
use tonic::{Response, Status, Streaming, transport::Channel};

use crate::heard::{Quiet, Trace};

/// How long nothing has to move for an interface to be quiet.
const QUIET: Duration = Duration::from_millis(300);
/// No single question to an agent takes longer than this in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks one agent.
#[derive(Clone)]
pub struct Client {
    runtime: Arc<Runtime>,
    client: OrbitServiceClient<Channel>,
}

/// A runtime whose threads are in `netns`; the thread that waits for it is not.
pub(crate) fn runtime_in(netns: Netns) -> Result<Arc<Runtime>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(move || netns.enter().expect("the node's namespace is there"))
        .build()?;
    Ok(Arc::new(runtime))
}

impl Client {
    pub(crate) fn new(runtime: Arc<Runtime>, channel: Channel) -> Self {
        let client = OrbitServiceClient::new(channel).max_decoding_message_size(256 << 20);
        Self { runtime, client }
    }

    /// Where everything of it runs.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn runtime_handle(&self) -> Arc<Runtime> {
        Arc::clone(&self.runtime)
    }

    /// One question, with its answer as the agent gave it.
    pub fn call<T, F>(
        &self,
        ask: impl FnOnce(OrbitServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let answer = ask(self.client.clone());
        self.runtime.block_on(async {
            match timeout(PATIENCE, answer).await {
                Ok(answer) => answer.map(Response::into_inner),
                Err(late) => Err(Status::deadline_exceeded(late.to_string())),
            }
        })
    }

    /// The agent's state now.
    pub fn status(&self) -> Result<StatusResponse> {
        let ask = |mut c: OrbitServiceClient<_>| async move {
            c.get_agent_status(StatusRequest::default()).await
        };
        Ok(self.call(ask)?)
    }

    /// Flows of a window.
    pub fn flows(&self, query: FlowQuery) -> Result<Vec<NetworkFlow>> {
        let ask = |mut c: OrbitServiceClient<_>| async move { c.query_flows(query).await };
        Ok(self.call(ask)?.flows)
    }

    /// Asks again and again until flows and status are as `until` says. `what` is what was waited
    /// for in vain.
    pub fn wait_for(
        &self,
        what: &str,
        until: impl Fn(&[NetworkFlow], &StatusResponse) -> bool,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            let flows = self.flows(FlowQuery { limit: 100_000, ..FlowQuery::default() })?;
            let status = self.status()?;
            if until(&flows, &status) {
                return Ok(());
            }
            let sources = (status.pod_source, status.runtime_source);
            ensure!(began.elapsed() < PATIENCE, "not in time: {what}; {sources:?}, {flows:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Totals of a window.
    pub fn pods(&self, query: PodQuery) -> Result<Vec<PodTraffic>> {
        let ask = |mut c: OrbitServiceClient<_>| async move { c.query_pods(query).await };
        Ok(self.call(ask)?.pods)
    }

    /// Starts a trace that nobody reads yet; it is active when this returns.
    pub fn open(&self, request: StreamRequest) -> Result<Streaming<Event>, Status> {
        self.call(|mut c| async move { c.stream_events(request).await })
    }

    /// Reads a trace in the background, to its end.
    #[must_use]
    pub fn listen(&self, stream: Streaming<Event>) -> Trace {
        Trace::read(&self.runtime, stream)
    }

    /// Starts a trace and reads it in the background; it is active when this returns.
    pub fn trace(&self, request: StreamRequest) -> Result<Trace> {
        Ok(self.listen(self.open(request)?))
    }

    /// What a trace heard to its end, for which it must have a reason.
    pub fn hear(&self, trace: Trace) -> Result<crate::Heard> {
        trace.end(&self.runtime)
    }

    /// Status code and body of `GET path`.
    pub fn get(&self, at: SocketAddr, path: &str) -> Result<(u16, String)> {
        self.get_as(at, path, "*/*")
    }

    /// Status code and body of `GET path` by a client that accepts `media_types`.
    pub fn get_as(&self, at: SocketAddr, path: &str, media_types: &str) -> Result<(u16, String)> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {at}\r\nAccept: {media_types}\r\nConnection: close\r\n\r\n"
        );
        let answer = self.send(at, request.as_bytes())?;
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the HTTP header")?;
        let code = head.split(' ').nth(1).with_context(|| format!("no status in {head:?}"))?;
        Ok((code.parse()?, body.to_owned()))
    }

    /// Writes `bytes` to a port of the node and gives what is answered until the other end closes.
    pub fn send(&self, at: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
        let bytes = bytes.to_vec();
        let exchange = self.runtime.spawn(async move {
            let mut stream = TcpStream::connect(at).await?;
            stream.write_all(&bytes).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            anyhow::Ok(answer)
        });
        self.runtime.block_on(async { timeout(PATIENCE, exchange).await })??
    }

    /// Writes `bytes` to a port of the node and does not care what becomes of it.
    pub fn throw(&self, at: SocketAddr, bytes: &[u8]) -> Result<()> {
        let bytes = bytes.to_vec();
        let mut stream = self.runtime.block_on(self.runtime.spawn(TcpStream::connect(at)))??;
        self.runtime.block_on(async {
            let throw = async {
                stream.write_all(&bytes).await?;
                stream.shutdown().await?;
                stream.read_to_end(&mut Vec::new()).await
            };
            // It may be refused at any point, or be waited for: both are right.
            let _answer = timeout(Duration::from_millis(300), throw).await;
        });
        Ok(())
    }

    /// Every sample of a scrape, by its name with labels.
    pub fn metrics(&self, at: SocketAddr) -> Result<BTreeMap<String, f64>> {
        let (code, text) = self.get(at, "/metrics")?;
        ensure!(code == 200, "/metrics answered {code}: {text}");
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let parsed = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("{line:?}"))?;
            Ok((name.to_owned(), value.parse().with_context(|| format!("{line:?}"))?))
        });
        parsed.collect()
    }

    /// The agent's and the kernel's counters of `interface`, read while nothing moves.
    pub fn quiet_counters(&self, interface: &str) -> Result<Quiet> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut before = self.interface(interface)?;
        loop {
            std::thread::sleep(QUIET / 2);
            let within_ns = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
            std::thread::sleep(QUIET / 2);
            let counters = self.interface(interface)?;
            if counters == before {
                return Ok(Quiet { counters, within_ns: i64::try_from(within_ns)? });
            }
            ensure!(
                Instant::now() < deadline,
                "{interface} is never quiet: {before:?} {counters:?}"
            );
            before = counters;
        }
    }

    /// Does something between the same two packets of `interface` as the reading of its counters:
    /// pods talk by themselves (ARP, neighbour discovery, router solicitations).
    pub fn while_quiet<T>(
        &self,
        interface: &str,
        act: impl Fn() -> Result<T>,
    ) -> Result<(T, Quiet)> {
        loop {
            let before = self.quiet_counters(interface)?;
            let done = act()?;
            if self.interface(interface)? == before.counters {
                return Ok((done, before));
            }
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
