//! The metrics port: HTTP/1 for anybody, so that nobody can keep others from it. Kubelets ask here
//! whether to restart the process.

mod crowd;

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::crowd::{Crowd, Place};

/// For a request to come whole, and for a connection to be without one.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// After that a connection takes no more requests.
const LIFE: Duration = Duration::from_secs(60);
/// For an answer to be taken then. Whoever reads slower is cut off.
const GRACE: Duration = Duration::from_secs(10);
/// For answers to leave at the end of the process.
const FAREWELL: Duration = Duration::from_secs(2);
/// Most bytes of a request's headers.
const HEADER_BYTES: usize = 16 << 10;
/// After a failed accept, which mostly means that there are no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` until `token` says stop.
pub async fn serve_router(router: Router, listener: TcpListener, token: CancellationToken) {
    let (mut connections, crowd) = (JoinSet::new(), Arc::new(Crowd::default()));
    loop {
        tokio::select! {
            () = token.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            new = listener.accept() => match new {
                Ok((tcp, remote)) => crowd.let_in(remote.ip(), |place| {
                    connections.spawn(serve(tcp, place, router.clone(), token.clone()))
                }),
                Err(error) => {
                    tracing::warn!("metrics: cannot accept connections: {error}");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let last = async { while connections.join_next().await.is_some() {} };
    let _cut = timeout(FAREWELL, last).await;
}

async fn serve(tcp: TcpStream, place: Place, router: Router, token: CancellationToken) {
    let service = service_fn(|request| {
        place.asks();
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(tcp), service);
    tokio::pin!(connection);
    tokio::select! {
        // A client that hangs up, or never asked, is no news.
        _ended = &mut connection => return,
        () = sleep(LIFE) => {}
        () = token.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _cut = timeout(GRACE, connection).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn who_asks_is_answered_however_many_say_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (token, router) =
            (CancellationToken::new(), Router::new().route("/", get(|| async { "well" })));
        let serving = tokio::spawn(serve_router(router, listener, token.clone()));
        let mut silent = Vec::new();
        for n in 0..2 * crowd::CONNECTIONS {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.write_all(&b"GET / HTTP/1.1\r\nX: "[..n % 10]).await.unwrap();
            silent.push(tcp);
        }
        let mut good = TcpStream::connect(address).await.unwrap();
        good.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, good.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("well"), "{answer}");
        // The oldest made room for it.
        let closed = timeout(PATIENCE, silent[0].read(&mut [0])).await.unwrap();
        assert!(!matches!(closed, Ok(1..)), "{closed:?}");
        token.cancel();
        timeout(PATIENCE, serving).await.unwrap().unwrap();
    }
}
