//! A client's connection, which says what is wrong with its server in words: what lies above keeps
//! the text of an error and nothing else.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::{
    connect_error::{ConnectError, alert_text, rustls_error},
    handshake::TLS_ALERT,
};

/// Type of the frame that a server of HTTP/2 begins with, SETTINGS, in its fourth byte (RFC 9113,
/// section 3.4).
const SETTINGS: u8 = 4;
/// Type of the frame that a request begins with.
const HEADERS: u8 = 1;
/// Bytes before the client's first frame (RFC 9113, section 3.4), and before each frame's content.
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;

pub(crate) struct ClientIo {
    io: Io,
    /// Whether the server has said anything yet.
    greeted: bool,
    /// Whether a request was made.
    asked: Asked,
    /// That there will be nothing to read, and who wants to know. Kept until a request was made,
    /// which is then told why: one that came after the connection's end would only hear of that.
    end: Option<(io::Result<()>, Waker)>,
}

/// Looks for the first request among the frames that are sent.
#[derive(Debug)]
struct Asked {
    /// Bytes until the next frame.
    skip: usize,
    head: Vec<u8>,
    found: bool,
}

impl Asked {
    const fn new() -> Self {
        Self { skip: PREFACE, head: Vec::new(), found: false }
    }

    fn see(&mut self, mut bytes: &[u8]) {
        while !self.found && !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            (self.skip, bytes) = (self.skip - skipped, &bytes[skipped..]);
            let missing = (FRAME_HEAD - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if let [high, middle, low, kind, ..] = self.head[..]
                && self.head.len() == FRAME_HEAD
            {
                self.found = kind == HEADERS;
                self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.head.clear();
            }
        }
    }
}

enum Io {
    Plain(Carrier),
    Tls(Box<TlsStream<Carrier>>),
}

/// What bytes go over.
pub(crate) enum Carrier {
    Tcp(TcpStream),
    Other(Box<dyn Duplex>),
}

/// Bytes in both directions.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Carrier {
    fn io(&mut self) -> Pin<&mut dyn Duplex> {
        match self {
            Self::Tcp(io) => Pin::new(io),
            Self::Other(io) => Pin::new(&mut **io),
        }
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}

impl ClientIo {
    pub(crate) const fn plain(carrier: Carrier) -> Self {
        Self::new(Io::Plain(carrier))
    }

    pub(crate) const fn tls(tls: Box<TlsStream<Carrier>>) -> Self {
        Self::new(Io::Tls(tls))
    }

    const fn new(io: Io) -> Self {
        Self { io, greeted: false, asked: Asked::new(), end: None }
    }

    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        };
        if let Poll::Ready(Ok(())) = read
            && !self.greeted
            && buf.filled().len() > before
        {
            if let Err(wrong) = greeting(&buf.filled()[before..]) {
                buf.set_filled(before);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, wrong)));
            }
            self.greeted = true;
        }
        // What it said may have been lost on the way, with what it was not asked for.
        let is_over = buf.filled().len() == before && buf.remaining() > 0;
        if let (Poll::Ready(Ok(())), Io::Plain(_)) = (&read, &self.io)
            && is_over
            && !self.greeted
        {
            let silent = io::Error::new(io::ErrorKind::UnexpectedEof, ConnectError::Silent);
            return Poll::Ready(Err(silent));
        }
        read.map_err(in_words)
    }
}

/// What is wrong with a server that begins like this, if anything.
fn greeting(bytes: &[u8]) -> Result<(), ConnectError> {
    match bytes {
        [TLS_ALERT, 3, ..] => Err(ConnectError::TlsServer),
        [_, _, _, kind, ..] if *kind != SETTINGS => Err(ConnectError::NotHttp2),
        _ => Ok(()),
    }
}

/// A server's alert, in words.
fn in_words(error: io::Error) -> io::Error {
    match rustls_error(&error) {
        Some(rustls::Error::AlertReceived(alert)) => {
            let reason = alert_text(*alert);
            io::Error::new(error.kind(), ConnectError::Alert { reason })
        }
        _ => error,
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_asked = self.asked.found;
        if let Some((end, _)) = self.end.take_if(|_| is_asked) {
            return Poll::Ready(end);
        }
        if let Some((_, waker)) = &mut self.end {
            waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let before = buf.filled().len();
        match self.read(cx, buf) {
            Poll::Ready(read)
                if !self.greeted
                    && !self.asked.found
                    && (read.is_err() || buf.filled().len() == before) =>
            {
                self.end = Some((read, cx.waker().clone()));
                Poll::Pending
            }
            read => read,
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut written = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        };
        if !self.greeted && matches!(written, Poll::Ready(Err(_))) {
            // It is over, and why is what the reader hears.
            written = Poll::Ready(Ok(bytes.len()));
        }
        if let Poll::Ready(Ok(n)) = written {
            self.asked.see(&bytes[..n]);
        }
        if let Some((_, waker)) = self.end.as_ref().filter(|_| self.asked.found) {
            waker.wake_by_ref();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        };
        match flushed {
            Poll::Ready(Err(_)) if !self.greeted => Poll::Ready(Ok(())),
            flushed => flushed,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_is_seen_however_the_bytes_come() {
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        sent.extend([0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, HEADERS, 1, 1, 1, 1, 1]);
        let before = sent.len();
        sent.extend([0, 0, 1, HEADERS, 4, 0, 0, 0, 1, 0x82]);
        for step in 1..sent.len() {
            let mut asked = Asked::new();
            let mut seen = 0;
            for bytes in sent.chunks(step) {
                asked.see(bytes);
                seen += bytes.len();
                assert_eq!(asked.found, seen >= before + FRAME_HEAD, "{step}: {seen}");
            }
        }
    }

    #[test]
    fn servers_are_known_by_how_they_begin() {
        assert!(greeting(&[0, 0, 6, SETTINGS, 0]).is_ok());
        assert!(matches!(greeting(&[0x15, 3, 3, 0, 2, 2, 70]), Err(ConnectError::TlsServer)));
        assert!(matches!(greeting(b"HTTP/1.1 400"), Err(ConnectError::NotHttp2)));
        assert!(greeting(&[0]).is_ok(), "too little to know");
    }
}
