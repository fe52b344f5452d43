//! One service on a port, with health and reflection beside it, from its first connection to the end
//! of its last.

use std::{convert::Infallible, future::Future, io, time::Duration};

use tokio_util::sync::CancellationToken;
use tonic::{body::Body, server::NamedService};
use tower::Service;

use crate::{Health, Incoming, Limits, services};

/// How often it is looked whether the service works.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Serves `service`, whose interface is in `descriptors`, until `stop` says so; then clients that take
/// their last records have `grace` to end for it. gRPC health says what `works` says.
///
/// Health and reflection answer whoever has a connection.
///
/// # Errors
/// When the descriptor set is broken.
pub fn serve<S>(
    service: S,
    descriptors: &[u8],
    (incoming, limits): (Incoming, Limits),
    works: impl Fn() -> bool + Send + 'static,
    (stop, grace): (CancellationToken, Duration),
) -> io::Result<impl Future<Output = ()> + Send>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let (health, routes) = services(&[descriptors]).map_err(io::Error::other)?;
    Ok(async move {
        let port = incoming.port();
        let telling = tell(health, S::NAME, works, stop.clone());
        let serving = limits
            .server()
            .add_routes(routes.add_service(service))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let (served, ()) = tokio::join!(port.drain(serving, stop, grace), telling);
        if let Err(error) = served {
            tracing::error!("gRPC: {error}");
        }
    })
}

async fn tell(health: Health, name: &str, works: impl Fn() -> bool, stop: CancellationToken) {
    let mut told = None;
    let mut interval = tokio::time::interval(HEALTH_INTERVAL);
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        let works = works();
        if told != Some(works) {
            health.set(name, works).await;
            told = Some(works);
        }
    }
    health.end(&[name]).await;
}
