//! What queries of all signals have in common: whom they are about, which time, how many rows.

use std::collections::BTreeSet;

use orb8_k8s::PodLookup;
use orb8_proto::{Loss, NotFound};
use tonic::Status;

use crate::{
    aggregator::{SliceNumber, oldest_kept, slice_of, slice_start_ns},
    clock::WallClock,
    ledger::Ledger,
    signals,
};

/// Rows of an answer where the query does not say.
const DEFAULT_LIMIT: usize = 10_000;

/// Rows that an answer may have; 0 asks for the default.
pub(crate) fn limit(asked: u32) -> usize {
    if asked == 0 { DEFAULT_LIMIT } else { asked as usize }
}

/// Whose rows or records. Empty texts: everybody's.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodFilter {
    /// Exact.
    pub(crate) namespace: String,
    /// The beginning of a name.
    pub(crate) pod_prefix: String,
}

impl PodFilter {
    pub(crate) fn new(namespace: &str, pod_prefix: &str) -> Self {
        Self { namespace: namespace.into(), pod_prefix: pod_prefix.into() }
    }

    pub(crate) fn wants(&self, namespace: &str, pod: &str) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace)
            && pod.starts_with(&self.pod_prefix)
    }

    /// An unknown namespace or pod is an error that lists the candidates: an empty table would look
    /// like silence. `seen` are pods that have records, which may be known to nobody else any more.
    pub(crate) fn check(
        &self,
        pods: &dyn PodLookup,
        seen: impl Iterator<Item = (String, String)>,
        node: &str,
    ) -> Result<(), Status> {
        if self.namespace.is_empty() && self.pod_prefix.is_empty() {
            return Ok(());
        }
        let mut known: BTreeSet<(String, String)> = seen.collect();
        known.extend(pods.pods().iter().map(|p| (p.namespace.to_string(), p.name.to_string())));
        let namespaces: BTreeSet<String> = known.iter().map(|(ns, _)| ns.clone()).collect();
        if !self.namespace.is_empty() && !namespaces.contains(&self.namespace) {
            return Err(unknown("namespace", &self.namespace, node, &namespaces));
        }
        if known.iter().any(|(namespace, pod)| self.wants(namespace, pod)) {
            return Ok(());
        }
        let in_namespace = known
            .into_iter()
            .filter(|(ns, _)| self.namespace.is_empty() || *ns == self.namespace)
            .map(|(ns, pod)| if ns.is_empty() { pod } else { format!("{ns}/{pod}") });
        Err(unknown("pod", &self.pod_prefix, node, &in_namespace.collect()))
    }
}

/// The answer to a filter that names nobody.
pub(crate) fn unknown(what: &str, name: &str, node: &str, candidates: &BTreeSet<String>) -> Status {
    NotFound::status(what, name, &format!("node {node}"), candidates)
}

/// Losses that an answer of `signal` may suffer from.
pub(crate) fn losses(ledger: &Ledger, signal: &str) -> Vec<Loss> {
    let mut losses = ledger.losses();
    losses.retain(|loss| signals::concerns(loss, &[signal]));
    losses
}

/// The time that a signal can answer for, in nanoseconds since boot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) started_ns: u64,
    pub(crate) now_ns: u64,
    pub(crate) wall: WallClock,
}

/// The slices that a query is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) from: SliceNumber,
    pub(crate) to: SliceNumber,
    kept: Kept,
}

impl Range {
    pub(crate) fn new(
        kept: Kept,
        start_ns: Option<i64>,
        end_ns: Option<i64>,
    ) -> Result<Self, Status> {
        if let (Some(start), Some(end)) = (start_ns, end_ns)
            && start > end
        {
            return Err(Status::invalid_argument(format!(
                "start_time_ns {start} is after end_time_ns {end}"
            )));
        }
        let now = slice_of(kept.now_ns);
        let slice = |unix_ns| slice_of(kept.wall.boot_ns_of(unix_ns));
        let first = oldest_kept(now).max(slice_of(kept.started_ns));
        let from = start_ns.map_or(first, |start| slice(start).max(first));
        Ok(Self { from, to: end_ns.map_or(now, |end| slice(end).min(now)), kept })
    }

    /// What it really covers, as Unix times.
    pub(crate) fn covers(&self) -> (i64, i64) {
        let start = slice_start_ns(self.from).max(self.kept.started_ns);
        let end = slice_start_ns(self.to.saturating_add(1)).min(self.kept.now_ns);
        (self.kept.wall.unix_ns(start), self.kept.wall.unix_ns(end))
    }
}
