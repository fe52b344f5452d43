//! The agent's gRPC port: its own service, and health and reflection beside it.

use std::{future::Future, io, time::Duration};

use orb8_proto::{FILE_DESCRIPTOR_SET, orbit_service_server::OrbitServiceServer};
use orb8_transport::{Health, Limits, ServerTls, incoming, services};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;

use crate::{api_server::Api, status::StatusBoard};

/// How often it is looked whether the agent is ready.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Serves `api` on a bound socket until `token` says stop; then clients that take their last
/// records have half of the agent's time to end for it.
pub(crate) fn serve(
    api: Api,
    listener: std::net::TcpListener,
    tls: Option<ServerTls>,
    token: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send> {
    let limits = Limits::default();
    let incoming = incoming(tokio::net::TcpListener::from_std(listener)?, tls, &limits);
    let (health, routes) = services(&[FILE_DESCRIPTOR_SET]).map_err(io::Error::other)?;
    Ok(async move {
        let (port, grace) = (incoming.port(), api.config.shutdown_deadline / 2);
        let telling = tell(health, api.status.clone(), token.clone());
        let service = OrbitServiceServer::new(api).max_decoding_message_size(limits.request_bytes);
        let serving = limits
            .server()
            .add_routes(routes.add_service(service))
            .serve_with_incoming_shutdown(incoming, token.clone().cancelled_owned());
        let (served, ()) = tokio::join!(port.drain(serving, token, grace), telling);
        if let Err(error) = served {
            tracing::error!("gRPC: {error}");
        }
    })
}

/// Says by gRPC health what `/readyz` says: whether a signal delivers.
async fn tell(health: Health, status: StatusBoard, token: CancellationToken) {
    let service = OrbitServiceServer::<Api>::NAME;
    let mut told = None;
    let mut interval = tokio::time::interval(HEALTH_INTERVAL);
    while token.run_until_cancelled(interval.tick()).await.is_some() {
        let ready = status.ready();
        if told != Some(ready) {
            health.set(service, ready).await;
            told = Some(ready);
        }
    }
    health.end(&[service]).await;
}
