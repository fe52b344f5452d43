//! How the other side is called in messages, and what its errors mean for whoever asked.

use std::fmt;

use orb8_transport::{ConnectError, broken_by};
use tonic::{Code, Status};

/// The other side.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// As in `10.0.0.1:9090 did not answer`.
    pub name: String,
    /// It is reached by port-forward: then a kubeconfig stands in for an address and a token.
    pub by_forward: bool,
    /// It is shown a token.
    pub has_token: bool,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Peer {
    /// What was said, or what kept it from being said. Not escaped yet: that is done where it is
    /// printed.
    pub(crate) fn text(&self, status: &Status) -> String {
        match status.code() {
            // The other side's own words about the request, which say what is wrong or list
            // candidates.
            Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition => {
                status.message().to_owned()
            }
            Code::Unimplemented => {
                format!("{self} is too old for this: it does not know the request")
            }
            code => {
                let broken = broken_by(status);
                let said = broken.as_deref().unwrap_or(status.message());
                let hint = self.hint(code, said).unwrap_or_default();
                format!("{self}: {said} ({code:?}){hint}")
            }
        }
    }

    /// What to do about it, where a port-forward is why it is not obvious.
    fn hint(&self, code: Code, said: &str) -> Option<&'static str> {
        if !self.by_forward {
            None
        } else if [ConnectError::TlsServer, ConnectError::Silent]
            .iter()
            .any(|e| e.to_string() == said)
        {
            Some("\n--tls-ca FILE says so, with the CA of orb8's certificates")
        } else if code == Code::Unauthenticated && !self.has_token {
            Some(
                "\nthe kubeconfig's user has no token to show: give one by --token-file or --token, \
                 such as kubectl create token makes",
            )
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_about_the_request_stand_alone_and_others_say_who_said_them() {
        let peer = Peer { name: "node:1".into(), by_forward: false, has_token: false };
        assert_eq!(peer.text(&Status::not_found("no pod")), "no pod");
        let text = peer.text(&Status::unauthenticated("no token"));
        assert_eq!(text, "node:1: no token (Unauthenticated)");
    }

    #[test]
    fn by_port_forward_it_is_said_where_a_token_comes_from() {
        let peer = Peer { name: "svc/x".into(), by_forward: true, has_token: false };
        let no_token = Status::unauthenticated("no token");
        assert!(peer.text(&no_token).contains("kubectl create token"));
        assert!(!Peer { has_token: true, ..peer }.text(&no_token).contains("kubectl"));
    }
}
