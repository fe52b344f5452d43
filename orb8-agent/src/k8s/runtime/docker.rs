//! Docker's API, which Podman speaks too: HTTP over a unix socket.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use orb8_k8s::manifest::Observed;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{
    client::Failure,
    containers::{Listed, Started, pods},
    pods::About,
};

/// Longest answer. A thousand containers are about two megabytes.
const MAX_ANSWER: usize = 64 << 20;
/// Longest event.
const MAX_EVENT: usize = 1 << 20;
/// Those of containers that begin or end: `{"event":["create",…],"type":["container"]}`.
const EVENTS: &str = "/events?filters=%7B%22event%22%3A%5B%22create%22%2C%22start%22%2C%22die%22%2C\
                      %22destroy%22%5D%2C%22type%22%3A%5B%22container%22%5D%7D";

/// An engine that answered.
pub(super) struct Docker {
    socket: PathBuf,
    version: Version,
    limit: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: String,
    #[serde(default)]
    components: Vec<Component>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

impl Docker {
    /// Connects, and asks who it is. Every answer may take `limit`.
    pub(super) async fn open(socket: &Path, limit: Duration) -> Result<Self, Failure> {
        let version = get(socket, "/version", limit).await?;
        Ok(Self { socket: socket.to_owned(), version, limit })
    }

    pub(super) fn about(&self) -> About {
        let is_podman = self.version.components.iter().any(|part| part.name.contains("Podman"));
        let kind = if is_podman { "podman" } else { "docker" };
        About { kind, detail: format!("{} at {}", self.version.version, self.socket.display()) }
    }

    /// The pods of all containers that run.
    pub(super) async fn list(&self, now: i64) -> Result<Vec<Observed>, Failure> {
        let listed: Vec<Listed> = get(&self.socket, "/containers/json", self.limit).await?;
        Ok(pods(listed, now))
    }

    /// What happens from now on: containers that were started, and None for anything else.
    pub(super) fn events(&self) -> BoxStream<'static, Option<Started>> {
        let socket = self.socket.clone();
        let lines = async move { Lines::open(&socket).await };
        let events = stream::once(lines).flat_map(|opened| match opened {
            Ok(lines) => stream::unfold(lines, |mut lines| async {
                let line = lines.next().await?;
                Some((Started::of_event(&line), lines))
            })
            .boxed(),
            Err(why) => {
                tracing::debug!("container runtime: no events: {why}");
                stream::empty().boxed()
            }
        });
        events.boxed()
    }
}

/// The lines of an answer that does not end.
struct Lines {
    body: Incoming,
    text: Vec<u8>,
    connection: Connection,
}

impl Lines {
    async fn open(socket: &Path) -> Result<Self, String> {
        let (answering, mut connection) = ask(socket, EVENTS).await?;
        let body = driving(&mut connection, answering).await?.into_body();
        Ok(Self { body, text: Vec::new(), connection })
    }

    /// None at the end, and after a line that is none.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let rest = self.text.split_off(end + 1);
                return Some(std::mem::replace(&mut self.text, rest));
            }
            if self.text.len() > MAX_EVENT {
                return None;
            }
            let frame = driving(&mut self.connection, self.body.frame()).await?.ok()?;
            self.text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
    }
}

/// What `GET path` is answered, as JSON.
async fn get<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    limit: Duration,
) -> Result<T, Failure> {
    let whole = async {
        let (answering, mut connection) = ask(socket, path).await?;
        let body = async {
            Limited::new(answering.await?.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| error.to_string())
        };
        Ok(driving(&mut connection, body).await?.to_bytes())
    };
    let text = match tokio::time::timeout(limit, whole).await {
        Ok(text) => text.map_err(Failure::Other)?,
        Err(_) => return Err(Failure::Silent(limit)),
    };
    serde_json::from_slice(&text).map_err(|why| Failure::Other(format!("{path}: {why}")))
}

type Answering = BoxFuture<'static, Result<Response<Incoming>, String>>;

/// Moves bytes; what becomes of that is told by the answer.
type Connection = BoxFuture<'static, ()>;

/// Asks `GET path`. The answer comes while the connection is [driven](driving).
async fn ask(socket: &Path, path: &str) -> Result<(Answering, Connection), String> {
    let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
    let opened = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = opened.map_err(|error| error.to_string())?;
    let request = Request::get(path).header("host", "docker").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let answering = async move {
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(format!("it answered {status}")),
        }
    };
    Ok((answering.boxed(), connection.map(drop).fuse().boxed()))
}

async fn driving<T>(connection: &mut Connection, work: impl Future<Output = T>) -> T {
    let driven = async {
        connection.await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        done = work => done,
        never = driven => never,
    }
}
