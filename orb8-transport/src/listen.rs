//! Where a server is to listen, as people write it.

use std::net::SocketAddr;

/// Why a server cannot listen where it was told to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Others would reach it, and read what it says.
    #[error(
        "{name}: {address} is not a loopback address and would be served in plain text; listen on \
         127.0.0.1 or [::1], give --tls-cert and --tls-key, or say --insecure"
    )]
    Open {
        /// The option.
        name: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// It is no address.
    #[error(
        "{name}: {written:?} is not an address; expected IP:PORT such as {default} or [::1]:{}",
        default.port()
    )]
    NoAddress {
        /// The option.
        name: &'static str,
        /// Its value.
        written: String,
        /// What it is where nothing is written.
        default: SocketAddr,
    },
}

/// The address that is written in option `name`. `open`: others may reach it.
///
/// # Errors
/// See [`ListenError`].
pub fn listen_address(
    name: &'static str,
    written: Option<&str>,
    default: SocketAddr,
    open: bool,
) -> Result<SocketAddr, ListenError> {
    let Some(written) = written else { return Ok(default) };
    match written.parse::<SocketAddr>() {
        Ok(address) if open || address.ip().is_loopback() => Ok(address),
        Ok(address) => Err(ListenError::Open { name, address }),
        Err(_) => Err(ListenError::NoAddress { name, written: written.into(), default }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_reach_a_port_only_where_they_may() {
        let default: SocketAddr = "127.0.0.1:9090".parse().unwrap();
        let address = |written, open| listen_address("listen", written, default, open);
        assert_eq!(address(None, false), Ok(default));
        for loopback in ["127.0.0.2:1", "[::1]:1"] {
            assert_eq!(address(Some(loopback), false), Ok(loopback.parse().unwrap()));
        }
        for everywhere in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            let error = address(Some(everywhere), false).unwrap_err().to_string();
            assert!(error.starts_with(&format!("listen: {everywhere} is not a loop")), "{error}");
            assert_eq!(address(Some(everywhere), true), Ok(everywhere.parse().unwrap()));
        }
        for wrong in ["", "9090", "localhost:1", "127.0.0.1", "::1:1", "1.2.3.4:99999"] {
            let error = address(Some(wrong), true).unwrap_err().to_string();
            assert!(error.contains("such as 127.0.0.1:9090 or [::1]:9090"), "{error}");
        }
    }
}
