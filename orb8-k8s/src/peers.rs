//! Who may be at the other end of a flow, anywhere in the cluster: Services, nodes, pods of other
//! nodes, and endpoints outside of it.
//!
//! Four lists and four watches of the whole cluster, so nobody has them without asking for it. Each
//! object is trimmed while it is read; none of what is needed here is in its metadata, so watches of
//! metadata alone would not do.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use orb8_proto::{PeerKind, PodSource, PodSourceState};
use tokio_util::sync::CancellationToken;

use super::{
    KubernetesSource, Pod,
    store::{Keep, PodStore, nanos},
    watcher::{Mirror, Timing, Watcher},
};
use crate::PodLookup;

mod book;
mod endpoints;
mod nodes;
mod services;

use self::{book::Book, endpoints::EndpointSlice, nodes::Node, services::Front};

/// Somebody at the other end of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// A pod.
    Pod(Arc<Pod>),
    /// Anything else that has a name.
    Other(Arc<Named>),
}

/// The name of something that is not a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// What it is.
    pub kind: PeerKind,
    /// Its namespace; empty for what is in none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl Named {
    /// To be shared.
    #[must_use]
    pub fn new(kind: PeerKind, namespace: &str, name: &str) -> Arc<Self> {
        Arc::new(Self { kind, namespace: namespace.into(), name: name.into() })
    }
}

/// One end of a flow, as its packets name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Address.
    pub ip: IpAddr,
    /// Port; 0 where there is none.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
}

/// The cluster's addresses, with whom they name. Its watchers write it, everybody else reads.
pub struct PeerStore {
    pods: Arc<PodStore>,
    services: Arc<Book<services::Service>>,
    nodes: Arc<Book<Node>>,
    endpoints: Arc<Book<EndpointSlice>>,
}

impl PeerStore {
    /// A store that knows nobody yet, and whose pods will be those that are not on `node`.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self::of(PodStore::elsewhere(node), Keep::default())
    }

    /// A store that knows nobody yet, and whose pods will be those of all nodes. Who is gone answers
    /// for as long as `keep` says.
    #[must_use]
    pub fn of_all_nodes(keep: Keep) -> Self {
        Self::of(PodStore::everywhere(keep), keep)
    }

    fn of(pods: PodStore, keep: Keep) -> Self {
        Self {
            pods: Arc::new(pods),
            services: Arc::new(Book::new(keep)),
            nodes: Arc::new(Book::new(keep)),
            endpoints: Arc::new(Book::new(keep)),
        }
    }

    /// The pods that it knows.
    #[must_use]
    pub fn pods(&self) -> &PodStore {
        &self.pods
    }

    /// The names of all nodes; none as long as the API did not tell of them.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<Arc<str>> {
        self.nodes.names().into_iter().collect()
    }

    /// Watches the cluster until `token` says stop.
    pub async fn watch(
        self: Arc<Self>,
        source: KubernetesSource,
        timing: Timing,
        token: CancellationToken,
    ) {
        fn run<M: Mirror + 'static>(
            mirror: &Arc<M>,
            source: &KubernetesSource,
            timing: Timing,
            token: &CancellationToken,
        ) -> impl Future<Output = ()> + Send + use<M> {
            Watcher::new(source.clone(), Arc::clone(mirror), timing).run(token.clone())
        }
        tokio::join!(
            run(&self.pods, &source, timing, &token),
            run(&self.services, &source, timing, &token),
            run(&self.nodes, &source, timing, &token),
            run(&self.endpoints, &source, timing, &token),
        );
    }

    /// Who had this address at that time (Unix time in nanoseconds), if that is beyond doubt. The
    /// address of a pod on the host network names its node.
    ///
    /// `answers`: the flow is known to lead to this end. Only then can a port of a node, or one that
    /// a load balancer serves under a node's address, name a Service: a client may have the same
    /// port by chance.
    #[must_use]
    pub fn named(&self, end: End, at: i64, answers: bool) -> Option<Who> {
        let End { ip, port, protocol } = end;
        let ip = ip.to_canonical();
        let front = |front| self.services.at(&front, at).map(Who::Other);
        if let Some(service) = front(Front::Cluster(ip)) {
            return Some(service);
        }
        let node = self.nodes.at(&ip, at);
        if (node.is_none() || answers)
            && let Some(service) = front(Front::Outside(ip, protocol, port))
        {
            return Some(service);
        }
        if node.is_some() {
            return self.node_port(end, at, answers).or(node.map(Who::Other));
        }
        if let Some(pod) = self.pods.by_ip(ip, at) {
            return Some(Who::Pod(pod));
        }
        self.endpoints.at(&ip, at).map(Who::Other)
    }

    /// The Service behind a port of a node. See [`named`](Self::named) for `answers`.
    #[must_use]
    pub fn node_port(&self, end: End, at: i64, answers: bool) -> Option<Who> {
        let front = Front::NodePort(end.protocol, end.port);
        self.services.at(&front, at).filter(|_| answers).map(Who::Other)
    }

    /// Changes whenever an answer may have changed, except that something was forgotten.
    #[must_use]
    pub fn generation(&self) -> u64 {
        [
            self.pods.generation(),
            self.services.generation(),
            self.nodes.generation(),
            self.endpoints.generation(),
        ]
        .iter()
        .fold(0, |sum, generation| sum.wrapping_add(*generation))
    }

    /// Where the names come from, and how current they are: as current as the oldest of them.
    #[must_use]
    pub fn source(&self) -> PodSource {
        let watches: [&dyn HasContact; 4] =
            [&*self.pods, &*self.services, &*self.nodes, &*self.endpoints];
        let told = watches.map(|watch| (watch.what(), watch.state().told()));
        let worst = |(_, (state, age, _)): &&(_, (PodSourceState, Duration, String))| {
            (*state == PodSourceState::Away, *state == PodSourceState::Syncing, *age)
        };
        let mut source = PodSource {
            kind: "kubernetes".into(),
            pods_known: self.pods.source().pods_known,
            ..PodSource::default()
        };
        if let Some((what, (state, age, reason))) = told.iter().max_by_key(worst) {
            source.set_state(*state);
            source.age_ns = nanos(*age);
            source.reason = match &**reason {
                "" => String::new(),
                reason => format!("{what}: {reason}"),
            };
        }
        source
    }
}

/// A watch, whatever it is of.
trait HasContact {
    fn what(&self) -> &'static str;
    fn state(&self) -> super::contact::WatchState;
}

impl<M: Mirror> HasContact for M {
    fn what(&self) -> &'static str {
        Mirror::what(self)
    }

    fn state(&self) -> super::contact::WatchState {
        self.contact().state()
    }
}

#[cfg(test)]
mod tests;
