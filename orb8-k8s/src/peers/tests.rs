//! The cluster's addresses, told what an API would tell of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{book::Addressed, services::Service, *};

const SECOND: i64 = 1_000_000_000;
/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600 * SECOND;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn at(second: i64) -> i64 {
    START + second * SECOND
}

fn metadata(name: &str, created: i64) -> Value {
    // A different UID for each name.
    let uid = format!("{:0>8}-3f56-4f60-a7a8-0c2f8b5e6f3a", hex(name));
    json!({ "name": name, "namespace": "shop", "uid": uid,
        "creationTimestamp": format!("2026-01-01T00:{:02}:{:02}Z", created / 60, created % 60) })
}

fn hex(name: &str) -> String {
    name.bytes().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn service(name: &str, created: i64, spec: Value, balanced: Option<&str>) -> Service {
    let ingress: Vec<Value> = balanced.iter().map(|ip| json!({ "ip": ip })).collect();
    let object = json!({ "metadata": metadata(name, created), "spec": spec,
        "status": { "loadBalancer": { "ingress": ingress } } });
    serde_json::from_value(object).unwrap()
}

fn cluster_ip(name: &str, created: i64, ip: &str) -> Service {
    service(name, created, json!({ "clusterIP": ip }), None)
}

fn node(name: &str, ip: &str) -> Node {
    let address = json!({ "type": "InternalIP", "address": ip });
    let object = json!({ "metadata": metadata(name, 0), "status": { "addresses": [address] } });
    serde_json::from_value(object).unwrap()
}

fn slice(name: &str, service: &str, endpoints: Value) -> EndpointSlice {
    let mut metadata = metadata(name, 0);
    metadata["labels"] = json!({ "kubernetes.io/service-name": service });
    serde_json::from_value(json!({ "metadata": metadata, "endpoints": endpoints })).unwrap()
}

impl PeerStore {
    fn name(&self, ip: &str, port: u16, protocol: u8, second: i64, answers: bool) -> String {
        let end = End { ip: ip.parse().unwrap(), port, protocol };
        match self.named(end, at(second), answers) {
            None => "nobody".into(),
            Some(Who::Pod(pod)) => format!("pod {}", pod.name),
            Some(Who::Other(named)) => {
                format!(
                    "{} {}",
                    named.kind.as_str_name().trim_start_matches("PEER_KIND_"),
                    named.name
                )
            }
        }
    }
}

#[test]
fn a_service_is_found_by_all_that_clients_see_of_it() {
    let store = PeerStore::new("n1");
    let spec = json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
        "externalIPs": ["198.51.100.7", "192.168.0.2"],
        "ports": [{ "port": 80, "nodePort": 30_080 },
            { "port": 53, "protocol": "UDP", "nodePort": 30_053 }],
    });
    let headless =
        service("headless", 0, json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }), None);
    store.services.listed(vec![service("web", 0, spec, Some("203.0.113.1")), headless], at(10));
    store.nodes.listed(vec![node("n2", "192.168.0.2")], at(10));
    for (ip, port, protocol, answers, expected) in [
        ("10.96.0.1", 80, TCP, false, "SERVICE web"),
        ("::ffff:10.96.0.1", 80, TCP, false, "SERVICE web"),
        ("fd00:96::1", 7, UDP, false, "SERVICE web"), // its own, whatever the port
        ("203.0.113.1", 80, TCP, false, "SERVICE web"),
        ("203.0.113.1", 80, UDP, true, "nobody"), // may be another Service's
        ("198.51.100.7", 53, UDP, false, "SERVICE web"),
        ("192.168.0.2", 80, TCP, false, "NODE n2"), // a client on it may have this port
        ("192.168.0.2", 80, TCP, true, "SERVICE web"),
        ("192.168.0.2", 30_080, TCP, true, "SERVICE web"),
        ("192.168.0.2", 30_080, TCP, false, "NODE n2"),
        ("192.168.0.2", 30_080, UDP, true, "NODE n2"),
        ("192.168.0.2", 22, TCP, true, "NODE n2"),
        ("10.96.0.2", 80, TCP, true, "nobody"),
    ] {
        let found = store.name(ip, port, protocol, 20, answers);
        assert_eq!(found, expected, "{ip} {port} {protocol} {answers}");
    }
}

#[test]
fn a_cluster_ip_that_is_used_again_names_whoever_had_it_then() {
    let store = PeerStore::new("n1");
    let named = |second| store.name("10.96.0.1", 80, TCP, second, false);
    store.services.listed(vec![cluster_ip("old", 0, "10.96.0.1")], at(10));
    // Told late: by then, the next one has the address.
    store.services.changed(cluster_ip("new", 30, "10.96.0.1"), at(33));
    assert_eq!([named(20), named(29), named(32)], ["SERVICE old", "SERVICE old", "nobody"]);
    store.services.deleted(cluster_ip("old", 0, "10.96.0.1"), at(34));
    let found = [named(20), named(30), named(32), named(100)];
    assert_eq!(found, ["SERVICE old", "nobody", "SERVICE new", "SERVICE new"]);
    store.services.sweep(at(200));
    assert_eq!([named(20), named(100)], ["nobody", "SERVICE new"]);
}

#[test]
fn an_address_that_a_service_gets_or_loses_is_its_own_only_in_between() {
    let store = PeerStore::new("n1");
    let named = |second| store.name("203.0.113.1", 80, TCP, second, false);
    let ports = json!({ "ports": [{ "port": 80 }] });
    store.services.listed(vec![service("web", 0, ports.clone(), None)], at(10));
    let generation = store.generation();
    store.services.changed(service("web", 0, ports.clone(), Some("203.0.113.1")), at(20));
    assert_ne!(store.generation(), generation);
    store.services.changed(service("web", 0, ports.clone(), Some("203.0.113.1")), at(25));
    assert_eq!([named(15), named(21)], ["nobody", "SERVICE web"]);
    let generation = store.generation();
    store.services.changed(service("web", 0, ports, None), at(40));
    assert_ne!(store.generation(), generation);
    assert_eq!([named(30), named(60)], ["SERVICE web", "nobody"]);
}

#[test]
fn what_is_gone_answers_for_a_minute_and_is_then_forgotten_whole() {
    let store = PeerStore::new("n1");
    let spec = json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80, "nodePort": 30_080 }] });
    store.services.listed(vec![service("web", 0, spec.clone(), None)], at(10));
    // Its port of the node changes, and a list lacks it, has it again, and lacks it.
    let other = json!({ "clusterIP": "10.96.0.1", "ports": [{ "port": 80, "nodePort": 30_081 }] });
    store.services.changed(service("web", 0, other, None), at(20));
    for (second, there) in [(30, false), (40, true), (50, false)] {
        let list = if there { vec![service("web", 0, spec.clone(), None)] } else { vec![] };
        store.services.listed(list, at(second));
    }
    assert_eq!(store.name("10.96.0.1", 80, TCP, 45, false), "SERVICE web");
    store.services.sweep(at(100));
    assert_eq!(store.services.len().0, 1);
    let generation = store.generation();
    store.services.sweep(at(111));
    assert_eq!((store.services.len(), store.generation()), ((0, 0), generation));
}

#[test]
fn endpoints_outside_of_the_cluster_name_the_service_that_lists_them() {
    let store = PeerStore::new("n1");
    let endpoints = json!([
        { "addresses": ["203.0.113.9"] },
        { "addresses": ["10.0.0.5"], "targetRef": { "kind": "Pod", "name": "db-0" } },
    ]);
    let list = vec![
        slice("abcd", "bank", endpoints),
        slice("bbcd", "one", json!([{ "addresses": ["203.0.113.10"] }])),
        slice("cbcd", "two", json!([{ "addresses": ["203.0.113.10", "example.org"] }])),
        slice("dbcd", "", json!([{ "addresses": ["203.0.113.11"] }])),
        slice("ebcd", "empty", Value::Null),
    ];
    store.endpoints.listed(list, at(10));
    let named = |ip| store.name(ip, 443, TCP, 20, true);
    assert_eq!(named("203.0.113.9"), "EXTERNAL bank");
    assert_eq!(named("10.0.0.5"), "nobody", "that is the pod's own address");
    assert_eq!(named("203.0.113.10"), "nobody", "two Services list it");
    assert_eq!(named("203.0.113.11"), "nobody");
}

#[test]
fn pods_of_other_nodes_are_known_but_for_those_on_the_host_network() {
    let store = PeerStore::new("n1");
    let pod = |name: &str, on: &str, host_network, ip: &str| {
        let object = json!({ "metadata": metadata(name, 0),
            "spec": { "nodeName": on, "hostNetwork": host_network },
            "status": { "phase": "Running", "startTime": "2026-01-01T00:00:00Z", "podIP": ip,
                "containerStatuses": [{ "name": "a", "containerID": format!("containerd://{}", "a".repeat(64)) }] } });
        serde_json::from_value(object).unwrap()
    };
    store.nodes.listed(vec![node("n2", "192.168.0.2")], at(10));
    let list = vec![
        pod("aaaa", "n2", false, "10.0.2.5"),
        pod("bbbb", "n2", true, "192.168.0.2"),
        pod("cccc", "n1", false, "10.0.1.5"),
    ];
    store.pods.listed(list, at(10));
    let named = |ip| store.name(ip, 80, TCP, 20, false);
    assert_eq!(named("10.0.2.5"), "pod aaaa");
    assert_eq!(named("192.168.0.2"), "NODE n2");
    assert_eq!(named("10.0.1.5"), "nobody", "this node's pods are known elsewhere");
    let kept = store.pods.pods();
    assert!(kept.iter().all(|pod| pod.containers.is_empty()), "{kept:?}");
    assert_eq!((store.source().pods_known, store.source().state()), (2, PodSourceState::Syncing));
}

proptest! {
    #[test]
    fn objects_that_make_no_sense_are_left_out_and_never_panic(
        text: String, port: u64, field in 0..6usize,
    ) {
        let mut objects = [
            json!({ "clusterIP": text, "ports": [{ "port": port }] }),
            json!({ "clusterIPs": [text], "ports": [{ "port": 80, "nodePort": port }] }),
            json!({ "externalIPs": [text], "ports": [{ "port": 80, "protocol": text }] }),
            json!({ "ports": null, "clusterIP": null }),
            json!({ "clusterIPs": null, "type": text }),
            json!({}),
        ];
        let spec = objects[field].take();
        for metadata in [metadata("web", 0), json!({ "name": text, "uid": text }), json!({})] {
            let object = json!({ "metadata": metadata, "spec": spec });
            if let Ok(service) = serde_json::from_value::<Service>(object) {
                let _ = service.read();
            }
        }
    }
}
