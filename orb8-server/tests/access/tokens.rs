//! Bearer tokens, and the rights of those they are of.

use std::time::Duration;

use orb8_proto::{FlowQuery, NodeQuery, PeerKind, PodQuery, StatusRequest, StreamRequest};
use orb8_testkit::pki::CertificateAuthority;
use serde_json::json;
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::scene::{Scene, let_in, log, pods, told, until};

#[tokio::test]
async fn who_does_not_show_who_it_is_is_refused_with_the_reason_and_logged() {
    let scene = Scene::start().await;
    scene.api.add_token("token-of-old", "old", &[]);
    scene.api.expire_token("token-of-old");
    for (token, words) in [
        ("", "expected a bearer token or a client certificate"),
        ("no-such-token", "the token is not valid: invalid bearer token"),
        ("token-of-old", "token has expired"),
    ] {
        // Each with a server of its own, for each to be the first of its kind in the log.
        let scene = Scene::start().await;
        scene.api.add_token("token-of-old", "old", &[]);
        scene.api.expire_token("token-of-old");
        let (code, said) = pods(&mut scene.client(token), "ns-1").await.unwrap_err();
        assert_eq!(code, Code::Unauthenticated, "{said}");
        assert!(said.contains(words), "{said}");
        assert!(log().tells_of(&["unauthenticated", "the pods of namespace", words]));
        let count = scene.metric("orb8_requests_refused_total{reason=\"unauthenticated\"}").await;
        assert_eq!(count, 1.0);
        scene.end().await;
    }
    let mut client = scene.client("");
    let mut request = Request::new(PodQuery::default());
    request.metadata_mut().insert("authorization", "Basic YW5uOnB3".parse().unwrap());
    let (code, said) = told(client.query_pods(request).await.unwrap_err());
    assert_eq!(code, Code::Unauthenticated);
    assert_eq!(said, "authorization: expected one \"Bearer TOKEN\"");
    // Whether the server works is no secret.
    let mut health = HealthClient::new(scene.channel(Some(scene.tls(&scene.ca, None))));
    health.check(HealthCheckRequest::default()).await.unwrap();
    scene.end().await;
    for secret in ["no-such-token", "token-of-old", "token-of-ann", "YW5uOnB3", "of-the-server"] {
        assert!(!log().text().contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn a_right_in_one_namespace_shows_that_and_nothing_else() {
    let scene = Scene::start().await;
    let mut ann = scene.client("token-of-ann");
    assert_eq!(pods(&mut ann, "ns-1").await, Ok(4));
    for (namespace, words) in [
        ("ns-2", "\"ann\" may not list the pods of namespace \"ns-2\""),
        ("", "\"ann\" may not list the pods of all namespaces; name one with -n"),
    ] {
        let (code, said) = pods(&mut ann, namespace).await.unwrap_err();
        assert_eq!((code, &*said), (Code::PermissionDenied, words));
        let request = StreamRequest { namespace: namespace.into(), ..StreamRequest::default() };
        let (code, said) = told(ann.stream_events(request).await.unwrap_err());
        assert_eq!((code, &*said), (Code::PermissionDenied, words));
    }
    assert!(log().tells_of(&["permission_denied", "ann", "may not list the pods of namespace"]));
    let (code, _) = told(ann.list_nodes(NodeQuery::default()).await.unwrap_err());
    assert_eq!(code, Code::PermissionDenied);
    let of_node = StatusRequest { node: "node-1".into() };
    assert!(ann.get_agent_status(of_node.clone()).await.is_err());
    ann.get_agent_status(StatusRequest::default()).await.unwrap();
    let (code, said) = pods(&mut ann, "NS 1").await.unwrap_err();
    assert_eq!(code, Code::InvalidArgument, "{said}");

    let mut root = scene.client("token-of-root");
    assert_eq!(pods(&mut root, "ns-2").await, Ok(4));
    assert_eq!(pods(&mut root, "").await, Ok(40));
    assert_eq!(root.list_nodes(NodeQuery::default()).await.unwrap().into_inner().nodes.len(), 1);
    root.get_agent_status(of_node).await.unwrap();
    let count = scene.metric("orb8_requests_refused_total{reason=\"permission_denied\"}").await;
    assert_eq!(count, 6.0);
    scene.end().await;
}

#[tokio::test]
async fn an_answer_about_one_namespace_names_nobody_of_another() {
    let scene = Scene::start().await;
    let (mut ann, mut root) = (scene.client("token-of-ann"), scene.client("token-of-root"));
    let query = FlowQuery { namespace: "ns-1".into(), ..FlowQuery::default() };
    for (client, kind, name) in
        [(&mut ann, PeerKind::Hidden, ""), (&mut root, PeerKind::Service, "db")]
    {
        let flows = client.query_flows(query.clone()).await.unwrap().into_inner().flows;
        assert_eq!(flows.len(), 4);
        for peer in flows.into_iter().map(|flow| flow.peer.unwrap()) {
            assert_eq!((peer.kind(), &*peer.name, &*peer.ip), (kind, name, "10.0.0.2"));
        }
    }
    // Whom the server knows is hidden as whom the agent knows is; in a trace as well.
    let named = Scene::start_with(|raw| raw.kubernetes = Some("on".into()), |_| ()).await;
    for (namespace, name, ip) in
        [("ns-1", "app-1-node-1-1", "10.0.0.1"), ("bank", "db-0", "10.0.0.3")]
    {
        let since = "2020-01-01T00:00:00Z";
        let status = json!({ "phase": "Running", "podIP": ip, "startTime": since });
        let metadata = json!({ "name": name, "namespace": namespace, "creationTimestamp": since });
        let spec = json!({ "nodeName": "node-1" });
        let pod = json!({ "kind": "Pod", "metadata": metadata, "spec": spec, "status": status });
        named.api.apply(pod).unwrap();
    }
    let backend = async |token: &str| {
        let answer = named.client(token).query_flows(query.clone()).await.unwrap().into_inner();
        answer.flows.into_iter().next().and_then(|flow| flow.backend)
    };
    until("the server knows the backend", async || {
        backend("token-of-root").await.is_some_and(|backend| backend.name == "db-0")
    })
    .await;
    let of_ann = backend("token-of-ann").await.unwrap();
    assert_eq!((of_ann.kind(), &*of_ann.name, &*of_ann.ip), (PeerKind::Hidden, "", "10.0.0.3"));
    for (token, kind) in [("token-of-ann", PeerKind::Hidden), ("token-of-root", PeerKind::Pod)] {
        let request = StreamRequest { namespace: "ns-1".into(), ..StreamRequest::default() };
        let stream = named.client(token).stream_events(request).await.unwrap().into_inner();
        let flow = crate::streams::flow(stream).await;
        assert_eq!(flow.backend.unwrap().kind(), kind, "{token}");
    }
    named.end().await;
    // Nor what there is where something is not found.
    let query = PodQuery { pod_name: "nothing".into(), ..crate::scene::pods_of("ns-1") };
    let of_ann = told(ann.query_pods(query.clone()).await.unwrap_err());
    let of_root = told(root.query_pods(query).await.unwrap_err());
    assert_eq!((of_ann.0, of_root.0), (Code::NotFound, Code::NotFound));
    assert!(of_ann.1.contains("ns-1/") && !of_ann.1.contains("ns-2/"), "{}", of_ann.1);
    assert!(of_root.1.contains("ns-0/"), "{}", of_root.1);
    scene.api.grant("ann", "list", "pods", "empty");
    let (code, said) = pods(&mut ann, "empty").await.unwrap_err();
    assert_eq!(code, Code::NotFound);
    assert!(said.contains("none is known"), "{said}");
    scene.end().await;
}

#[tokio::test]
async fn while_the_api_is_away_nobody_is_let_in() {
    let scene =
        Scene::start_with(|_| (), |config| config.access.answer = Duration::from_millis(1_500))
            .await;
    let mut root = scene.client("token-of-root");
    let away = ["onnection refused", "500", "no answer within 1.5s", "403"];
    for (number, words) in away.into_iter().enumerate() {
        until("the API says yes", async || {
            pods(&mut scene.client("token-of-root"), "").await.is_ok()
        })
        .await;
        match number {
            0 => scene.api.refuse(true),
            1 => scene.api.faults(|faults| faults.status = Some(500)),
            2 => scene.api.delay(Duration::from_secs(600)),
            _ => scene.api.faults(|faults| faults.forbidden = true),
        }
        // What it said before is believed for a moment.
        until("nobody knows any more", async || {
            pods(&mut scene.client("token-of-root"), "").await.is_err()
        })
        .await;
        let (code, said) = pods(&mut root, "").await.unwrap_err();
        assert_eq!(code, Code::Unavailable, "{said}");
        assert!(said.contains("the Kubernetes API does not say who may see this"), "{said}");
        assert!(said.contains(words), "{said}");
        scene.api.refuse(false);
        scene.api.faults(|faults| {
            (faults.status, faults.delay, faults.forbidden) = (None, Duration::ZERO, false);
        });
    }
    assert!(log().tells_of(&["unavailable", "the Kubernetes API does not say"]));
    scene.end().await;
}

#[tokio::test]
async fn a_changed_ca_of_the_api_and_a_changed_token_of_the_server_count_without_a_restart() {
    let scene = Scene::start().await;
    let mut root = scene.client("token-of-root");
    assert!(pods(&mut root, "").await.is_ok());
    // The API is another one, as far as the server knows.
    scene.api.change_ca(&CertificateAuthority::new("new").unwrap()).unwrap();
    until("the API is not trusted", async || {
        let refused = pods(&mut scene.client("token-of-root"), "").await;
        refused.is_err_and(|(code, said)| code == Code::Unavailable && said.contains("ertificate"))
    })
    .await;
    let_in(&scene.api, scene.dir.path(), "of-the-server");
    assert!(pods(&mut root, "").await.is_ok());

    scene.api.faults(|faults| faults.tokens = Some(vec!["another".into()]));
    until("the server's token is no good", async || {
        let refused = pods(&mut scene.client("token-of-root"), "").await;
        refused.is_err_and(|(code, said)| code == Code::Unavailable && said.contains("401"))
    })
    .await;
    let_in(&scene.api, scene.dir.path(), "another");
    assert!(pods(&mut root, "").await.is_ok());
    scene.end().await;
}

#[tokio::test]
async fn answers_are_kept_for_a_while_and_rights_that_are_taken_away_end() {
    let long = Duration::from_secs(600);
    let scene = Scene::start_with(|_| (), |config| config.access.believed = long).await;
    let mut ann = scene.client("token-of-ann");
    for _ in 0..5 {
        assert_eq!(pods(&mut ann, "ns-1").await, Ok(4));
    }
    let asked = |path: &str| {
        scene.api.requests().iter().filter(|request| request.path.ends_with(path)).count()
    };
    assert_eq!(asked("tokenreviews"), 1);
    // Whether she may see all, which is forgotten sooner for being a no, and whether this.
    assert!(asked("subjectaccessreviews") >= 2);
    scene.end().await;

    let scene = Scene::start().await;
    let mut ann = scene.client("token-of-ann");
    assert_eq!(pods(&mut ann, "ns-1").await, Ok(4));
    scene.api.revoke("ann");
    until("ann is refused", async || {
        let refused = pods(&mut scene.client("token-of-ann"), "ns-1").await;
        refused.is_err_and(|(code, _)| code == Code::PermissionDenied)
    })
    .await;
    scene.end().await;
}
