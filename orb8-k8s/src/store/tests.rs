//! The store, told what an API would tell it.

use super::{known::Entry, *};
use crate::{Container, addresses::Tenure, manifest::Object};

const SECOND: i64 = 1_000_000_000;
/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600 * SECOND;
const WEB: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
const DB: &str = "1d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
const IP: &str = "10.0.0.7";

fn at(second: i64) -> i64 {
    START + second * SECOND
}

fn id(digit: &str) -> ContainerId {
    digit.repeat(64).parse().unwrap()
}

/// A pod that runs since `since` seconds after the start.
fn running(name: &str, uid: &str, since: i64) -> serde_json::Value {
    serde_json::json!({
        "metadata": { "name": name, "namespace": "shop", "uid": uid },
        "spec": { "nodeName": "n1" },
        "status": {
            "phase": "Running", "podIP": IP, "startTime": stamp(since),
            "containerStatuses": [{
                "name": "app", "containerID": format!("containerd://{}", id("a")),
                "state": { "running": { "startedAt": stamp(since) } },
            }],
        },
    })
}

fn stamp(second: i64) -> String {
    format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60)
}

fn finish(mut pod: serde_json::Value, second: i64) -> serde_json::Value {
    pod["status"]["phase"] = "Succeeded".into();
    pod["status"]["containerStatuses"][0]["state"] =
        serde_json::json!({ "terminated": { "finishedAt": stamp(second) } });
    pod
}

fn observed(pod: &serde_json::Value) -> Observed {
    let object: Object = serde_json::from_value(pod.clone()).unwrap();
    object.observe("here").unwrap()
}

fn store(pods: &[serde_json::Value], now: i64) -> PodStore {
    let store = PodStore::new("n1");
    store.replace(pods.iter().map(observed).collect(), now);
    store
}

fn who(store: &PodStore, second: i64) -> Option<String> {
    Some(store.by_ip(IP.parse().unwrap(), at(second))?.name.to_string())
}

#[test]
fn a_deleted_pod_answers_for_a_minute_and_leaves_nothing_behind() {
    let web = running("web", WEB, 0);
    let store = store(std::slice::from_ref(&web), at(5));
    store.delete(observed(&finish(web, 100)), at(102));
    assert_eq!(store.source().pods_known, 0);
    let uid = WEB.parse().unwrap();
    store.forget(at(161));
    assert_eq!(&*store.by_uid(&uid).unwrap().name, "web");
    assert_eq!(&*store.by_container(&id("a")).unwrap().1, "app");
    assert_eq!(who(&store, 50).as_deref(), Some("web"));
    assert_eq!(who(&store, 112), None, "it had lost its address by then");
    store.forget(at(163));
    assert_eq!((store.by_uid(&uid), store.by_container(&id("a"))), (None, None));
    let known = store.read();
    assert_eq!((known.pods.len(), known.by_container.len(), known.by_ip.len()), (0, 0, 0));
}

#[test]
fn an_address_used_again_names_each_pod_in_its_time() {
    let (web, db) = (running("web", WEB, 0), running("db", DB, 20));
    let store = store(std::slice::from_ref(&web), at(5));
    store.delete(observed(&finish(web, 15)), at(19));
    store.apply(observed(&db), at(24));
    let names: Vec<_> = [5, 14, 18, 21, 30, 500].map(|second| who(&store, second)).into();
    let named: Vec<_> = names.iter().map(Option::as_deref).collect();
    let (web, db) = (Some("web"), Some("db"));
    assert_eq!(named, [web, web, web, db, db, db]);
}

#[test]
fn a_finished_pod_gives_its_address_up_while_its_object_stays() {
    let web = finish(running("web", WEB, 0), 15);
    let store = store(&[web], at(3_000));
    assert_eq!(who(&store, 10).as_deref(), Some("web"));
    assert_eq!(who(&store, 2_000), None);
    assert_eq!(store.source().pods_known, 1);
}

#[test]
fn a_pod_on_the_host_network_has_no_address_of_its_own() {
    let mut web = running("web", WEB, 0);
    web["spec"]["hostNetwork"] = true.into();
    assert_eq!(who(&store(&[web], at(5)), 5), None);
}

#[test]
fn a_restarted_container_answers_under_both_ids_for_a_minute() {
    let mut web = running("web", WEB, 0);
    let store = store(std::slice::from_ref(&web), at(5));
    web["status"]["containerStatuses"][0]["containerID"] =
        format!("containerd://{}", id("b")).into();
    store.apply(observed(&web), at(10));
    for digit in ["a", "b"] {
        assert_eq!(&*store.by_container(&id(digit)).unwrap().1, "app");
    }
    store.forget(at(71));
    assert_eq!(store.by_container(&id("a")), None);
    assert_eq!(&*store.by_container(&id("b")).unwrap().1, "app");
}

#[test]
fn a_pod_that_an_old_list_lacks_comes_back_and_a_deleted_one_does_not() {
    let (web, db) = (running("web", WEB, 0), running("db", DB, 0));
    let store = store(&[web.clone(), db.clone()], at(5));
    store.delete(observed(&db), at(6));
    store.replace(vec![], at(7));
    assert_eq!(store.source().pods_known, 0);
    store.replace(vec![observed(&web), observed(&db)], at(8));
    assert_eq!(store.source().pods_known, 1);
    store.forget(at(100));
    assert_eq!(
        store.by_uid(&WEB.parse().unwrap()).map(|pod| pod.name.to_string()),
        Some("web".into())
    );
    assert_eq!(who(&store, 50).as_deref(), Some("web"));
    assert_eq!(store.by_uid(&DB.parse().unwrap()), None);
}

#[test]
fn a_mirror_that_was_made_again_is_found_by_the_kubelets_hash() {
    let hash = "0f5d7cbb6ed9ea8e6ba0f1d9d2c8d1ff";
    let mirror = |uid: &str| {
        let mut pod = running("kube-proxy", uid, 0);
        pod["metadata"]["annotations"] = serde_json::json!({ "kubernetes.io/config.hash": hash });
        pod
    };
    let store = store(&[mirror(WEB)], at(5));
    store.delete(observed(&mirror(WEB)), at(10));
    assert_eq!(store.by_uid(&hash.parse().unwrap()).unwrap().uid.to_string(), WEB);
    store.apply(observed(&mirror(DB)), at(11));
    store.forget(at(100));
    assert_eq!(store.by_uid(&hash.parse().unwrap()).unwrap().uid.to_string(), DB);
}

#[test]
fn the_generation_moves_with_answers_and_with_nothing_else() {
    let web = running("web", WEB, 0);
    let store = store(std::slice::from_ref(&web), at(5));
    let first = store.generation();
    store.apply(observed(&web), at(6));
    store.replace(vec![observed(&web)], at(7));
    store.forget(at(7));
    assert_eq!(store.generation(), first);
    store.apply(observed(&finish(web, 8)), at(9));
    assert_ne!(store.generation(), first);
}

#[test]
fn tombstones_are_bounded_however_fast_pods_come_and_go() {
    let store = PodStore::new("n1");
    let most = Keep::default().most;
    for n in 0..most + 500 {
        let pod = running("job", &format!("{n:08x}-3f56-4f60-a7a8-0c2f8b5e6f3a"), 0);
        store.delete(observed(&pod), at(5));
    }
    store.forget(at(6));
    let known = store.read();
    assert_eq!((known.pods.len(), known.by_ip.len()), (most, most));
}

#[test]
fn a_pod_takes_about_a_kilobyte() {
    let labels =
        ["app", "app.kubernetes.io/name", "app.kubernetes.io/instance", "pod-template-hash"];
    let mut web = running("web-5d9c7bb4f8-x2x7k", WEB, 0);
    web["metadata"]["labels"] = labels
        .map(|name| (name.to_owned(), serde_json::json!("web-frontend")))
        .into_iter()
        .collect();
    let pod = observed(&web).pod;
    let label =
        |(name, value): (&str, &str)| size_of::<(Box<str>, Box<str>)>() + name.len() + value.len();
    let container = |c: &Container| size_of::<Container>() + 32 + c.name.len();
    let pod_bytes = size_of::<Pod>()
        + pod.name.len()
        + pod.namespace.len()
        + 96
        + pod.labels.iter().map(label).sum::<usize>()
        + pod.ips.len() * size_of::<IpAddr>()
        + pod.containers.iter().map(container).sum::<usize>();
    let indexed = size_of::<(PodUid, Entry)>()
        + size_of::<(ContainerId, (PodUid, Arc<str>))>()
        + size_of::<(IpAddr, Vec<(PodUid, Tenure)>)>()
        + size_of::<(PodUid, Tenure)>();
    let bytes = pod_bytes + indexed * 8 / 7;
    assert!(bytes <= 1_280, "{pod_bytes} + {indexed}");
}

/// A store of the whole cluster that was listed at second 100, with its watch.
fn everywhere(keep: Keep, pods: &[(&str, &str, &str)]) -> PodStore {
    let store = PodStore::everywhere(keep);
    store.listed(pods.iter().map(|(name, uid, node)| placed(name, uid, node)).collect(), at(100));
    store.contact.connected();
    store
}

fn placed(name: &str, uid: &str, node: &str) -> Object {
    let mut pod = running(name, uid, 0);
    pod["spec"]["nodeName"] = node.into();
    serde_json::from_value(pod).unwrap()
}

fn nodes(store: &PodStore, namespace: &str, prefix: &str, since: i64) -> Option<String> {
    let nodes = store.nodes_of(namespace, prefix, at(since))?;
    Some(nodes.into_iter().collect::<Vec<_>>().join(" "))
}

#[test]
fn the_nodes_of_pods_are_told_while_they_exist_and_for_as_long_as_is_asked_for() {
    let pods = [("web-1", WEB, "n1"), ("db-0", DB, "n2")];
    let store = everywhere(Keep { time: Duration::from_secs(300), most: 10 }, &pods);
    let told = |namespace, prefix, since| nodes(&store, namespace, prefix, since);
    assert_eq!(told("shop", "", 100).as_deref(), Some("n1 n2"));
    assert_eq!(told("shop", "web", 100).as_deref(), Some("n1"));
    assert_eq!(told("", "db-0", 100).as_deref(), Some("n2"));
    assert_eq!(told("bank", "", 100).as_deref(), Some(""));
    assert_eq!(told("shop", "", 99), None, "who was there before it was listed?");
    store.deleted(placed("db-0", DB, "n2"), at(200));
    assert_eq!(told("shop", "", 200).as_deref(), Some("n1 n2"));
    assert_eq!(told("shop", "", 201).as_deref(), Some("n1"));
    store.sweep(at(501));
    assert_eq!(told("shop", "", 200), None, "it has been forgotten");
    assert_eq!(told("shop", "", 201).as_deref(), Some("n1"));
}

#[test]
fn the_nodes_of_pods_are_not_told_where_some_may_be_missing() {
    let pods = [("web-1", WEB, "n1"), ("db-0", DB, "n2")];
    let store = everywhere(Keep { time: Duration::from_secs(300), most: 0 }, &pods);
    store.contact.away("it is not there");
    assert_eq!(nodes(&store, "shop", "", 150), None);
    store.contact.connected();
    assert_eq!(nodes(&store, "shop", "", 150).as_deref(), Some("n1 n2"));
    // What came and went before another list was seen by nobody.
    store.listed(vec![placed("web-1", WEB, "n1")], at(200));
    assert_eq!(nodes(&store, "shop", "", 150), None);
    assert_eq!(nodes(&store, "shop", "", 200).as_deref(), Some("n1 n2"));
    // There is no room to remember.
    store.sweep(at(201));
    assert_eq!(nodes(&store, "shop", "", 200), None);
    assert_eq!(nodes(&store, "shop", "", 201).as_deref(), Some("n1"));
}

#[test]
fn a_store_of_all_nodes_has_every_pod_that_has_a_node_and_no_more_of_it_than_peers_need() {
    let pods = [("web-1", WEB, "n1"), ("late", DB, "")];
    let store = everywhere(Keep::default(), &pods);
    let kept = store.pods();
    assert_eq!((kept.len(), &*kept[0].name), (1, "web-1"));
    assert!(kept[0].containers.is_empty());
    store.changed(placed("late", DB, "n9"), at(110));
    assert_eq!(nodes(&store, "", "late", 110).as_deref(), Some("n9"));
}
