//! Why a connection did not come about, in words that say what to do.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError, InvalidMessage};
use tonic::Status;

use crate::certificate::coarse;

/// Why there is no connection to a server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host's name has no address.
    #[error("{host}: the name cannot be resolved: {source}")]
    Dns {
        /// The host.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nothing listens there.
    #[error("{address}: connection refused: nothing listens there")]
    Refused {
        /// The server's address.
        address: String,
    },
    /// Another failure of TCP.
    #[error("{address}: {source}")]
    Tcp {
        /// The server's address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long, TLS included.
    #[error("{address}: no connection within {} s", .time.as_secs_f32())]
    TimedOut {
        /// The server's address.
        address: String,
        /// How long that is.
        time: std::time::Duration,
    },
    /// The server's certificate is of a CA that is not trusted.
    #[error(
        "{address}: the server's certificate is not from a CA that is trusted here; expected one \
         from {trusted}"
    )]
    UnknownCa {
        /// The server's address.
        address: String,
        /// Which CAs are.
        trusted: String,
    },
    /// The server's certificate does not hold now.
    #[error("{address}: the server's certificate {when}")]
    OutOfDate {
        /// The server's address.
        address: String,
        /// Since or until when.
        when: String,
    },
    /// The server's certificate is for others.
    #[error(
        "{address}: the server's certificate is not for {expected:?}{presented}; name the one \
             it is for with --tls-server-name"
    )]
    WrongName {
        /// The server's address.
        address: String,
        /// Whom it was to be for.
        expected: String,
        /// Whom it is for.
        presented: String,
    },
    /// The server does not speak TLS.
    #[error("{address}: the server speaks plain text, not TLS: use http://")]
    PlainTextServer {
        /// The server's address.
        address: String,
    },
    /// The server speaks TLS, and was spoken to in plain text.
    #[error("the server speaks TLS, not plain text: use https://")]
    TlsServer,
    /// The server ended the connection instead of a greeting, as one may that speaks TLS.
    #[error("the server said nothing and ended the connection: if it speaks TLS, use https://")]
    Silent,
    /// What answers is not gRPC.
    #[error("what answers there does not speak HTTP/2, and is no gRPC server")]
    NotHttp2,
    /// The server said no in the handshake.
    #[error("the server refused the connection: {reason}")]
    Alert {
        /// What it said, in words.
        reason: String,
    },
    /// Another failure of TLS.
    #[error("{address}: TLS: {reason}")]
    Tls {
        /// The server's address.
        address: String,
        /// What failed.
        reason: String,
    },
    /// What was asked for is not safe, or contradicts itself.
    #[error("{0}")]
    Options(String),
}

impl ConnectError {
    pub(crate) fn tcp(address: &str, error: io::Error) -> Self {
        let address = address.to_owned();
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused { address },
            _ => Self::Tcp { address, source: error },
        }
    }

    /// From what rustls said in a handshake with a server at `address` that was to be `name`.
    pub(crate) fn handshake(address: &str, name: &str, trusted: &str, error: &io::Error) -> Self {
        let address = address.to_owned();
        let Some(error) = rustls_error(error) else {
            let reason = if error.kind() == io::ErrorKind::UnexpectedEof {
                "the server closed the connection in the handshake; does it speak TLS there?".into()
            } else {
                error.to_string()
            };
            return Self::Tls { address, reason };
        };
        match error {
            rustls::Error::InvalidCertificate(problem) => match problem {
                CertificateError::UnknownIssuer => {
                    Self::UnknownCa { address, trusted: trusted.to_owned() }
                }
                CertificateError::ExpiredContext { time, not_after } => {
                    let ago = time.as_secs().saturating_sub(not_after.as_secs());
                    let ago = coarse(std::time::Duration::from_secs(ago));
                    Self::OutOfDate { address, when: format!("expired {ago} ago") }
                }
                CertificateError::Expired => Self::OutOfDate { address, when: "expired".into() },
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    let when = "is not valid yet; are both clocks right?".into();
                    Self::OutOfDate { address, when }
                }
                CertificateError::NotValidForName => {
                    let (expected, presented) = (name.to_owned(), String::new());
                    Self::WrongName { address, expected, presented }
                }
                CertificateError::NotValidForNameContext { presented, .. } => {
                    let presented = if presented.is_empty() {
                        ", nor for any other name".into()
                    } else {
                        format!(", but for {}", presented.join(", "))
                    };
                    Self::WrongName { address, expected: name.to_owned(), presented }
                }
                other => {
                    let reason = format!("the server's certificate: {other}");
                    Self::Tls { address, reason }
                }
            },
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::PlainTextServer { address },
            rustls::Error::AlertReceived(alert) => Self::Alert { reason: alert_text(*alert) },
            rustls::Error::NoApplicationProtocol => Self::NotHttp2,
            other => Self::Tls { address, reason: other.to_string() },
        }
    }
}

pub(crate) fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a server's alert means for whoever set up the client.
pub(crate) fn alert_text(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it asks for a client certificate: give --tls-cert and --tls-key".into()
        }
        AlertDescription::UnknownCA => "it does not trust the CA of the client certificate".into(),
        AlertDescription::CertificateExpired => "the client certificate has expired".into(),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError => {
            format!("it does not take the client certificate ({alert:?})")
        }
        AlertDescription::ProtocolVersion => "no common version of TLS".into(),
        AlertDescription::NoApplicationProtocol => "it does not speak HTTP/2".into(),
        other => format!("TLS alert {other:?}"),
    }
}

/// The cause of a failure, from its depth, where errors of this crate and of the system say what
/// was wrong and those above only that something was.
#[must_use]
pub fn cause(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    loop {
        if deepest.is::<ConnectError>() {
            return deepest.to_string();
        }
        let inner = deepest.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let next = match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => deepest.source(),
        };
        match next {
            Some(next) => deepest = next,
            None => return deepest.to_string(),
        }
    }
}

/// Whether a call never got an answer because the two sides do not trust or understand each other,
/// as opposed to a network that does not bring them together.
#[must_use]
pub fn is_refusal(status: &Status) -> bool {
    let mut error = status.source();
    while let Some(one) = error {
        let inner = one.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let known = one.downcast_ref().or_else(|| inner?.downcast_ref::<ConnectError>());
        if let Some(known) = known {
            return !matches!(
                known,
                ConnectError::Dns { .. }
                    | ConnectError::Refused { .. }
                    | ConnectError::Tcp { .. }
                    | ConnectError::TimedOut { .. }
                    | ConnectError::Silent
            );
        }
        error = match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => one.source(),
        };
    }
    false
}

/// What a call failed of, if it never got an answer: `None` for what a server said.
#[must_use]
pub fn broken_by(status: &Status) -> Option<String> {
    status.source().map(cause)
}
