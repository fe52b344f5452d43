//! Whom a command talks to: a server or an agent at an address, the server of a Kubernetes cluster,
//! or an agent in this process.

use std::fmt;

use clap::ValueEnum;
use orb8_transport::Address;

use crate::{
    cluster::{self, ClusterServer, NoServer},
    exit::Failure,
};

/// The environment variable that stands in for `--server`.
pub(crate) const SERVER_ENV: &str = "ORB8_SERVER";

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Ask a server: by --server or ORB8_SERVER, else svc/orb8-server of the kubeconfig's context
    Cluster,
    /// Run an agent in this process, for as long as the command takes
    Standalone,
}

/// An option that only one of the modes has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// As it was written.
    pub option: &'static str,
    /// What it does, which says why the other mode does not have it.
    pub does: &'static str,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.option, self.does)
    }
}

/// What a command's options say about whom it can ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// One that takes a server.
    pub server: Option<Need>,
    /// One that takes an agent of our own.
    pub standalone: Option<Need>,
}

/// What can be decided without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Server {
        address: Address,
        from_environment: bool,
    },
    /// The kubeconfig may lead to one. `must`: standalone mode is no way out, and why.
    Look {
        must: Option<Must>,
    },
    /// With why, unless it was asked for.
    Standalone(Option<String>),
}

/// Why it has to be a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    Mode,
    Need(Need),
}

/// The resolved answer.
#[derive(Debug)]
pub(crate) enum Target {
    /// A server or an agent at an address.
    Server {
        address: Address,
        /// Whether the address came from the environment.
        from_environment: bool,
    },
    /// The server of the cluster that a kubeconfig leads to.
    Cluster(ClusterServer),
    /// An agent of our own.
    Standalone {
        /// Why, unless the user asked for it by `--mode`.
        because: Option<String>,
    },
}

impl Target {
    /// Decides from `--mode`, `--server`, the environment and what the options need; where none of
    /// them says, from whether the kubeconfig's context has a server.
    ///
    /// # Errors
    /// When they contradict each other, or there is no server where one is needed.
    pub(crate) async fn resolve(
        mode: Option<Mode>,
        server: Option<&Address>,
        environment: Option<&str>,
        context: Option<&str>,
        needs: Needs,
    ) -> Result<Target, Failure> {
        let must = match choose(mode, server, environment, needs).map_err(Failure::Usage)? {
            Choice::Server { address, from_environment } => {
                return Ok(Target::Server { address, from_environment });
            }
            Choice::Standalone(because) => return Ok(Target::Standalone { because }),
            // Who names a context means a cluster.
            Choice::Look { must } => must.or(context.map(|_| Must::Mode)),
        };
        let why = match (cluster::find(context, must.is_some()).await, must) {
            (Ok(server), _) => return Ok(Target::Cluster(server)),
            (Err(why), None) => return Ok(Target::Standalone { because: Some(why.to_string()) }),
            (Err(why), Some(must)) => (why, must),
        };
        Err(match why {
            (NoServer::NoKubeconfig, Must::Need(need)) => Failure::Usage(format!(
                "{need}. There is no server: give --server HOST:PORT, or set {SERVER_ENV}, or have a \
                 kubeconfig whose context has one"
            )),
            (NoServer::NoKubeconfig, Must::Mode) => Failure::Usage(format!(
                "--mode cluster needs a server address, as there is no kubeconfig: give --server \
                 HOST:PORT or set {SERVER_ENV}"
            )),
            (why, Must::Need(need)) => Failure::Usage(format!("{need}. There is no server: {why}")),
            (why, Must::Mode) => {
                anyhow::anyhow!("{why}; --server HOST:PORT names a server directly").into()
            }
        })
    }

    /// Whether it is not an agent of our own.
    pub(crate) fn is_remote(&self) -> bool {
        !matches!(self, Target::Standalone { .. })
    }
}

fn choose(
    mode: Option<Mode>,
    server: Option<&Address>,
    environment: Option<&str>,
    needs: Needs,
) -> Result<Choice, String> {
    let named = match (server, environment.filter(|value| !value.is_empty())) {
        _ if mode == Some(Mode::Standalone) && server.is_none() => None,
        (Some(server), _) => {
            Some(Choice::Server { address: server.clone(), from_environment: false })
        }
        (None, Some(value)) => {
            let address = value.parse().map_err(|error| format!("{SERVER_ENV}: {error}"))?;
            Some(Choice::Server { address, from_environment: true })
        }
        (None, None) => None,
    };
    match (mode, named, needs.standalone, needs.server) {
        (Some(Mode::Standalone), Some(Choice::Server { address, .. }), ..) => Err(format!(
            "--mode standalone runs an agent in this process, --server {address} asks another one: \
             give one of the two"
        )),
        (Some(Mode::Standalone), _, _, Some(need)) => Err(need.to_string()),
        (Some(Mode::Standalone), ..) => Ok(Choice::Standalone(None)),
        (_, Some(_), Some(need), _) | (Some(Mode::Cluster), None, Some(need), _) => {
            Err(need.to_string())
        }
        (_, Some(server), None, _) => Ok(server),
        (Some(Mode::Cluster), None, None, _) => Ok(Choice::Look { must: Some(Must::Mode) }),
        (None, None, Some(need), Some(other)) => {
            Err(format!("{} and {} contradict each other: {need}", need.option, other.option))
        }
        (None, None, Some(need), None) => {
            Ok(Choice::Standalone(Some(format!("as {} is for", need.option))))
        }
        (None, None, None, need) => Ok(Choice::Look { must: need.map(Must::Need) }),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Server { address, from_environment: false } => {
                write!(f, "mode: cluster, asking {address}")
            }
            Target::Server { address, from_environment: true } => {
                write!(f, "mode: cluster, asking {address} (from {SERVER_ENV})")
            }
            Target::Cluster(server) => write!(f, "mode: cluster, asking {server}, by port-forward"),
            Target::Standalone { because: None } => write!(f, "mode: standalone"),
            Target::Standalone { because: Some(why) } => write!(f, "mode: standalone ({why})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Need = Need { option: "--node", does: "chooses a node" };
    const PODS: Need = Need { option: "--pods", does: "sets up an agent" };
    const NONE: Needs = Needs { server: None, standalone: None };
    const WANTS_SERVER: Needs = Needs { server: Some(NODE), standalone: None };
    const WANTS_AGENT: Needs = Needs { server: None, standalone: Some(PODS) };

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn a_server_is_used_when_it_is_named_and_the_kubeconfig_is_looked_at_when_not() {
        let flag = address("node:9090");
        let server = |text: &str, from_environment| {
            Ok(Choice::Server { address: address(text), from_environment })
        };
        let look = |must| Ok(Choice::Look { must });
        let cluster = Some(Mode::Cluster);
        assert_eq!(choose(None, None, None, NONE), look(None));
        assert_eq!(choose(None, None, Some(""), NONE), look(None));
        assert_eq!(choose(cluster, None, None, NONE), look(Some(Must::Mode)));
        assert_eq!(choose(None, Some(&flag), Some("other:1"), NONE), server("node:9090", false));
        assert_eq!(choose(None, None, Some("other:1"), NONE), server("other:1", true));
        assert_eq!(choose(cluster, None, Some("other:1"), NONE), server("other:1", true));
        let error = choose(None, None, Some("nonsense"), NONE).unwrap_err();
        assert!(error.contains("ORB8_SERVER") && error.contains("nonsense"), "{error}");
    }

    #[test]
    fn standalone_outranks_the_environment_but_contradicts_the_flag() {
        let standalone = Some(Mode::Standalone);
        assert_eq!(choose(standalone, None, Some("other:1"), NONE), Ok(Choice::Standalone(None)));
        let error = choose(standalone, Some(&address("node:9090")), None, NONE).unwrap_err();
        assert!(error.contains("node:9090"), "{error}");
    }

    #[test]
    fn an_option_that_only_one_mode_has_decides_or_contradicts() {
        let flag = address("node:9090");
        let look = Choice::Look { must: Some(Must::Need(NODE)) };
        assert_eq!(choose(None, None, None, WANTS_SERVER), Ok(look));
        let standalone = choose(None, None, None, WANTS_AGENT).unwrap();
        assert_eq!(standalone, Choice::Standalone(Some("as --pods is for".into())));
        assert!(choose(None, Some(&flag), None, WANTS_SERVER).is_ok());
        assert!(choose(Some(Mode::Standalone), None, None, WANTS_AGENT).is_ok());
        let pods = Err("--pods sets up an agent".to_owned());
        assert_eq!(choose(None, Some(&flag), None, WANTS_AGENT), pods);
        assert_eq!(choose(Some(Mode::Cluster), None, None, WANTS_AGENT), pods);
        let node = Err("--node chooses a node".to_owned());
        assert_eq!(choose(Some(Mode::Standalone), None, None, WANTS_SERVER), node);
        let both = Needs { server: Some(NODE), standalone: Some(PODS) };
        let error = choose(None, None, None, both).unwrap_err();
        assert!(error.starts_with("--pods and --node contradict each other"), "{error}");
    }
}
