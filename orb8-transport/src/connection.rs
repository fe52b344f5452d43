//! A client's connection, from the moment it is known to be one: TLS done, HTTP/2 begun.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use crate::{certificate::Identity, handshake::PREFACE, port::Open};

/// Who is at the other end. Every request carries it: see [`peer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Address of the client, or of what stands between.
    pub remote: SocketAddr,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Holder of the client's certificate, which was verified: it chains to one of the CAs that
    /// stood in the file when the connection was made, held at that time, and the client has its
    /// key. `None`: the client showed none.
    pub identity: Option<Arc<Identity>>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(identity) => write!(f, "{identity} ({})", self.remote),
            None => write!(f, "{}", self.remote),
        }
    }
}

/// Who sent `request`; `None` for one that came over something else, such as an in-memory pipe.
#[must_use]
pub fn peer<T>(request: &tonic::Request<T>) -> Option<&Peer> {
    request.extensions().get()
}

/// What is below HTTP/2.
pub(crate) enum Io {
    /// Nothing.
    Plain(TcpStream),
    /// TLS, in a box for being large.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection whose client has sent the preface of HTTP/2.
pub struct Connection {
    io: Io,
    peer: Peer,
    /// How much of the preface, which was read to see whether it is one, was given back. Every
    /// preface is the same, so there is nothing to keep.
    given_back: usize,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _open: Open,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(io: Io, peer: Peer, cut: WaitForCancellationFutureOwned, open: Open) -> Self {
        Self { io, peer, given_back: 0, cut: Box::pin(cut), _open: open }
    }

    /// Who is at the other end.
    #[must_use]
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connection {
    /// Fails once the connection was cut, and wakes the task then. Asked for by writes as well: a
    /// peer that takes nothing more keeps HTTP/2 from reading.
    fn whole(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.whole(cx)?;
        if let Some(rest) = PREFACE.get(self.given_back..).filter(|rest| !rest.is_empty()) {
            let share = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..share]);
            self.given_back += share;
            return Poll::Ready(Ok(()));
        }
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.whole(cx)?;
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole(cx)?;
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole(cx)?;
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.whole(cx)?;
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
}
