//! The agent's gRPC port: its own service, and health and reflection beside it.

use std::{future::Future, io};

use orb8_proto::{FILE_DESCRIPTOR_SET, orbit_service_server::OrbitServiceServer};
use orb8_transport::{Limits, ServerTls, incoming};
use tokio_util::sync::CancellationToken;

use crate::api_server::Api;

/// Serves `api` on a bound socket until `token` says stop; then clients that take their last
/// records have half of the agent's time to end for it. Health says whether a signal delivers.
pub(crate) fn serve(
    api: Api,
    listener: std::net::TcpListener,
    tls: Option<ServerTls>,
    token: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send> {
    let limits = Limits::default();
    let incoming = incoming(tokio::net::TcpListener::from_std(listener)?, tls, &limits);
    let (status, grace) = (api.status.clone(), api.config.shutdown_deadline / 2);
    orb8_transport::serve(
        OrbitServiceServer::new(api).max_decoding_message_size(limits.request_bytes),
        FILE_DESCRIPTOR_SET,
        (incoming, limits),
        move || status.ready(),
        (token, grace),
    )
}
