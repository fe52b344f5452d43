//! Agents behind a Service, as its EndpointSlices tell of them: with their nodes.

use orb8_k8s::{
    KubernetesSource,
    contact::WatchState,
    endpoints::{Endpoint, EndpointWatcher, Found},
    watcher::Timing,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Member, Members, ServiceName};

pub(super) async fn follow(
    service: &ServiceName,
    api: KubernetesSource,
    timing: Timing,
    members: &watch::Sender<Members>,
    token: CancellationToken,
) {
    let ServiceName { namespace, name, port } = service;
    let watcher = EndpointWatcher::new(api, namespace, name, *port, timing);
    let (mut found, mut states) = (watcher.found(), watcher.states());
    let publish = async {
        loop {
            let next = {
                let (found, state) = (found.borrow_and_update(), states.borrow_and_update());
                tell(&found, &state)
            };
            members.send_if_modified(|known| {
                let changed = *known != next;
                if let Some(problem) = next.problem.as_ref().filter(|_| changed) {
                    tracing::warn!("agents: {problem}");
                }
                *known = next;
                changed
            });
            let ended = tokio::select! {
                changed = found.changed() => changed.is_err(),
                changed = states.changed() => changed.is_err(),
            };
            if ended {
                break;
            }
        }
    };
    // The watcher ends with the token, and what it tells of with the watcher.
    tokio::join!(watcher.run(token), publish);
}

fn tell(found: &Found, state: &WatchState) -> Members {
    let problem = match state {
        WatchState::Syncing => Some("the Kubernetes API was not heard yet".to_owned()),
        WatchState::Away { reason, .. } => Some(format!("the Kubernetes API is away: {reason}")),
        WatchState::Connected => found.problem.clone(),
    };
    Members { agents: found.endpoints.iter().map(member).collect(), problem }
}

fn member(Endpoint { node, ip, port }: &Endpoint) -> Member {
    let address = std::net::SocketAddr::new(*ip, *port).to_string();
    Member { address, node: node.as_deref().map(str::to_owned) }
}
