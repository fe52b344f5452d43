//! The Container Runtime Interface, as containerd, CRI-O and cri-dockerd speak it: gRPC over a unix
//! socket.

use std::{future::Future, path::Path, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use hyper_util::rt::TokioIo;
use orb8_k8s::manifest::Observed;
use orb8_proto::cri::{
    ContainerEventResponse, GetEventsRequest, ListContainersRequest, ListPodSandboxRequest,
    PodSandboxStatusRequest, VersionRequest, VersionResponse,
    runtime_service_client::RuntimeServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    client::{Failure, within},
    pods::About,
    sandboxes::{Network, Sandboxes},
};

/// Longest answer. A thousand pods with their labels are about a megabyte.
const MAX_ANSWER: usize = 64 << 20;
/// Networks that are asked for at a time.
const AT_A_TIME: usize = 4;

/// A runtime that answered.
pub(super) struct Cri {
    client: RuntimeServiceClient<Channel>,
    version: VersionResponse,
    sandboxes: Sandboxes,
    /// Sandboxes of the last list whose ids are of no known form.
    left_out: usize,
    limit: Duration,
}

impl Cri {
    /// Connects, and asks who it is. Every answer may take `limit`.
    pub(super) async fn open(socket: &Path, limit: Duration) -> Result<Self, Failure> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is required by the protocol and never looked up.
        let endpoint = Endpoint::from_static("http://cri.local").connect_timeout(limit);
        let channel = within(limit, endpoint.connect_with_connector(connector)).await?;
        let mut client = RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let request = VersionRequest { version: "v1".into() };
        let version = answer(limit, client.version(request)).await?;
        Ok(Self { client, version, sandboxes: Sandboxes::default(), left_out: 0, limit })
    }

    pub(super) fn about(&self, socket: &Path) -> About {
        let VersionResponse { runtime_name, runtime_version, .. } = &self.version;
        let (kind, name) = match &**runtime_name {
            "containerd" => ("containerd", ""),
            "cri-o" => ("cri-o", ""),
            "docker" => ("docker", ""),
            other => ("cri", other),
        };
        let mut detail = format!("{name} {runtime_version} at {}", socket.display());
        if self.left_out > 0 {
            detail += &format!("; {} pods left out: their ids are of no known form", self.left_out);
        }
        About { kind, detail: detail.trim_start().to_owned() }
    }

    /// All pods that there are.
    pub(super) async fn list(&mut self, now: i64) -> Result<Vec<Observed>, Failure> {
        let Self { client, limit, .. } = self;
        let listed = client.list_pod_sandbox(ListPodSandboxRequest::default());
        let listed = answer(*limit, listed).await?.items;
        let containers = client.list_containers(ListContainersRequest::default());
        let containers = answer(*limit, containers).await?.containers;
        let unknown = self.sandboxes.unknown(&listed);
        self.ask_for_networks(unknown).await?;
        let (pods, left_out) = self.sandboxes.pods(listed, containers, now);
        self.left_out = left_out;
        Ok(pods)
    }

    async fn ask_for_networks(&mut self, ids: Vec<String>) -> Result<(), Failure> {
        let limit = self.limit;
        let questions = ids.into_iter().map(|id| {
            let mut client = self.client.clone();
            async move {
                let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone() };
                match client.pod_sandbox_status(request).await {
                    Ok(answer) => Ok(answer.into_inner().status.map(|s| (id, Network::of(&s)))),
                    // It ended since it was listed.
                    Err(status) if status.code() == Code::NotFound => Ok(None),
                    Err(status) => Err(status),
                }
            }
        });
        let questions = questions.map(|question| within_status(limit, question));
        let answers: Vec<_> =
            stream::iter(questions).buffer_unordered(AT_A_TIME).try_collect().await?;
        for (id, network) in answers.into_iter().flatten() {
            self.sandboxes.learn(id, network);
        }
        Ok(())
    }

    /// What happens from now on. None where listening would take events away from the kubelet.
    pub(super) fn events(&self) -> Option<BoxStream<'static, ContainerEventResponse>> {
        let VersionResponse { runtime_name, runtime_version, .. } = &self.version;
        if !tells_everybody(runtime_name, runtime_version) {
            return None;
        }
        let mut client = self.client.clone();
        // A server begins to answer when there is something to tell, which may take days.
        let call = async move {
            client.get_container_events(GetEventsRequest {}).await.map(Response::into_inner)
        };
        let events = stream::once(call).try_flatten().inspect_err(|status| {
            tracing::debug!("container runtime: no more events: {}", describe(status));
        });
        Some(tokio_stream::StreamExt::map_while(events, Result::ok).boxed())
    }

    /// The pod that an event tells of.
    pub(super) fn take(&mut self, event: ContainerEventResponse, now: i64) -> Option<Observed> {
        self.sandboxes.pod_of_event(event, now)
    }
}

/// Whether every listener gets every event. Before containerd 2.0 (containerd issue 7318) and CRI-O
/// 1.28 (CRI-O issue 6466) each event goes to one of them, so that the kubelet would miss those that
/// come here.
fn tells_everybody(name: &str, version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+', '~']);
    let mut number = || numbers.next()?.parse::<u32>().ok();
    let version = (number().unwrap_or(0), number().unwrap_or(0));
    match name {
        "containerd" => version >= (2, 0),
        "cri-o" => version >= (1, 28),
        _ => false,
    }
}

async fn answer<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    within_status(limit, call).await.map(Response::into_inner)
}

async fn within_status<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|status| Failure::Other(describe(&status))),
        Err(_) => Err(Failure::Silent(limit)),
    }
}

/// The cause where there is one: that of a broken connection says more than that it broke.
fn describe(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    while let Some(next) = cause.and_then(std::error::Error::source) {
        cause = Some(next);
    }
    match cause {
        Some(cause) => cause.to_string(),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_listened_to_only_where_nobody_else_misses_them() {
        for (name, version) in [
            ("containerd", "v2.0.0"),
            ("containerd", "2.1.4-k3s1"),
            ("cri-o", "1.28.0"),
            ("cri-o", "1.31.2+dev"),
        ] {
            assert!(tells_everybody(name, version), "{name} {version}");
        }
        for (name, version) in [
            ("containerd", "1.6.20~ds1"),
            ("containerd", "v1.7.29"),
            ("containerd", ""),
            ("cri-o", "1.27.9"),
            ("docker", "28.0.0"),
        ] {
            assert!(!tells_everybody(name, version), "{name} {version}");
        }
    }
}
