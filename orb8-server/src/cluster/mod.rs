//! What the server knows of the Kubernetes cluster: its nodes, on which of them pods are, and who
//! has which address. Watched once for all agents.

mod names;
mod route;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use orb8_k8s::{KubernetesSource, PodLookup as _, peers::PeerStore, store::Keep, watcher::Timing};
use orb8_proto::PodSource;
use tokio_util::sync::CancellationToken;

pub(crate) use self::route::Route;
use crate::agents::unix_ns;

/// Agents have rows of a pod for five minutes after its last packet, and take up to two more to book
/// it and to let go of it.
pub(crate) const AGENTS_REMEMBER: Duration = Duration::from_secs(480);
/// Pods, Services and nodes that are gone, and kept for that long. With more of them late flows lose
/// names, and questions about a few pods go to all nodes.
const MOST_GONE: usize = 50_000;

/// The cluster as the API tells of it. Clones share it.
#[derive(Clone)]
pub(crate) struct Cluster {
    peers: Arc<PeerStore>,
    agents_remember: Duration,
}

impl Cluster {
    /// Nothing is known yet. Agents may have rows of a pod for `agents_remember` after it is gone.
    pub(crate) fn new(agents_remember: Duration) -> Self {
        // Somewhat longer, so that what is asked for is still there.
        let keep = Keep { time: agents_remember + Duration::from_secs(30), most: MOST_GONE };
        Self { peers: Arc::new(PeerStore::of_all_nodes(keep)), agents_remember }
    }

    /// Watches the cluster until `token` says stop.
    pub(crate) async fn follow(
        self,
        source: KubernetesSource,
        timing: Timing,
        token: CancellationToken,
    ) {
        self.peers.watch(source, timing, token).await;
    }

    /// The names of its nodes; none as long as the API did not tell of them.
    pub(crate) fn nodes(&self) -> BTreeSet<Arc<str>> {
        self.peers.nodes()
    }

    /// How current its pods are, and how current everything is.
    pub(crate) fn sources(&self) -> (PodSource, PodSource) {
        (self.peers.pods().source(), self.peers.source())
    }

    /// The nodes whose agents may have rows of such pods; none where that is not sure.
    fn nodes_of(&self, namespace: &str, prefix: &str) -> Option<BTreeSet<Arc<str>>> {
        let remembered = i64::try_from(self.agents_remember.as_nanos()).unwrap_or(i64::MAX);
        let since = unix_ns(SystemTime::now()).saturating_sub(remembered);
        self.peers.pods().nodes_of(namespace, prefix, since)
    }
}
