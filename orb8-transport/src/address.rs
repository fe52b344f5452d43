//! Where a server is, as people write it.

use std::fmt;

use http::Uri;

/// `HOST:PORT`, IPv6 addresses in brackets, with `http://` or `https://` before it or neither.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    scheme: Option<Scheme>,
    authority: String,
}

/// How an address says it is to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http://`: plain text.
    Http,
    /// `https://`: TLS.
    Https,
}

impl Address {
    /// What was written before the host, if anything.
    #[must_use]
    pub const fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The host alone, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or("", |(host, _port)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether it is this machine without a question: a loopback address, or `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(address: std::net::SocketAddr) -> Self {
        Self { scheme: None, authority: address.to_string() }
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "expected HOST:PORT, http://HOST:PORT or https://HOST:PORT, like node-1:9090 or \
                 [::1]:9090, not {text:?}"
            )
        };
        let (scheme, rest) = if let Some(rest) = text.strip_prefix("http://") {
            (Some(Scheme::Http), rest)
        } else if let Some(rest) = text.strip_prefix("https://") {
            (Some(Scheme::Https), rest)
        } else {
            (None, text)
        };
        let authority = rest.trim_end_matches('/');
        let uri: Uri = format!("http://{authority}").parse().map_err(|_| wrong())?;
        let whole = uri.authority().is_some_and(|parsed| parsed.as_str() == authority);
        let port = uri.port_u16().is_some_and(|port| port != 0);
        let host = uri.host().is_some_and(|host| !host.is_empty()) && !authority.contains('@');
        if whole && port && host {
            Ok(Self { scheme, authority: authority.to_owned() })
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            None => "",
            Some(Scheme::Http) => "http://",
            Some(Scheme::Https) => "https://",
        };
        write!(f, "{scheme}{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_a_host_and_a_port_and_nothing_else() {
        for good in ["node-1:9090", "10.0.0.1:1", "[::1]:9090", "http://node:9090/", "https://a:1"]
        {
            let address: Address = good.parse().unwrap();
            assert_eq!(address.to_string(), good.trim_end_matches('/'));
        }
        for bad in [
            "",
            "node",
            ":9090",
            "node:0",
            "node:99999",
            "::1:9090",
            "a b:1",
            "u@h:1",
            "h:1/x",
            "ftp://a:1",
            "https://",
            "http://https://a:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_host_is_known_without_its_brackets_and_this_machine_as_such() {
        for (text, host, here) in [
            ("https://[::1]:9090", "::1", true),
            ("127.3.2.1:1", "127.3.2.1", true),
            ("Localhost:1", "Localhost", true),
            ("localhost.example:1", "localhost.example", false),
            ("10.0.0.1:1", "10.0.0.1", false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.is_loopback()), (host, here));
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "(https?://)?[a-z0-9.\\[\\]:@/ -]{0,20}:[0-9]{1,5}/?") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string(), text.trim_end_matches('/'));
            }
        }
    }
}
