//! Which agents a question goes to: those of the nodes that have the pods that it is about.
//!
//! Who is asked never changes what is answered. So where it is not sure which nodes have had such
//! pods everybody is asked, and where those that should have them do not, the others are asked too.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::Status;

use super::Cluster;
use crate::{
    agents::Node,
    query::{Outcome, gather},
};

/// The agents that a question is put to.
pub(crate) struct Route {
    asked: Vec<Arc<Node>>,
    /// Those that need not be asked.
    others: Vec<Arc<Node>>,
}

impl Route {
    /// All of these.
    pub(crate) fn all(nodes: Vec<Arc<Node>>) -> Self {
        Self { asked: nodes, others: Vec::new() }
    }

    /// Those of `nodes` that may have rows of pods of `namespace` whose names begin with `prefix`
    /// (empty: of all).
    pub(crate) fn to_pods(
        nodes: Vec<Arc<Node>>,
        cluster: Option<&Cluster>,
        namespace: &str,
        prefix: &str,
    ) -> Self {
        let Some(cluster) = cluster.filter(|_| !(namespace.is_empty() && prefix.is_empty())) else {
            return Self::all(nodes);
        };
        let Some(places) = cluster.nodes_of(namespace, prefix) else { return Self::all(nodes) };
        let cluster = cluster.nodes();
        let (asked, others): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| {
            let names = node.node_names();
            let any = |known: &BTreeSet<Arc<str>>| names.iter().any(|name| known.contains(&**name));
            // Of an agent on no node of the cluster it is not known what it has.
            any(&places) || !any(&cluster)
        });
        if asked.is_empty() { Self::all(others) } else { Self { asked, others } }
    }

    /// As [`gather`], and all the others where nobody has what somebody was asked for.
    pub(crate) async fn gather<T, F>(
        self,
        limit: Duration,
        call: impl Fn(Arc<Node>) -> F,
        mut take: impl FnMut(T) -> (i64, i64),
    ) -> Vec<Outcome>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let began = Instant::now();
        let mut outcomes = gather(&self.asked, limit, &call, &mut take).await;
        let has_nothing = outcomes.iter().any(Outcome::is_missing);
        if !self.others.is_empty() && has_nothing && !outcomes.iter().any(Outcome::is_found) {
            let left = limit.saturating_sub(began.elapsed());
            outcomes.extend(gather(&self.others, left, &call, &mut take).await);
        }
        outcomes
    }
}
