//! From a TCP connection to one that speaks HTTP/2, or a reason why not.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    certificate::Identity,
    connection::{Io, Peer},
};

/// What every HTTP/2 client sends first (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of whatever TLS sends first, and of an alert (RFC 8446, section 5.1).
pub(crate) const TLS_HANDSHAKE: u8 = 0x16;
pub(crate) const TLS_ALERT: u8 = 0x15;
/// A fatal `protocol_version` alert: what a plain-text client can know TLS by.
const ALERT: [u8; 7] = [TLS_ALERT, 3, 3, 0, 2, 2, 70];
/// What a TLS client can know plain text by, and a person with a browser what this is.
const NOT_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nThis port speaks gRPC in plain text.\n";
/// What a client of HTTP/1 gets.
const NOT_HTTP1: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nThis port speaks gRPC (HTTP/2).\n";
/// For a refused client to read why, and the most that is read from it meanwhile.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 64 << 10;

/// Why a connection was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refused {
    /// Plain text on a port that speaks TLS.
    PlainText,
    /// TLS on a port that speaks plain text.
    Tls,
    /// Neither: no HTTP/2 came.
    NotHttp2,
    /// TLS failed: no certificate, one that is not trusted or has expired, no common version.
    Handshake,
    /// It took longer than it may.
    TooSlow,
    /// Too many were on their way in at a time, and this was among the oldest.
    Displaced,
    /// Too many connections are open.
    TooMany,
    /// The client left without a word, as probes of a port do.
    Gone,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::PlainText,
        Self::Tls,
        Self::NotHttp2,
        Self::Handshake,
        Self::TooSlow,
        Self::Displaced,
        Self::TooMany,
        Self::Gone,
    ];

    /// A word for it, for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PlainText => "plain_text",
            Self::Tls => "tls",
            Self::NotHttp2 => "not_http2",
            Self::Handshake => "handshake",
            Self::TooSlow => "too_slow",
            Self::Displaced => "displaced",
            Self::TooMany => "too_many",
            Self::Gone => "gone",
        }
    }
}

/// A refusal, and what there is to say of it.
pub(crate) type Refusal = (Refused, String);

/// Lets a client in, within `time`.
pub(crate) async fn shake(
    tcp: TcpStream,
    remote: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    time: Duration,
) -> Result<(Io, Peer), Refusal> {
    let deadline = tokio::time::Instant::now() + time;
    let steps = async {
        let first = first_byte(&tcp).await?;
        match tls {
            Some(config) if first == TLS_HANDSHAKE => encrypted(tcp, remote, config).await,
            Some(_) => {
                farewell(tcp, &ALERT).await;
                Err((Refused::PlainText, "plain text on a port that speaks TLS".into()))
            }
            None if first == TLS_HANDSHAKE => {
                farewell(tcp, NOT_TLS).await;
                Err((Refused::Tls, "TLS on a port that speaks plain text".into()))
            }
            None => plain(tcp, remote).await,
        }
    };
    timeout_at(deadline, steps).await.unwrap_or_else(|_| {
        Err((Refused::TooSlow, format!("did not begin HTTP/2 within {} s", time.as_secs_f32())))
    })
}

async fn first_byte(tcp: &TcpStream) -> Result<u8, Refusal> {
    let mut first = [0];
    match tcp.peek(&mut first).await {
        Ok(0) => Err((Refused::Gone, "closed before it said anything".into())),
        Ok(_) => Ok(first[0]),
        Err(error) => Err((Refused::Gone, error.to_string())),
    }
}

async fn encrypted(
    tcp: TcpStream,
    remote: SocketAddr,
    config: Arc<ServerConfig>,
) -> Result<(Io, Peer), Refusal> {
    let accepting = TlsAcceptor::from(config).accept(tcp).into_fallible();
    let mut tls = match accepting.await {
        Ok(tls) => Box::new(tls),
        Err((error, tcp)) => {
            // The alert that says why is on its way; closing with unread bytes would overtake it.
            farewell(tcp, &[]).await;
            return Err((Refused::Handshake, error.to_string()));
        }
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = match certificate.map(|leaf| Identity::parse(leaf)).transpose() {
        Ok(identity) => identity.map(Arc::new),
        Err(error) => return Err((Refused::Handshake, format!("the certificate: {error}"))),
    };
    match preface(&mut tls).await {
        Ok(()) => Ok((Io::Tls(tls), Peer { remote, tls: true, identity })),
        Err(refusal) => {
            // For the client to know the end from a broken line; whoever is gone needs neither.
            let _gone = tls.shutdown().await;
            Err(refusal)
        }
    }
}

async fn plain(mut tcp: TcpStream, remote: SocketAddr) -> Result<(Io, Peer), Refusal> {
    match preface(&mut tcp).await {
        Ok(()) => Ok((Io::Plain(tcp), Peer { remote, tls: false, identity: None })),
        Err(refusal) => {
            farewell(tcp, NOT_HTTP1).await;
            Err(refusal)
        }
    }
}

/// Reads the preface, and not a byte more: byte by byte as far as it is one, so that a client that
/// sends a shorter request of HTTP/1 is not waited for.
async fn preface(io: &mut (impl AsyncRead + Unpin)) -> Result<(), Refusal> {
    let mut read = [0; PREFACE.len()];
    let mut length = 0;
    while length < PREFACE.len() {
        match io.read(&mut read[length..]).await {
            Ok(0) => return Err((Refused::Gone, "closed before it began HTTP/2".into())),
            Ok(more) => length += more,
            Err(error) => return Err((Refused::Gone, error.to_string())),
        }
        if read[..length] != PREFACE[..length] {
            let begins = String::from_utf8_lossy(&read[..length]).escape_debug().to_string();
            return Err((Refused::NotHttp2, format!("not HTTP/2: it begins with \"{begins}\"")));
        }
    }
    Ok(())
}

/// Sends last words, then waits for the client to close, a little: a connection that is closed with
/// bytes unread is reset, and the words with it.
async fn farewell(mut tcp: TcpStream, words: &[u8]) {
    let said = async {
        tcp.write_all(words).await?;
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
    };
    // A client that does not listen misses nothing that it would have heard.
    let _heard: Result<io::Result<u64>, _> = timeout(FAREWELL, said).await;
}
