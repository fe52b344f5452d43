//! A gRPC server on a real port, and what its clients do.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use orb8_transport::{
    Address, ClientTls, ConnectError, Connector, Health, Limits, Peer, Port, Refused, ServerTls,
    broken_by, incoming, peer, services,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status, Streaming,
    service::{InterceptorLayer, interceptor::InterceptedService},
    transport::Channel,
};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

/// Long enough for a loaded machine; nothing waits that long otherwise.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// What the server noted of a request: whom it was from, and the token with it.
pub(crate) type Seen = (Peer, Option<String>);

pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) port: Port,
    pub(crate) health: Health,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

impl Served {
    pub(crate) async fn start(tls: Option<ServerTls>, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = incoming(listener, tls, &limits);
        let port = incoming.port();
        let (health, routes) = services(&[orb8_proto::FILE_DESCRIPTOR_SET]).unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let note = Arc::clone(&seen);
        let note = InterceptorLayer::new(move |request: Request<()>| {
            let token = request.metadata().get("authorization");
            let token = token.map(|token| token.to_str().unwrap().to_owned());
            note.lock().unwrap().push((peer(&request).unwrap().clone(), token));
            Ok::<_, Status>(request)
        });
        let stop = CancellationToken::new();
        let (token, gate) = (stop.clone(), port.clone());
        let task = tokio::spawn(async move {
            let serving = limits
                .server()
                .layer(note)
                .add_routes(routes)
                .serve_with_incoming_shutdown(incoming, token.clone().cancelled_owned());
            gate.drain(serving, token, Duration::from_secs(1)).await.unwrap();
        });
        Self { address, port, health, seen, stop, task }
    }

    pub(crate) fn refused(&self, reason: Refused) -> u64 {
        self.port.refused().get(&reason).copied().unwrap_or_default()
    }

    /// The server's last note.
    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }

    pub(crate) async fn connect(&self, tls: Option<ClientTls>) -> Result<Channel, ConnectError> {
        Connector::new(tls, patient()).connect(&Address::from(self.address)).await
    }

    /// Connects and asks; the error is what a person would be told.
    pub(crate) async fn ask(&self, tls: Option<ClientTls>) -> Result<(), String> {
        let channel = self.connect(tls).await.map_err(|error| error.to_string())?;
        check(channel).await
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.expect("the server ends").unwrap();
    }
}

/// A client's limits that no load of the machine meets.
fn patient() -> Limits {
    Limits { connect_time: DEADLINE, ..Limits::default() }
}

pub(crate) async fn check(channel: Channel) -> Result<(), String> {
    told(HealthClient::new(channel).check(HealthCheckRequest::default()).await)
}

pub(crate) async fn check_with<I: tonic::service::Interceptor>(
    channel: Channel,
    interceptor: I,
) -> Result<(), String> {
    let mut client = HealthClient::new(InterceptedService::new(channel, interceptor));
    told(client.check(HealthCheckRequest::default()).await)
}

fn told<T>(answer: Result<T, Status>) -> Result<(), String> {
    answer
        .map(drop)
        .map_err(|status| broken_by(&status).unwrap_or_else(|| status.message().to_owned()))
}

/// A stream that says what the server's health is, now and whenever it changes.
pub(crate) async fn watch(channel: Channel) -> Streaming<HealthCheckResponse> {
    let mut stream =
        HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    stream
}

/// Waits for `what` to hold.
pub(crate) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}
