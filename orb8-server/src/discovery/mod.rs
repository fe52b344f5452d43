//! Where the agents are. Each source publishes the whole list whenever it changes.

mod dns;
mod kubernetes;
mod list;

use std::{collections::BTreeSet, fmt, str::FromStr};

use orb8_k8s::{KubernetesSource, watcher::Timing};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Port of an agent where none is written.
pub const AGENT_PORT: u16 = 9090;

/// Where an agent is said to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// `HOST:PORT`, as it is connected to.
    pub address: String,
    /// Its node, where the source knows that. Else the agent tells.
    pub node: Option<String>,
}

/// All that a source knows at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The agents. What was known stays known while the source is away.
    pub agents: BTreeSet<Member>,
    /// Why that may be old.
    pub problem: Option<String>,
}

/// A source of members, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `HOST:PORT,HOST:PORT,…`
    List(BTreeSet<Member>),
    /// `dns:NAME[:PORT]`: every address of the name, as a headless Service has them.
    Dns {
        /// To be looked up.
        name: String,
        /// Of every agent.
        port: u16,
    },
    /// `kubernetes:NAMESPACE/SERVICE[:PORT]`: the endpoints of a Service.
    Kubernetes(ServiceName),
}

/// A Service that agents are behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Of every agent, where that is not the Service's port `grpc`.
    pub port: Option<u16>,
}

/// A source that is written in no known form.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "agents: {0:?} is no source of agents; expected addresses such as 10.0.0.1:9090,node-2:9090, \
     dns:NAME[:PORT], or kubernetes:NAMESPACE/SERVICE[:PORT]"
)]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(written: &str) -> Result<Self, SourceError> {
        let error = || SourceError(written.to_owned());
        if let Some(name) = written.strip_prefix("dns:") {
            let (name, port) = host_and_port(name).ok_or_else(error)?;
            return Ok(Self::Dns { name, port });
        }
        if let Some(service) = written.strip_prefix("kubernetes:") {
            return service_name(service).map(Self::Kubernetes).ok_or_else(error);
        }
        let agents = written.split(',').map(|one| {
            let (host, port) = host_and_port(one.trim())?;
            Some(Member { address: format!("{host}:{port}"), node: None })
        });
        Ok(Self::List(agents.collect::<Option<_>>().ok_or_else(error)?))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(agents) => write!(f, "a list of {}", agents.len()),
            Self::Dns { name, port } => write!(f, "dns:{name}:{port}"),
            Self::Kubernetes(ServiceName { namespace, name, port }) => {
                write!(f, "kubernetes:{namespace}/{name}")?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

impl Source {
    /// The name that agents prove to have by their certificates, where it is not that of the host
    /// that is connected to: members found by a Service have IP addresses.
    #[must_use]
    pub fn server_name(&self) -> Option<String> {
        match self {
            Self::Kubernetes(ServiceName { namespace, name, .. }) => {
                Some(format!("{name}.{namespace}.svc"))
            }
            Self::List(_) | Self::Dns { .. } => None,
        }
    }

    /// Publishes the members until `token` says stop. `api` is asked where it has to be, as patiently
    /// as `timing` says.
    pub async fn follow(
        self,
        api: KubernetesSource,
        timing: Timing,
        members: watch::Sender<Members>,
        token: CancellationToken,
    ) {
        match self {
            Self::Kubernetes(service) => {
                kubernetes::follow(&service, api, timing, &members, token).await;
            }
            Self::List(agents) => list::publish(agents, &members),
            Self::Dns { name, port } => {
                token.run_until_cancelled(dns::follow(&name, port, &members)).await;
            }
        }
    }
}

/// `HOST`, `HOST:PORT`, `IPV6` or `[IPV6]:PORT`. An IPv6 address comes back in brackets.
fn host_and_port(written: &str) -> Option<(String, u16)> {
    if let Ok(address) = written.parse::<std::net::Ipv6Addr>() {
        return Some((format!("[{address}]"), AGENT_PORT));
    }
    if let Ok(std::net::SocketAddr::V6(address)) = written.parse() {
        return Some((format!("[{}]", address.ip()), address.port()));
    }
    let (host, port) = match written.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
        None => (written, AGENT_PORT),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    (!host.is_empty() && host.chars().all(fits)).then(|| (host.to_owned(), port))
}

/// `NAMESPACE/SERVICE` or `NAMESPACE/SERVICE:PORT`
fn service_name(written: &str) -> Option<ServiceName> {
    let (namespace, service) = written.split_once('/')?;
    let (name, port) = match service.split_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok().filter(|port| *port > 0)?)),
        None => (service, None),
    };
    // A DNS label (RFC 1123), as the API has it.
    let is_label = |text: &str| {
        let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        (1..=63).contains(&text.len())
            && text.bytes().all(fits)
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    let names = [namespace, name];
    names.into_iter().all(is_label).then(|| ServiceName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_source_is_a_list_a_name_or_a_service() {
        let list: Source = "10.0.0.1, node-2:9999,[fd00::1]:1,fd00::2".parse().unwrap();
        let Source::List(agents) = list else { panic!("{list:?}") };
        let addresses: Vec<_> = agents.iter().map(|agent| agent.address.as_str()).collect();
        assert_eq!(addresses, ["10.0.0.1:9090", "[fd00::1]:1", "[fd00::2]:9090", "node-2:9999"]);
        let dns: Source = "dns:orb8-agent.orb8-system".parse().unwrap();
        let name = "orb8-agent.orb8-system".to_owned();
        assert_eq!(dns, Source::Dns { name, port: AGENT_PORT });
        for (written, port) in
            [("kubernetes:orb8-system/orb8-agent", None), ("kubernetes:a/b:9999", Some(9_999))]
        {
            let source: Source = written.parse().unwrap();
            let Source::Kubernetes(service) = &source else { panic!("{source:?}") };
            assert_eq!((service.port, &*source.to_string()), (port, written));
        }
        let source: Source = "kubernetes:orb8-system/orb8-agent".parse().unwrap();
        assert_eq!(source.server_name().as_deref(), Some("orb8-agent.orb8-system.svc"));
        for wrong in [
            "",
            "a,,b",
            "dns:",
            "host:0",
            "host:70000",
            "a b",
            "http://x",
            "kubernetes:",
            "kubernetes:orb8-agent",
            "kubernetes:/orb8-agent",
            "kubernetes:orb8-system/",
            "kubernetes:orb8-system/orb8-agent:0",
            "kubernetes:orb8-system/orb8-agent:grpc",
            "kubernetes:orb8-system/a/b",
            "kubernetes:Orb8/agent",
            "kubernetes:-a/b",
        ] {
            let error = wrong.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_source_or_an_error(text in "\\PC{0,40}") {
            let _ = text.parse::<Source>();
        }
    }
}
