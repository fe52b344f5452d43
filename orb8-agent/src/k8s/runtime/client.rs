//! A runtime that answers, whichever of the two protocols it speaks.

use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::BoxStream};
use orb8_k8s::{manifest::Observed, watcher::unix_ns};
use orb8_proto::cri::ContainerEventResponse;
use tokio::net::UnixStream;

use super::{containers::Started, cri::Cri, detect, docker::Docker, pods::About};

/// See the module.
pub(super) struct Client {
    socket: PathBuf,
    protocol: Protocol,
}

enum Protocol {
    Cri(Box<Cri>),
    Docker(Docker),
}

/// What a runtime has.
pub(super) struct List {
    pub(super) about: About,
    pub(super) pods: Vec<Observed>,
    /// When it was asked; Unix time in nanoseconds.
    pub(super) at: i64,
}

/// What happens at a runtime that tells of it, until it does not any more.
pub(super) type Events = BoxStream<'static, Event>;

pub(super) enum Event {
    Cri(Box<ContainerEventResponse>),
    /// None for what is not the start of a container.
    Docker(Option<Started>),
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There was none in this time. Another protocol would have none either.
    Silent(Duration),
    /// It is not what was expected.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(limit) => {
                write!(f, "no answer within {}", humantime::format_duration(*limit))
            }
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// Gives `work` no longer than `limit`.
pub(super) async fn within<T, E: std::error::Error>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Failure::Other(innermost(&error))),
        Err(_) => Err(Failure::Silent(limit)),
    }
}

/// The last cause of an error says what happened; those before say where.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

impl Client {
    /// Finds out who listens at `socket`, and lists what there is. No answer may take longer than
    /// `limit`. The error names the socket.
    pub(super) async fn open(socket: &Path, limit: Duration) -> Result<(Self, List), String> {
        detect::check(socket)?;
        let named = |failure| format!("{}: {failure}", socket.display());
        // If it refuses, it refuses both protocols.
        within(limit, UnixStream::connect(socket)).await.map_err(named)?;
        let protocol = Protocol::find(socket, limit).await.map_err(named)?;
        let mut client = Self { socket: socket.to_owned(), protocol };
        let list = client.list().await?;
        Ok((client, list))
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// All pods that there are.
    pub(super) async fn list(&mut self) -> Result<List, String> {
        let at = unix_ns();
        let pods = match &mut self.protocol {
            Protocol::Cri(cri) => cri.list(at).await,
            Protocol::Docker(docker) => docker.list(at).await,
        };
        let pods = pods.map_err(|failure| format!("{}: {failure}", self.socket.display()))?;
        let about = match &self.protocol {
            Protocol::Cri(cri) => cri.about(&self.socket),
            Protocol::Docker(docker) => docker.about(),
        };
        Ok(List { about, pods, at })
    }

    /// What happens from now on. None where nobody would tell.
    pub(super) fn events(&self) -> Option<Events> {
        let events = match &self.protocol {
            Protocol::Cri(cri) => cri.events()?.map(|event| Event::Cri(Box::new(event))).boxed(),
            Protocol::Docker(docker) => docker.events().map(Event::Docker).boxed(),
        };
        Some(events)
    }

    /// The pod that an event tells of, where it tells enough.
    pub(super) fn take(&mut self, event: Event) -> Option<Observed> {
        let now = unix_ns();
        match (&mut self.protocol, event) {
            (Protocol::Cri(cri), Event::Cri(event)) => cri.take(*event, now),
            (_, Event::Docker(started)) => started?.pod(now),
            (Protocol::Docker(_), Event::Cri(_)) => None,
        }
    }
}

impl Protocol {
    /// Tries the more likely one first.
    async fn find(socket: &Path, limit: Duration) -> Result<Self, Failure> {
        let is_docker =
            socket.file_name().is_some_and(|n| n == "docker.sock" || n == "podman.sock");
        let one = match Self::open(is_docker, socket, limit).await {
            Err(Failure::Other(why)) => why,
            done => return done,
        };
        let other = match Self::open(!is_docker, socket, limit).await {
            Err(Failure::Other(why)) => why,
            done => return done,
        };
        let (cri, docker) = if is_docker { (other, one) } else { (one, other) };
        Err(Failure::Other(format!("neither the CRI ({cri}) nor Docker's API ({docker})")))
    }

    async fn open(is_docker: bool, socket: &Path, limit: Duration) -> Result<Self, Failure> {
        if is_docker {
            Ok(Self::Docker(Docker::open(socket, limit).await?))
        } else {
            Ok(Self::Cri(Box::new(Cri::open(socket, limit).await?)))
        }
    }
}
