//! The API answers as the real one does, and fails as it is told to.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use orb8_testkit::kube_api::{Break, Gone, Trickle};
use orb8_testkit::{KubeApi, Node, NodeOptions, PodSpec};
use serde_json::{Value, json};

/// A client that knows no more of HTTP than it must.
struct Client(BufReader<TcpStream>);

impl Client {
    fn get(addr: SocketAddr, path: &str, token: &str) -> (u16, Self) {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: api\r\nUser-Agent: test/1\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut client = Self(BufReader::new(stream));
        let status = client.line().unwrap();
        while !client.line().unwrap().is_empty() {}
        (status.split(' ').nth(1).unwrap().parse().unwrap(), client)
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// A piece of a chunked body.
    fn chunk(&mut self) -> std::io::Result<Vec<u8>> {
        let length = usize::from_str_radix(&self.line()?, 16).unwrap();
        let mut chunk = vec![0; length + 2];
        self.0.read_exact(&mut chunk)?;
        chunk.truncate(length);
        Ok(chunk)
    }

    /// An event of a watch.
    fn event(&mut self) -> (String, Value) {
        let event: Value = serde_json::from_slice(&self.chunk().unwrap()).unwrap();
        (event["type"].as_str().unwrap().to_owned(), event["object"].clone())
    }

    fn text(mut self) -> String {
        let mut text = String::new();
        loop {
            match self.chunk().unwrap() {
                chunk if chunk.is_empty() => return text,
                chunk => text.push_str(std::str::from_utf8(&chunk).unwrap()),
            }
        }
    }
}

fn list(api: &KubeApi, path: &str) -> Value {
    let (status, client) = Client::get(api.addr(), path, "");
    assert_eq!(status, 200, "{path}");
    serde_json::from_str(&client.text()).unwrap()
}

fn watch(api: &KubeApi, query: &str) -> Client {
    let (status, client) = Client::get(api.addr(), &format!("/api/v1/pods?watch=true{query}"), "");
    assert_eq!(status, 200, "{query}");
    client
}

fn pod(name: &str, node: &str) -> Value {
    json!({ "kind": "Pod", "metadata": { "name": name, "namespace": "shop" }, "spec": { "nodeName": node } })
}

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| pod["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[test]
fn lists_are_selected_and_read_in_pages_of_one_version() {
    let api = KubeApi::start().unwrap();
    for n in 0..5 {
        api.apply(pod(&format!("web-{n}"), if n == 4 { "n2" } else { "n1" })).unwrap();
    }
    let selected = "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1";
    assert_eq!(names(&list(&api, selected)).len(), 4);
    let first = list(&api, &format!("{selected}&limit=3"));
    api.apply(pod("web-9", "n1")).unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = list(&api, &format!("{selected}&limit=3&continue={token}"));
    assert_eq!((names(&first).len(), names(&second)), (3, vec!["web-3"]));
    assert_eq!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    api.compact();
    let expired = format!("{selected}&continue={token}");
    assert_eq!(Client::get(api.addr(), &expired, "").0, 410);
    assert_eq!(Client::get(api.addr(), "/api/v1/pods?fieldSelector=spec.x%3Dy", "").0, 400);
    assert_eq!(Client::get(api.addr(), "/api/v1/pods?resourceVersion=999999", "").0, 504);
    assert_eq!(Client::get(api.addr(), "/api/v1/namespaces/shop/pods/web-9", "").0, 200);
    assert_eq!(Client::get(api.addr(), "/api/v1/namespaces/shop/pods/none", "").0, 404);
    assert_eq!(Client::get(api.addr(), "/version", "").0, 200);
    let last = api.requests().pop().unwrap();
    assert_eq!((&*last.path, &*last.user_agent, last.status), ("/version", "test/1", 200));
}

#[test]
fn a_watch_tells_what_begins_and_ceases_to_match() {
    let api = KubeApi::start().unwrap();
    let version = api.apply(pod("other", "n2")).unwrap();
    let query = format!(
        "&resourceVersion={version}&fieldSelector=spec.nodeName%3Dn1&allowWatchBookmarks=true&timeoutSeconds=60"
    );
    let mut watch = watch(&api, &query);
    api.apply(pod("web", "")).unwrap();
    api.apply(pod("web", "n1")).unwrap();
    let mut labelled = pod("web", "n1");
    labelled["metadata"]["labels"] = json!({ "app": "web" });
    api.apply(labelled).unwrap();
    assert!(api.delete("Pod", "shop", "web").unwrap());
    let events: Vec<_> = (0..3).map(|_| watch.event()).collect();
    let kinds: Vec<_> = events.iter().map(|(kind, _)| &**kind).collect();
    assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED"]);
    let versions: Vec<u64> = events
        .iter()
        .map(|(_, pod)| pod["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(versions.is_sorted() && versions[0] > version, "{versions:?}");
    let newest = api.apply(pod("another", "n2")).unwrap();
    api.bookmark();
    let (kind, object) = watch.event();
    assert_eq!(
        (&*kind, &object["metadata"]["resourceVersion"]),
        ("BOOKMARK", &json!(newest.to_string()))
    );
    drop(watch);
    api.await_watches(0, Duration::from_secs(5)).unwrap();
}

#[test]
fn a_version_that_is_gone_is_told_by_status_by_event_and_in_mid_stream() {
    let api = KubeApi::start().unwrap();
    let version = api.apply(pod("web", "n1")).unwrap();
    let mut running = watch(&api, &format!("&resourceVersion={version}"));
    api.await_watches(1, Duration::from_secs(5)).unwrap();
    api.expire_watches();
    let (kind, status) = running.event();
    assert_eq!(
        (&*kind, &status["code"], &status["reason"]),
        ("ERROR", &json!(410), &json!("Expired"))
    );
    assert!(running.chunk().unwrap().is_empty(), "the stream has ended");
    api.compact();
    let path = format!("/api/v1/pods?watch=1&resourceVersion={version}");
    assert_eq!(Client::get(api.addr(), &path, "").0, 410);
    api.faults(|faults| faults.gone = Gone::Event);
    assert_eq!(watch(&api, &format!("&resourceVersion={version}")).event().0, "ERROR");
}

#[test]
fn tokens_are_let_in_as_long_as_they_are_good() {
    let api = KubeApi::start().unwrap();
    let status = |token| Client::get(api.addr(), "/api/v1/pods", token).0;
    api.faults(|faults| faults.tokens = Some(vec!["old".into()]));
    assert_eq!((status("old"), status("new"), status("")), (200, 401, 401));
    api.faults(|faults| faults.tokens = Some(vec!["new".into()]));
    assert_eq!((status("old"), status("new")), (401, 200));
    api.faults(|faults| faults.forbidden = true);
    assert_eq!(status("new"), 403);
}

#[test]
fn it_breaks_in_every_way_that_it_is_told_to() {
    let api = KubeApi::start().unwrap();
    let version = api.apply(pod("web", "n1")).unwrap();
    let resume = format!("&resourceVersion={version}");

    api.faults(|faults| faults.break_next = Some(Break::Malformed));
    let mut garbled = watch(&api, &resume);
    api.apply(pod("web", "n2")).unwrap();
    let line = garbled.chunk().unwrap();
    assert!(line.ends_with(b"\n") && serde_json::from_slice::<Value>(&line).is_err());

    api.faults(|faults| faults.break_next = Some(Break::Reset));
    let mut broken = watch(&api, &resume);
    assert!(!broken.chunk().unwrap().ends_with(b"\n"));
    assert_eq!(broken.chunk().unwrap_err().kind(), ErrorKind::ConnectionReset);

    api.cut();
    assert_eq!(garbled.chunk().unwrap_err().kind(), ErrorKind::ConnectionReset);

    api.refuse(true);
    let refused = Instant::now();
    while TcpStream::connect(api.addr()).is_ok() {
        assert!(refused.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(TcpStream::connect(api.addr()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    api.refuse(false);
    while TcpStream::connect(api.addr()).is_err() {
        assert!(refused.elapsed() < Duration::from_secs(5));
    }

    api.faults(|faults| faults.padding = 1 << 20);
    assert!(list(&api, "/api/v1/pods").to_string().len() > 1 << 20);

    let slowly = Trickle { bytes: 50, pause: Duration::from_millis(20) };
    api.faults(|faults| (faults.padding, faults.trickle) = (200, Some(slowly)));
    let began = Instant::now();
    list(&api, "/api/v1/pods");
    assert!(began.elapsed() >= Duration::from_millis(100));

    api.faults(|faults| (faults.trickle, faults.delay) = (None, Duration::from_millis(300)));
    let began = Instant::now();
    list(&api, "/api/v1/pods");
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_node_reports_its_pods_from_the_first_to_the_last() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let early = node.start_pod(PodSpec::new("shop", "early")).unwrap();
    let api = KubeApi::start().unwrap();
    node.report_to(&api).unwrap();
    assert_eq!(names(&list(&api, "/api/v1/nodes")), [node.name()]);
    let pods = list(&api, "/api/v1/pods");
    assert_eq!(
        (names(&pods), &pods["items"][0]["status"]["phase"]),
        (vec!["early"], &json!("Running"))
    );
    let version = pods["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = watch(&api, &format!("&resourceVersion={version}"));

    let web = node.start_pod(PodSpec::new("shop", "web")).unwrap();
    let (uid, ip) = (web.uid().to_owned(), web.ipv4().to_string());
    let id = format!("containerd://{}", web.container_id("app").unwrap());
    web.stop().unwrap();
    let events: Vec<_> = (0..5).map(|_| watch.event()).collect();
    let phases: Vec<_> = events
        .iter()
        .map(|(kind, pod)| {
            assert_eq!(pod["metadata"]["uid"], json!(uid));
            (&**kind, pod["status"]["phase"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        phases,
        [
            ("ADDED", "Pending"),
            ("MODIFIED", "Running"),
            ("MODIFIED", "Running"),
            ("MODIFIED", "Failed"),
            ("DELETED", "Failed"),
        ]
    );
    let pods: Vec<&Value> = events.iter().map(|(_, pod)| pod).collect();
    assert_eq!(
        (&pods[0]["status"]["podIP"], &pods[1]["status"]["podIP"]),
        (&Value::Null, &json!(ip))
    );
    assert_eq!(pods[1]["status"]["containerStatuses"][0]["containerID"], json!(id));
    assert!(pods[1]["metadata"]["deletionTimestamp"].is_null());
    assert!(pods[2]["metadata"]["deletionTimestamp"].is_string());
    assert!(
        pods[3]["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"].is_string()
    );
    assert_eq!(names(&list(&api, "/api/v1/pods")), [early.name()]);
}
