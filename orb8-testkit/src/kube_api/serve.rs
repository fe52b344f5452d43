//! The port and its connections, which can be cut.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use anyhow::{Context, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{Shared, answer, lock};
use crate::Netns;

/// Serves on the calling thread until `stop`; tells once where.
pub(super) fn run(
    shared: Arc<Shared>,
    netns: Option<Netns>,
    address: Ipv4Addr,
    stop: &CancellationToken,
    tell: &SyncSender<Result<SocketAddr>>,
) {
    let bound = (|| {
        if let Some(netns) = netns {
            netns.enter()?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind((address, 0)))?;
        let addr = listener.local_addr()?;
        anyhow::Ok((runtime, listener, addr))
    })();
    match bound {
        Ok((runtime, listener, addr)) => {
            let _started = tell.send(Ok(addr));
            // Whatever still runs ends with the runtime.
            runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    result = accept(&shared, listener, addr) => if let Err(error) = result {
                        eprintln!("orb8-testkit: Kubernetes API: {error:#}");
                    }
                }
            });
        }
        Err(error) => {
            let _started = tell.send(Err(error.context("cannot start the Kubernetes API")));
        }
    }
}

async fn accept(shared: &Arc<Shared>, listener: TcpListener, addr: SocketAddr) -> Result<()> {
    let mut accepting = shared.accepting.subscribe();
    let mut listener = Some(listener);
    loop {
        let open = *accepting.borrow_and_update();
        if open && listener.is_none() {
            listener = Some(TcpListener::bind(addr).await.with_context(|| addr.to_string())?);
        } else if !open {
            listener = None;
        }
        let Some(port) = &listener else {
            accepting.changed().await?;
            continue;
        };
        tokio::select! {
            // Nobody gets in any more once the port is to be closed.
            biased;
            changed = accepting.changed() => changed?,
            accepted = port.accept() => {
                let (stream, _) = accepted?;
                tokio::spawn(connection(Arc::clone(shared), stream));
            }
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    // Another descriptor of the same socket, to say how it ends while hyper owns the first.
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let cut = lock(&shared.cut).child_token();
    let tls = lock(&shared.tls).clone();
    let serving = async {
        match tls {
            None => serve(&shared, stream, &cut).await,
            // A client that does not trust the certificate is that client's to tell of.
            Some(tls) => {
                if let Ok(stream) = tls.acceptor.accept(stream).await {
                    serve(&shared, stream, &cut).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = cut.cancelled() => {
            // With no time to linger, the close is a reset.
            let _gone = rustix::net::sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO));
        }
        () = serving => {}
    }
}

async fn serve<S>(shared: &Arc<Shared>, stream: S, cut: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let (shared, cut) = (Arc::clone(shared), cut.clone());
        async move { Ok::<_, Infallible>(answer::answer(shared, request, cut).await) }
    });
    let serving =
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    // A client that hangs up is no news.
    let _ended = serving.await;
}
