//! Whom a command talks to: an agent at an address, or one in this process.

use std::fmt;

use clap::ValueEnum;
use orb8_transport::Address;

/// The environment variable that stands in for `--server`.
pub(crate) const SERVER_ENV: &str = "ORB8_SERVER";

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Ask a running agent or server, by --server or ORB8_SERVER
    Cluster,
    /// Run an agent in this process, for as long as the command takes
    Standalone,
}

/// The resolved answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// An agent at an address.
    Server {
        address: Address,
        /// Whether the address came from the environment.
        from_environment: bool,
    },
    /// An agent of our own.
    Standalone {
        /// Whether the user asked for it by `--mode`.
        asked: bool,
    },
}

impl Target {
    /// Decides from `--mode`, `--server` and the environment.
    ///
    /// # Errors
    /// With a message for the user, when they contradict each other.
    pub(crate) fn resolve(
        mode: Option<Mode>,
        server: Option<&Address>,
        environment: Option<&str>,
    ) -> Result<Target, String> {
        match (mode, server, environment.filter(|value| !value.is_empty())) {
            (Some(Mode::Standalone), Some(server), _) => Err(format!(
                "--mode standalone runs an agent in this process, --server {server} asks another \
                 one: give one of the two"
            )),
            (Some(Mode::Standalone), None, _) => Ok(Target::Standalone { asked: true }),
            (_, Some(server), _) => {
                Ok(Target::Server { address: server.clone(), from_environment: false })
            }
            (_, None, Some(value)) => match value.parse() {
                Ok(address) => Ok(Target::Server { address, from_environment: true }),
                Err(error) => Err(format!("{SERVER_ENV}: {error}")),
            },
            (Some(Mode::Cluster), None, None) => Err(format!(
                "--mode cluster needs a server address: give --server HOST:PORT or set {SERVER_ENV}"
            )),
            (None, None, None) => Ok(Target::Standalone { asked: false }),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Server { address, from_environment: false } => {
                write!(f, "mode: cluster, agent at {address}")
            }
            Target::Server { address, from_environment: true } => {
                write!(f, "mode: cluster, agent at {address} (from {SERVER_ENV})")
            }
            Target::Standalone { asked: true } => write!(f, "mode: standalone"),
            Target::Standalone { asked: false } => {
                write!(f, "mode: standalone (no --server, and {SERVER_ENV} is not set)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn a_server_is_used_when_it_is_named_and_standalone_is_the_fallback() {
        let flag = address("node:9090");
        let resolve = |mode, server, env| Target::resolve(mode, server, env);
        let server = |text: &str, from_environment| {
            Ok(Target::Server { address: address(text), from_environment })
        };
        assert_eq!(resolve(None, None, None), Ok(Target::Standalone { asked: false }));
        assert_eq!(resolve(None, None, Some("")), Ok(Target::Standalone { asked: false }));
        assert_eq!(resolve(None, Some(&flag), Some("other:1")), server("node:9090", false));
        assert_eq!(resolve(None, None, Some("other:1")), server("other:1", true));
        assert_eq!(resolve(Some(Mode::Cluster), None, Some("other:1")), server("other:1", true));
    }

    #[test]
    fn standalone_outranks_the_environment_but_contradicts_the_flag() {
        let standalone = Some(Mode::Standalone);
        assert_eq!(
            Target::resolve(standalone, None, Some("other:1")),
            Ok(Target::Standalone { asked: true })
        );
        let error = Target::resolve(standalone, Some(&address("node:9090")), None).unwrap_err();
        assert!(error.contains("node:9090"), "{error}");
    }

    #[test]
    fn cluster_mode_without_an_address_says_that_one_is_needed() {
        let error = Target::resolve(Some(Mode::Cluster), None, None).unwrap_err();
        assert!(error.contains("needs a server address"), "{error}");
        let error = Target::resolve(None, None, Some("nonsense")).unwrap_err();
        assert!(error.contains("ORB8_SERVER") && error.contains("nonsense"), "{error}");
    }
}
