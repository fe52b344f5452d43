//! Totals by workload since the agent started. They never fall: a pod that is gone counts on in its
//! workload.
//!
//! Accounts come, go and get their names late, so a signal does not sum them. What an account grew by
//! since the last question is given to its workload by the name that it has now, and stays there.

use std::{
    collections::{BTreeMap, HashMap},
    ops::AddAssign,
    sync::Arc,
};

use orb8_k8s::PodLookup;
use orb8_proto::WorkloadTotals;

use crate::enricher::Identity;

/// Workloads that are kept apart, with those that have no pod any more. What a workload beyond them
/// has is in its namespace's rest, without a workload.
const MOST_WORKLOADS: usize = 3_072;
/// With the rests of namespaces; the one of no namespace holds what is beyond that too.
const MOST: usize = 4_096;

/// Namespace and workload. Empty workload: pods without one. Empty namespace: the node, or nobody.
type Key = (Arc<str>, Arc<str>);

/// What a signal counted, by workload.
#[derive(Debug)]
pub(crate) struct Book<T> {
    sums: HashMap<Key, T>,
    /// Entries that lost their workload because there are too many.
    folded: u64,
}

impl<T> Default for Book<T> {
    fn default() -> Self {
        Self { sums: HashMap::new(), folded: 0 }
    }
}

impl<T: AddAssign + Copy + Default + PartialEq> Book<T> {
    /// Takes what an account grew by, and leaves nothing of it.
    pub(crate) fn take(&mut self, identity: Option<&Identity>, grown: &mut T) {
        let grown = std::mem::take(grown);
        if grown == T::default() {
            return;
        }
        let namespace = identity.map(|i| Arc::clone(&i.namespace)).unwrap_or_default();
        let workload = identity.and_then(|i| i.workload.clone()).unwrap_or_default();
        let key = self.place((namespace, workload));
        *self.sums.entry(key).or_default() += grown;
    }

    /// Where there is room.
    fn place(&mut self, key: Key) -> Key {
        let rest_of_all = Key::default();
        let is_rest = key.1.is_empty();
        let most = if is_rest { MOST - 1 } else { MOST_WORKLOADS };
        if key == rest_of_all || self.sums.contains_key(&key) || self.sums.len() < most {
            return key;
        }
        self.folded += 1;
        let rest = (key.0, Arc::default());
        if self.sums.contains_key(&rest) || self.sums.len() < MOST - 1 { rest } else { rest_of_all }
    }

    /// How often something lost its workload, since the last call.
    pub(crate) fn take_folded(&mut self) -> u64 {
        std::mem::take(&mut self.folded)
    }

    /// All of it, each written by `with`.
    pub(crate) fn told(&self, with: impl Fn(&mut WorkloadTotals, &T)) -> Vec<WorkloadTotals> {
        let all = self.sums.iter().map(|((namespace, workload), sum)| {
            let mut totals = WorkloadTotals {
                namespace: namespace.to_string(),
                workload: workload.to_string(),
                ..WorkloadTotals::default()
            };
            with(&mut totals, sum);
            totals
        });
        all.collect()
    }
}

/// Puts together what the signals tell, and counts the pods that run.
pub(crate) fn merged(
    parts: impl IntoIterator<Item = WorkloadTotals>,
    pods: &dyn PodLookup,
) -> Vec<WorkloadTotals> {
    let mut all: BTreeMap<(String, String), WorkloadTotals> = BTreeMap::new();
    let mut of = |namespace: String, workload: String, add: &dyn Fn(&mut WorkloadTotals)| {
        let sum = all.entry((namespace.clone(), workload.clone()));
        add(sum.or_insert(WorkloadTotals { namespace, workload, ..WorkloadTotals::default() }));
    };
    for part in parts {
        let add = |sum: &mut WorkloadTotals| {
            sum.ingress_bytes += part.ingress_bytes;
            sum.egress_bytes += part.egress_bytes;
            sum.ingress_packets += part.ingress_packets;
            sum.egress_packets += part.egress_packets;
            sum.syscalls += part.syscalls;
        };
        of(part.namespace.clone(), part.workload.clone(), &add);
    }
    for pod in pods.pods().iter().filter(|pod| !pod.finished) {
        let workload = pod.workload().unwrap_or_default();
        of(pod.namespace.to_string(), workload, &|sum| sum.pods += 1);
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use orb8_k8s::pods::PodTable;

    use super::*;

    fn of(namespace: &str, workload: &str) -> Identity {
        let empty: Arc<str> = Arc::default();
        Identity {
            pod_uid: Arc::clone(&empty),
            namespace: namespace.into(),
            pod_name: Arc::clone(&empty),
            container_id: Arc::clone(&empty),
            container: Arc::clone(&empty),
            qos: None,
            workload: (!workload.is_empty()).then(|| workload.into()),
            unit: empty,
        }
    }

    fn sums(book: &Book<u64>) -> BTreeMap<(String, String), u64> {
        let told = book.told(|totals, calls| totals.syscalls = *calls);
        told.into_iter().map(|w| ((w.namespace, w.workload), w.syscalls)).collect()
    }

    #[test]
    fn what_finds_no_room_is_in_its_namespaces_rest_and_then_in_nobodys_and_counted() {
        let mut book = Book::default();
        for n in 0..MOST_WORKLOADS {
            book.take(Some(&of("shop", &format!("Job/{n}"))), &mut 1);
        }
        assert_eq!((sums(&book).len(), book.take_folded()), (MOST_WORKLOADS, 0));
        book.take(Some(&of("shop", "Job/one-more")), &mut 10);
        book.take(Some(&of("shop", "Job/0")), &mut 10);
        let told = sums(&book);
        let at = |namespace: &str, workload: &str| told[&(namespace.into(), workload.into())];
        assert_eq!((at("shop", ""), at("shop", "Job/0"), book.take_folded()), (10, 11, 1));
        for n in 0..MOST {
            book.take(Some(&of(&format!("ns-{n}"), "Job/a")), &mut 1);
        }
        let told = sums(&book);
        assert_eq!(told.len(), MOST);
        assert_eq!(told.values().sum::<u64>(), (MOST_WORKLOADS + 20 + MOST) as u64);
        let without_room = MOST - (MOST - 2 - MOST_WORKLOADS);
        assert_eq!(told[&<_>::default()], without_room as u64);
        assert_eq!(book.take_folded(), MOST as u64);
    }

    #[test]
    fn signals_are_put_together_by_workload_with_the_pods_that_run() {
        let pod = |name: &str, uid: u8, phase: &str| {
            format!(
                "---\nkind: Pod\nmetadata: {{namespace: shop, name: {name}, \
                   uid: 8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f{uid:02}, ownerReferences: \
                     [{{kind: Job, name: a, controller: true}}]}}\nstatus: {{phase: {phase}}}\n"
            )
        };
        let text = [pod("a", 1, "Running"), pod("b", 2, "Succeeded"), pod("c", 3, "Pending")];
        let pods = PodTable::parse(&text.concat()).unwrap();
        let totals = |workload: &str, ingress_bytes, syscalls| WorkloadTotals {
            namespace: "shop".into(),
            workload: workload.into(),
            ingress_bytes,
            syscalls,
            ..WorkloadTotals::default()
        };
        let parts = [totals("Job/z", 1, 0), totals("Job/a", 2, 0), totals("Job/a", 0, 3)];
        let with_pods = WorkloadTotals { pods: 2, ..totals("Job/a", 2, 3) };
        assert_eq!(merged(parts, &pods), [with_pods, totals("Job/z", 1, 0)]);
    }
}
