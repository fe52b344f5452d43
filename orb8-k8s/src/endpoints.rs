//! Where the endpoints of one Service are: an address for each node, by the Service's
//! EndpointSlices.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    KubernetesSource,
    api::{Query, Resource},
    contact::{Contact, WatchState},
    watcher::{Mirror, Timing, Watcher},
};

/// The port that is meant where none is given.
const PORT_NAME: &str = "grpc";

/// Where somebody can be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its node; none where the slice does not say.
    pub node: Option<Arc<str>>,
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}

/// All that is known of a Service's endpoints at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// One for each node, and for each endpoint without one.
    pub endpoints: BTreeSet<Endpoint>,
    /// Why some are left out.
    pub problem: Option<String>,
}

/// Watches the endpoints of a Service. It does nothing before it is [run](EndpointWatcher::run).
pub struct EndpointWatcher(Watcher<EndpointStore>);

impl EndpointWatcher {
    /// A watcher of a Service's endpoints: at this port, or else at the one that is named `grpc`,
    /// or else at the only one.
    #[must_use]
    pub fn new(
        source: KubernetesSource,
        namespace: &str,
        service: &str,
        port: Option<u16>,
        timing: Timing,
    ) -> Self {
        let store = EndpointStore {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port,
            slices: Mutex::default(),
            found: watch::Sender::default(),
            contact: Contact::default(),
        };
        Self(Watcher::new(source, Arc::new(store), timing))
    }

    /// What it finds, now and later.
    #[must_use]
    pub fn found(&self) -> watch::Receiver<Found> {
        self.0.mirror().found.subscribe()
    }

    /// How the watch is doing, now and later.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<WatchState> {
        self.0.mirror().contact.states()
    }

    /// Watches until `token` says stop.
    pub async fn run(self, token: CancellationToken) {
        self.0.run(token).await;
    }
}

/// The slices of a Service, by name. Its watcher writes it.
struct EndpointStore {
    namespace: String,
    service: String,
    port: Option<u16>,
    slices: Mutex<HashMap<String, EndpointSlice>>,
    found: watch::Sender<Found>,
    contact: Contact,
}

/// An EndpointSlice: the subset that is read of it.
#[derive(Deserialize)]
struct EndpointSlice {
    metadata: Metadata,
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    resource_version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceEndpoint {
    addresses: Option<Vec<String>>,
    #[serde(default)]
    conditions: Conditions,
    node_name: Option<String>,
    target_ref: Option<TargetRef>,
}

/// None of them: as the API documents it, ready, and not about to end.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct TargetRef {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
}

impl Resource for EndpointSlice {
    fn version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref()
    }
}

/// How well an endpoint is said to be: the better, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    Ending,
    Starting,
    Serving,
    Ready,
}

impl Conditions {
    fn fitness(&self) -> Fitness {
        let ready = self.ready.unwrap_or(true);
        match self {
            _ if ready => Fitness::Ready,
            Self { serving: Some(true), .. } => Fitness::Serving,
            Self { terminating: Some(true), .. } => Fitness::Ending,
            _ => Fitness::Starting,
        }
    }
}

/// Whom an endpoint is of: two of one node are one after the other, and one is enough.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place<'a> {
    Node(&'a str),
    Target(&'a str),
    Address(IpAddr),
}

impl EndpointStore {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, EndpointSlice>> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, with: impl FnOnce(&mut HashMap<String, EndpointSlice>)) {
        let mut slices = self.lock();
        with(&mut slices);
        let found = self.find(&slices);
        self.found.send_if_modified(|known| {
            let changed = *known != found;
            *known = found;
            changed
        });
    }

    /// One endpoint for each node: of several pods the one that is best off, and of its addresses
    /// an IPv4 one if there is any.
    ///
    /// Those that are not ready are taken where there is no better one, whether or not the Service
    /// publishes them as if they were: an agent that is starting, ending or broken is one whose
    /// answers would otherwise be missed by nobody.
    fn find(&self, slices: &HashMap<String, EndpointSlice>) -> Found {
        type Pods<'a> = BTreeMap<&'a str, (Fitness, BTreeSet<(IpAddr, u16)>)>;
        let mut places: BTreeMap<Place<'_>, Pods<'_>> = BTreeMap::new();
        let mut problem = None;
        for slice in slices.values() {
            let Some(port) = self.port_of(slice) else {
                let (namespace, service) = (&self.namespace, &self.service);
                problem = Some(format!(
                    "Service {namespace}/{service} has no port named {PORT_NAME}; name it, or say \
                     which: kubernetes:{namespace}/{service}:PORT"
                ));
                continue;
            };
            for endpoint in slice.endpoints.iter().flatten() {
                // Which of several to use is not said; all are of one pod.
                let Some(ip) = endpoint.ip() else { continue };
                let target = endpoint.target_ref.as_ref().map_or("", |target| &target.name);
                let place = match (&endpoint.node_name, target) {
                    (Some(node), _) if !node.is_empty() => Place::Node(node),
                    (_, "") => Place::Address(ip),
                    (_, target) => Place::Target(target),
                };
                let fitness = endpoint.conditions.fitness();
                let pods = places.entry(place).or_default();
                let pod = pods.entry(target).or_insert((fitness, BTreeSet::new()));
                // Slices of two families are not written at the same instant.
                pod.0 = pod.0.max(fitness);
                pod.1.insert((ip, port));
            }
        }
        let one = |(place, pods): (Place<'_>, Pods<'_>)| {
            let best =
                pods.into_iter().max_by_key(|(name, (fitness, _))| (*fitness, Reverse(*name)));
            let (ip, port) = best?.1.1.into_iter().next()?;
            let node = if let Place::Node(node) = place { Some(node.into()) } else { None };
            Some(Endpoint { node, ip, port })
        };
        Found { endpoints: places.into_iter().filter_map(one).collect(), problem }
    }

    fn port_of(&self, slice: &EndpointSlice) -> Option<u16> {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let named = || ports.iter().find(|port| port.name.as_deref() == Some(PORT_NAME));
        let only = || if let [one] = ports { Some(one) } else { None };
        self.port.or_else(|| named().or_else(only)?.port)
    }
}

impl SliceEndpoint {
    fn ip(&self) -> Option<IpAddr> {
        let first = self.addresses.as_ref()?.first()?;
        first.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
    }
}

impl Mirror for EndpointStore {
    type Object = EndpointSlice;

    fn what(&self) -> &'static str {
        "endpoints of a service"
    }

    fn query(&self) -> Query {
        let path =
            format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", self.namespace);
        let labels = Some(format!("kubernetes.io/service-name={}", self.service));
        Query { labels, ..Query::all(path) }
    }

    fn contact(&self) -> &Contact {
        &self.contact
    }

    fn listed(&self, objects: Vec<EndpointSlice>, _now: i64) {
        let named = objects.into_iter().map(|slice| (slice.metadata.name.clone(), slice));
        self.change(|slices| *slices = named.collect());
    }

    fn changed(&self, object: EndpointSlice, _now: i64) {
        self.change(|slices| drop(slices.insert(object.metadata.name.clone(), object)));
    }

    fn deleted(&self, object: EndpointSlice, _now: i64) {
        self.change(|slices| drop(slices.remove(&object.metadata.name)));
    }

    /// An endpoint that is gone is gone.
    fn sweep(&self, _now: i64) {}
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn store(port: Option<u16>) -> EndpointWatcher {
        EndpointWatcher::new(
            KubernetesSource::InCluster,
            "orb8-system",
            "orb8-agent",
            port,
            Timing::default(),
        )
    }

    fn slice(name: &str, ports: Value, endpoints: &[Value]) -> EndpointSlice {
        let slice = json!({ "metadata": { "name": name }, "ports": ports, "endpoints": endpoints });
        serde_json::from_value(slice).unwrap()
    }

    fn grpc() -> Value {
        json!([{ "name": "metrics", "port": 9091 }, { "name": "grpc", "port": 9090 }])
    }

    /// Conditions: ready, serving, terminating.
    fn endpoint(pod: &str, node: Value, ip: &str, conditions: [bool; 3]) -> Value {
        let [ready, serving, terminating] = conditions;
        json!({ "addresses": [ip], "nodeName": node, "targetRef": { "kind": "Pod", "name": pod },
            "conditions": { "ready": ready, "serving": serving, "terminating": terminating } })
    }

    const READY: [bool; 3] = [true, true, false];
    const STARTING: [bool; 3] = [false, false, false];
    const DRAINING: [bool; 3] = [false, true, true];
    const ENDING: [bool; 3] = [false, false, true];

    fn found(watcher: &EndpointWatcher, slices: Vec<EndpointSlice>) -> Vec<String> {
        watcher.0.mirror().listed(slices, 0);
        let found = watcher.found().borrow().clone();
        let told =
            |e: &Endpoint| format!("{} {}:{}", e.node.as_deref().unwrap_or("-"), e.ip, e.port);
        found.endpoints.iter().map(told).collect()
    }

    #[test]
    fn each_node_has_one_endpoint_the_one_that_is_best_off() {
        let both = |one, other| {
            let endpoints = [
                endpoint("old", "n1".into(), "10.0.0.9", one),
                endpoint("new", "n1".into(), "10.0.0.1", other),
            ];
            found(&store(None), vec![slice("s", grpc(), &endpoints)])
        };
        for (old, new, expected) in [
            (READY, STARTING, "n1 10.0.0.9:9090"),
            (DRAINING, STARTING, "n1 10.0.0.9:9090"),
            (ENDING, STARTING, "n1 10.0.0.1:9090"),
            (DRAINING, READY, "n1 10.0.0.1:9090"),
            // Nothing tells them apart: always the same one.
            (READY, READY, "n1 10.0.0.1:9090"),
        ] {
            assert_eq!(both(old, new), [expected], "{old:?} {new:?}");
        }
        for conditions in [READY, STARTING, DRAINING, ENDING] {
            let alone = [endpoint("a", "n1".into(), "10.0.0.1", conditions)];
            let found = found(&store(None), vec![slice("s", grpc(), &alone)]);
            assert_eq!(found, ["n1 10.0.0.1:9090"], "{conditions:?}: as long as it is there");
        }
    }

    #[test]
    fn of_a_pod_with_two_families_the_ipv4_address_is_used_whatever_is_told_first() {
        let four = |ready| slice("s4", grpc(), &[endpoint("a", "n1".into(), "10.0.0.1", ready)]);
        let six = |ready| slice("s6", grpc(), &[endpoint("a", "n1".into(), "fd00::1", ready)]);
        let watcher = store(None);
        for slices in [
            vec![four(READY), six(READY)],
            vec![six(READY), four(STARTING)],
            vec![six(STARTING), four(READY)],
        ] {
            assert_eq!(found(&watcher, slices), ["n1 10.0.0.1:9090"]);
        }
        assert_eq!(found(&watcher, vec![six(READY)]), ["n1 fd00::1:9090"]);
    }

    #[test]
    fn endpoints_without_a_node_are_told_one_by_one() {
        let endpoints = [
            endpoint("a", Value::Null, "10.0.0.1", READY),
            endpoint("b", Value::Null, "10.0.0.2", READY),
            json!({ "addresses": ["10.0.0.3"] }),
            json!({ "addresses": ["example.org"] }),
            json!({ "addresses": null }),
        ];
        let expected = ["- 10.0.0.1:9090", "- 10.0.0.2:9090", "- 10.0.0.3:9090"];
        assert_eq!(found(&store(None), vec![slice("s", grpc(), &endpoints)]), expected);
        assert!(found(&store(None), vec![slice("s", grpc(), &[])]).is_empty());
    }

    #[test]
    fn the_port_is_the_given_one_or_that_named_grpc_or_the_only_one() {
        let one = [endpoint("a", "n1".into(), "10.0.0.1", READY)];
        let found = |port, ports| {
            let watcher = store(port);
            let endpoints = found(&watcher, vec![slice("s", ports, &one)]);
            let found = watcher.found().borrow().clone();
            (endpoints, found.problem)
        };
        let two = json!([{ "name": "a", "port": 1 }, { "name": "b", "port": 2 }]);
        assert_eq!(found(None, grpc()).0, ["n1 10.0.0.1:9090"]);
        assert_eq!(found(None, json!([{ "port": 7 }])).0, ["n1 10.0.0.1:7"]);
        assert_eq!(found(Some(5), two.clone()).0, ["n1 10.0.0.1:5"]);
        let (endpoints, problem) = found(None, two);
        let problem = problem.unwrap();
        assert!(endpoints.is_empty());
        assert!(problem.contains("orb8-system/orb8-agent has no port named grpc"), "{problem}");
    }
}
