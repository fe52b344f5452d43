//! The server's gRPC port: its own service, and health and reflection beside it.
//!
//! Health and reflection answer whoever has a connection: one says whether the server works, which
//! those who restart and route to it need, the other what its interface is, which is in the public
//! source, and lets a client find out how to ask. Neither knows anything of the cluster.

use std::{future::Future, io, time::Duration};

use orb8_proto::{FILE_DESCRIPTOR_SET, orbit_service_server::OrbitServiceServer};
use orb8_transport::{Health, Incoming, Limits, services};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;

use crate::api::Api;

/// How often it is looked whether the server knows any agents.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// What clients may use. Questions are small, and read before it is known who asks: so many at a time
/// of so many connections are what strangers can make a server keep.
pub(crate) fn limits() -> Limits {
    Limits { streams_per_connection: 128, request_bytes: 64 << 10, ..Limits::default() }
}

/// Serves `api` until `token` says stop; then clients that take their last records have half of the
/// server's time to end for it.
pub(crate) fn serve(
    api: Api,
    incoming: Incoming,
    token: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send> {
    let limits = limits();
    let (health, routes) = services(&[FILE_DESCRIPTOR_SET]).map_err(io::Error::other)?;
    Ok(async move {
        let (port, grace) = (incoming.port(), api.config.shutdown_deadline / 2);
        let telling = tell(health, api.clone(), token.clone());
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

/// Says by gRPC health what `/readyz` says.
async fn tell(health: Health, api: Api, token: CancellationToken) {
    let service = OrbitServiceServer::<Api>::NAME;
    let mut told = None;
    let mut interval = tokio::time::interval(HEALTH_INTERVAL);
    while token.run_until_cancelled(interval.tick()).await.is_some() {
        let ready = api.ready().is_ok();
        if told != Some(ready) {
            health.set(service, ready).await;
            told = Some(ready);
        }
    }
    health.end(&[service]).await;
}
