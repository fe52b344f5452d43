//! The part of Docker's API that tells which containers run: HTTP on a unix socket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

use crate::unix_server::UnixServer;

/// A container that runs.
#[derive(Clone, Debug)]
pub struct DockerContainer {
    /// 64 hexadecimal characters.
    pub id: String,
    /// Its name, without a slash.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// Whether it is in the host's network namespace.
    pub host_network: bool,
}

/// A running engine. Dropping it closes its socket and every connection.
#[derive(Debug)]
pub struct DockerServer {
    state: Arc<State>,
    path: PathBuf,
    server: UnixServer,
}

#[derive(Debug)]
struct State {
    containers: Mutex<BTreeMap<String, DockerContainer>>,
    lists: Mutex<usize>,
    events: broadcast::Sender<Value>,
}

impl DockerServer {
    /// Starts an engine without containers at `path`.
    ///
    /// # Errors
    /// When there can be no socket.
    pub fn start(path: &Path) -> Result<Self> {
        let state = Arc::new(State {
            containers: Mutex::default(),
            lists: Mutex::default(),
            events: broadcast::Sender::new(1_024),
        });
        let router = Router::new()
            .route("/version", get(version))
            .route("/containers/json", get(list))
            .route("/events", get(events))
            .with_state(Arc::clone(&state));
        let server =
            UnixServer::start(path, move |listener| Box::pin(serve(listener, router.clone())))?;
        Ok(Self { state, path: path.to_owned(), server })
    }

    /// Where its socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a container.
    pub fn run(&self, container: DockerContainer) {
        let event = event("start", &container);
        lock(&self.state.containers).insert(container.id.clone(), container);
        // Fails when nobody listens.
        let _heard = self.state.events.send(event);
    }

    /// Ends and removes a container; nothing happens when there is none with this id.
    pub fn remove(&self, id: &str) {
        if let Some(container) = lock(&self.state.containers).remove(id) {
            let _heard = self.state.events.send(event("destroy", &container));
        }
    }

    /// How often its containers were listed.
    #[must_use]
    pub fn lists(&self) -> usize {
        *lock(&self.state.lists)
    }

    /// Ends it as `kill -9` would. Its containers run on.
    pub fn kill(&mut self) {
        self.server.stop();
    }

    /// Starts it again.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> Result<()> {
        self.server.resume()
    }
}

async fn serve(listener: UnixListener, router: Router) {
    if let Err(error) = axum::serve(listener, router).await {
        eprintln!("orb8-testkit: Docker's API: {error}");
    }
}

async fn version() -> String {
    let version = json!({
        "Platform": { "Name": "" },
        "Components": [{ "Name": "Engine", "Version": "28.0.4" }],
        "Version": "28.0.4",
        "ApiVersion": "1.48",
        "Os": "linux",
    });
    version.to_string()
}

async fn list(Shared(state): Shared<Arc<State>>) -> String {
    *lock(&state.lists) += 1;
    let containers = lock(&state.containers);
    containers.values().map(listed).collect::<Value>().to_string()
}

fn listed(container: &DockerContainer) -> Value {
    let (v4, v6) = match container.ip {
        Some(IpAddr::V4(ip)) => (ip.to_string(), String::new()),
        Some(IpAddr::V6(ip)) => (String::new(), ip.to_string()),
        None => Default::default(),
    };
    let network = if container.host_network { "host" } else { "bridge" };
    json!({
        "Id": container.id,
        "Names": [format!("/{}", container.name)],
        "Image": "testpod",
        "Labels": container.labels,
        "Created": 1_700_000_000,
        "State": "running",
        "HostConfig": { "NetworkMode": network },
        "NetworkSettings": { "Networks": { network: { "IPAddress": v4, "GlobalIPv6Address": v6 } } },
    })
}

async fn events(Shared(state): Shared<Arc<State>>) -> Response {
    let events = BroadcastStream::new(state.events.subscribe()).filter_map(Result::ok);
    Body::from_stream(events.map(|event| Ok::<_, Infallible>(format!("{event}\n")))).into_response()
}

fn event(action: &str, container: &DockerContainer) -> Value {
    let mut attributes = json!(container.labels);
    attributes["name"] = container.name.as_str().into();
    attributes["image"] = "testpod".into();
    json!({
        "Type": "container",
        "Action": action,
        "Actor": { "ID": container.id, "Attributes": attributes },
        "scope": "local",
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
