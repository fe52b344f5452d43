//! The three paths of a daemon's metrics port.

use std::{future::Future, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    families::{Scrape, encode},
    format::Format,
};

/// What a daemon says of itself.
pub trait Source: Send + Sync + 'static {
    /// What there is to tell now.
    fn scrape(&self) -> impl Future<Output = Box<dyn Scrape>> + Send;

    /// Whether it does its work.
    ///
    /// # Errors
    /// Why not, a line for each reason.
    fn ready(&self) -> Result<(), String>;
}

/// Serves `source` until `token` says stop.
pub async fn serve(source: impl Source, listener: TcpListener, token: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        // Alive means: this process can answer. A probe that fails under load makes restarts.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::new(source));
    crate::serve_router(router, listener, token).await;
}

async fn metrics<S: Source>(State(source): State<Arc<S>>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let format = Format::asked(&accepted.collect::<Vec<_>>().join(","));
    match encode(source.scrape().await) {
        Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, format.content_type())], format.of(text)),
        Err(error) => {
            let text = format!("metrics cannot be written: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], text)
        }
    }
}

async fn ready<S: Source>(State(source): State<Arc<S>>) -> impl IntoResponse {
    match source.ready() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons),
    }
}
