//! How much one side lets the other use, in one place.

use std::time::Duration;

use tonic::transport::{Endpoint, Server};

/// Limits of a server's port and of a client's connections. The defaults suit an agent; each says
/// what happens where it is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a client to get from its TCP connection to the first bytes of HTTP/2, TLS included.
    /// Then the connection is closed.
    pub handshake_time: Duration,
    /// Connections on that way at a time. One more displaces the oldest of the network that has
    /// the most, so that whoever opens many gets in his own way first.
    pub handshakes: usize,
    /// Connections at a time. One more is closed at once.
    pub connections: usize,
    /// Streams that a connection may have open. One more is refused by HTTP/2, and clients wait.
    pub streams_per_connection: u32,
    /// Requests of a connection that are worked on at a time. More wait.
    pub requests_per_connection: usize,
    /// Bytes of a request's headers. More is refused by HTTP/2 with status 431.
    pub header_bytes: u32,
    /// Bytes of a request's message. More is answered `OutOfRange`.
    pub request_bytes: usize,
    /// Bytes of an answer's message that a client takes. More is `OutOfRange` there.
    pub answer_bytes: usize,
    /// A peer is probed this often, so that one that is gone without a word is found out.
    pub keepalive_interval: Duration,
    /// Without an answer to a probe for this long, the connection is given up with its streams.
    pub keepalive_time: Duration,
    /// A connection this old takes no more requests, and its streams go on to their end: which is
    /// when certificates that were changed meanwhile count. `None`: connections last. A client may
    /// see a request fail that it makes just then, and tonic's does not make it again.
    pub connection_age: Option<Duration>,
    /// For a client to resolve a name, connect and have TLS.
    pub connect_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_time: Duration::from_secs(10),
            handshakes: 512,
            connections: 1024,
            streams_per_connection: 256,
            requests_per_connection: 64,
            header_bytes: 16 << 10,
            request_bytes: 1 << 20,
            answer_bytes: 256 << 20,
            keepalive_interval: Duration::from_secs(20),
            keepalive_time: Duration::from_secs(10),
            connection_age: None,
            connect_time: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// A server under these limits. Those on messages are its services' own:
    /// `OrbitServiceServer::new(api).max_decoding_message_size(limits.request_bytes)`; those on
    /// connections are [`crate::incoming()`]'s.
    pub fn server(&self) -> Server {
        let server = Server::builder()
            .concurrency_limit_per_connection(self.requests_per_connection)
            .max_concurrent_streams(self.streams_per_connection)
            .http2_keepalive_interval(Some(self.keepalive_interval))
            .http2_keepalive_timeout(Some(self.keepalive_time))
            .http2_max_header_list_size(self.header_bytes);
        match self.connection_age {
            Some(age) => server.max_connection_age(age),
            None => server,
        }
    }

    /// `endpoint` under these limits. Messages are limited by the client made of its channel:
    /// `OrbitServiceClient::new(channel).max_decoding_message_size(limits.answer_bytes)`.
    pub fn endpoint(&self, endpoint: Endpoint) -> Endpoint {
        endpoint
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_time)
            .keep_alive_while_idle(true)
            .http2_max_header_list_size(self.header_bytes)
    }
}
