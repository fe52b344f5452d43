//! The watches of the whole cluster: what they ask for, and what stays known while the API is away.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use orb8_k8s::{
    KubernetesSource,
    peers::{End, PeerStore, Who},
    watcher::Timing,
};
use orb8_proto::PodSourceState;
use orb8_testkit::KubeApi;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

fn service(name: &str, ip: &str) -> Value {
    json!({ "kind": "Service", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "clusterIP": ip } })
}

fn pod(name: &str, node: &str, ip: &str) -> Value {
    json!({ "kind": "Pod", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "nodeName": node }, "status": { "phase": "Running", "podIP": ip } })
}

fn named(peers: &PeerStore, ip: &str) -> Option<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let end = End { ip: ip.parse().unwrap(), port: 80, protocol: 6 };
    Some(match peers.named(end, i64::try_from(now).unwrap(), false)? {
        Who::Pod(pod) => pod.name.to_string(),
        Who::Other(named) => named.name.to_string(),
    })
}

fn wait(what: &str, peers: &PeerStore, until: impl Fn() -> bool) {
    let began = Instant::now();
    while !until() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}; {:?}", peers.source());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_cluster_is_known_by_one_list_and_one_watch_of_each_kind_and_stays_known() {
    let api = KubeApi::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    api.write_kubeconfig(&kubeconfig, None).unwrap();
    api.apply(service("web", "10.96.0.1")).unwrap();
    api.apply(pod("far", "n2", "10.0.2.5")).unwrap();
    api.apply(pod("near", "n1", "10.0.1.5")).unwrap();

    let peers = Arc::new(PeerStore::new("n1"));
    let token = CancellationToken::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let source = KubernetesSource::Kubeconfig(Some(kubeconfig));
    let watch = Arc::clone(&peers).watch(source, Timing::default(), token.clone());
    let watching = runtime.spawn(watch);
    let state = || peers.source().state();
    wait("a connection", &peers, || state() == PodSourceState::Connected);
    assert_eq!(named(&peers, "10.96.0.1").as_deref(), Some("web"));
    assert_eq!(named(&peers, "10.0.2.5").as_deref(), Some("far"));
    assert_eq!(named(&peers, "10.0.1.5"), None);
    assert_eq!(peers.source().pods_known, 1);
    api.await_watches(4, PATIENCE).unwrap();
    api.apply(service("late", "10.96.0.2")).unwrap();
    wait("a new Service", &peers, || named(&peers, "10.96.0.2").is_some());
    let requests = api.requests();
    assert_eq!(requests.len(), 8, "{requests:#?}");
    let watches = requests.iter().filter(|request| request.is_watch());
    let mut paths: Vec<&str> = watches.map(|request| &*request.path).collect();
    paths.sort_unstable();
    let slices = "/apis/discovery.k8s.io/v1/endpointslices";
    assert_eq!(paths, ["/api/v1/nodes", "/api/v1/pods", "/api/v1/services", slices]);

    api.refuse(true);
    wait("an API that is away", &peers, || state() == PodSourceState::Away);
    let told = peers.source();
    assert!(told.reason.contains(": ") && told.reason.contains("127.0.0.1"), "{told:?}");
    api.delete("Service", "shop", "late").unwrap();
    api.apply(service("later", "10.96.0.3")).unwrap();
    for ip in ["10.96.0.1", "10.96.0.2", "10.0.2.5"] {
        assert!(named(&peers, ip).is_some(), "a gap: {ip}");
    }
    api.refuse(false);
    wait("the API again", &peers, || state() == PodSourceState::Connected);
    wait("what happened meanwhile", &peers, || named(&peers, "10.96.0.3").is_some());

    token.cancel();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, watching).await }).unwrap().unwrap();
}
