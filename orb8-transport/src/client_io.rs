//! A client's connection, which says what is wrong with its server in words: what lies above keeps
//! the text of an error and nothing else.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
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

pub(crate) struct ClientIo {
    io: Io,
    /// Whether the server has said anything yet.
    greeted: bool,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientIo {
    pub(crate) const fn plain(tcp: TcpStream) -> Self {
        Self { io: Io::Plain(tcp), greeted: false }
    }

    pub(crate) const fn tls(tls: Box<TlsStream<TcpStream>>) -> Self {
        Self { io: Io::Tls(tls), greeted: false }
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
        let before = buf.filled().len();
        let read = match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        };
        if let Poll::Ready(Ok(())) = read
            && !self.greeted
            && buf.filled().len() > before
        {
            self.greeted = true;
            greeting(&buf.filled()[before..])
                .map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong))?;
        }
        read.map_err(in_words)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
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
    fn servers_are_known_by_how_they_begin() {
        assert!(greeting(&[0, 0, 6, SETTINGS, 0]).is_ok());
        assert!(matches!(greeting(&[0x15, 3, 3, 0, 2, 2, 70]), Err(ConnectError::TlsServer)));
        assert!(matches!(greeting(b"HTTP/1.1 400"), Err(ConnectError::NotHttp2)));
        assert!(greeting(&[0]).is_ok(), "too little to know");
    }
}
