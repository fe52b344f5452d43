//! The server's gRPC port: its own service, and health and reflection beside it.
//!
//! Health and reflection answer whoever has a connection: one says whether the server works, which
//! those who restart and route to it need, the other what its interface is, which is in the public
//! source, and lets a client find out how to ask. Neither knows anything of the cluster.

use std::{future::Future, io};

use orb8_proto::{FILE_DESCRIPTOR_SET, orbit_service_server::OrbitServiceServer};
use orb8_transport::{Incoming, Limits};
use tokio_util::sync::CancellationToken;

use crate::api::Api;

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
    let (limits, grace) = (limits(), api.config.shutdown_deadline / 2);
    let of_health = api.clone();
    orb8_transport::serve(
        OrbitServiceServer::new(api).max_decoding_message_size(limits.request_bytes),
        FILE_DESCRIPTOR_SET,
        (incoming, limits),
        move || of_health.ready().is_ok(),
        (token, grace),
    )
}
