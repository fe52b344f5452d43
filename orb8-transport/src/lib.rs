//! How orb8's programs reach each other: gRPC over TCP, with TLS where there are certificates.
//!
//! A server loads [`ServerTls`] and gives [`incoming()`] to tonic; every request then carries the
//! [`Peer`] that it came from. A client loads [`ClientTls`] and asks a [`Connector`] for channels.
//! Files are looked at again while a program runs: new ones count from the next connection on, and
//! those that cannot be used leave what was there in use. [`Limits`] says how much one side lets the
//! other use.
//!
//! ```no_run
//! # async fn example(stop: tokio_util::sync::CancellationToken) -> Result<(), Box<dyn std::error::Error>> {
//! use orb8_transport::{ClientAuth, Limits, ServerFiles, ServerTls, incoming, services};
//!
//! let limits = Limits::default();
//! let tls = ServerTls::load(ServerFiles {
//!     certificate: "/tls/tls.crt".into(),
//!     key: "/tls/tls.key".into(),
//!     client_ca: Some("/tls/ca.crt".into()),
//!     client_auth: ClientAuth::Required,
//! })?;
//! let listener = tokio::net::TcpListener::bind("[::]:8080").await?;
//! let incoming = incoming(listener, Some(tls), &limits);
//! let port = incoming.port();
//! let (health, routes) = services(&[])?;
//! let serving = limits
//!     .server()
//!     .add_routes(routes)
//!     .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
//! port.drain(serving, stop, std::time::Duration::from_secs(4)).await?;
//! # health.end(&[]).await;
//! # Ok(())
//! # }
//! ```
//!
//! What is verified is verified by rustls and webpki, there is no way around it, and TLS is 1.3 or
//! 1.2.

mod address;
mod args;
mod bearer;
mod certificate;
mod client_io;
mod client_tls;
mod connect;
mod connect_error;
mod connection;
mod error;
mod handshake;
mod incoming;
mod limits;
mod listen;
mod pem;
mod port;
mod reloading;
mod serve;
mod server_tls;
mod services;

pub use address::{Address, Scheme};
pub use args::{ClientArgs, Secret};
pub use bearer::BearerToken;
pub use certificate::Identity;
pub use client_tls::{ClientFiles, ClientTls};
pub use connect::Connector;
pub use connect_error::{ConnectError, broken_by, cause, is_refusal};
pub use connection::{Connection, Peer, peer};
pub use error::{FileError, Part};
pub use handshake::Refused;
pub use incoming::{Incoming, incoming};
pub use limits::Limits;
pub use listen::{ListenError, listen_address};
pub use pem::PemProblem;
pub use port::Port;
pub use reloading::FileState;
pub use serve::serve;
pub use server_tls::{CHECK_INTERVAL, ClientAuth, ServerFiles, ServerTls};
pub use services::{Health, services};

/// What is spoken above TLS: HTTP/2 and nothing else.
const ALPN: &[u8] = b"h2";

/// The newest first.
static VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];
