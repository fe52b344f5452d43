//! Names from a container runtime that comes late, goes away, hangs, tells nothing or is none: what
//! is known stays known, what is wrong is told, and the runtime is not asked more than it has to be.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use orb8_agent::k8s::{
    runtime::{RuntimePods, RuntimeSource, Timing},
    second_opinion::SecondOpinion,
};
use orb8_k8s::{ContainerId, PodLookup, PodUid, pods::PodTable, store::WatchState};
use orb8_proto::{PodSource, PodSourceState};
use orb8_testkit::{
    CriServer, DockerContainer, DockerServer,
    cri_server::{Sandbox, Tells},
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// Quick, so that tests are: half a second for an answer, a list every 300 ms.
const QUICK: Timing = Timing {
    first_wait: Duration::from_millis(50),
    last_wait: Duration::from_millis(400),
    answer: Duration::from_millis(500),
    gap: Duration::from_millis(100),
    poll: Duration::from_millis(300),
    resync: Duration::from_secs(60),
    loyalty: Duration::from_secs(2),
};

/// As quick, and told nothing by itself for an hour.
const RARE: Timing = Timing { poll: Duration::from_secs(3_600), ..QUICK };

/// A source that follows a runtime. It ends when it is dropped.
struct Followed {
    pods: Arc<RuntimePods>,
    token: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Followed {
    fn at(socket: &Path, timing: Timing) -> Self {
        Self::start(RuntimeSource::new(Some(socket.to_owned()), Path::new("/"), timing))
    }

    fn start(source: RuntimeSource) -> Self {
        let (pods, token) = (source.pods(), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(source.run(token.clone()));
        Self { pods, token, runtime: Some(runtime) }
    }

    fn source(&self) -> PodSource {
        self.pods.source()
    }

    /// Names of the pods that are known to exist, sorted.
    fn names(&self) -> Vec<String> {
        let pods = self.pods.pods().into_iter().filter(|pod| self.pods.is_alive(&pod.uid));
        let mut names: Vec<String> = pods.map(|pod| pod.name.to_string()).collect();
        names.sort_unstable();
        names
    }

    fn wait(&self, what: &str, until: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !until(self) {
            let now = (self.source(), self.names());
            assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; {now:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for_names(&self, names: &[&str]) {
        self.wait(&format!("{names:?}"), |followed| followed.names() == names);
    }

    fn wait_for_away(&self, reason: &str) {
        let is_away =
            |state| matches!(state, WatchState::Away { reason: r, .. } if r.contains(reason));
        self.wait(&format!("away: {reason}"), |followed| is_away(followed.pods.state()));
    }

    /// Pod and container of a container.
    fn named(&self, id: &str) -> Option<(String, String)> {
        let (pod, container) = self.pods.by_container(&id.parse().unwrap())?;
        Some((format!("{}/{}", pod.namespace, pod.name), container.to_string()))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.token.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
}

fn sandbox(name: &str) -> Sandbox {
    Sandbox::new("shop", name, &["app", "proxy"]).unwrap()
}

fn named(pod: &str, container: &str) -> Option<(String, String)> {
    Some((pod.to_owned(), container.to_owned()))
}

fn unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

#[test]
fn pods_containers_networks_and_addresses_are_known_from_the_runtime() {
    let dir = Dir::new();
    let server = CriServer::start(&dir.at("cri.sock")).unwrap();
    let mut web = sandbox("web");
    web.ips = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
    web.labels = BTreeMap::from([("app".into(), "web".into())]);
    let mut proxy = sandbox("proxy");
    proxy.host_network = true;
    proxy.ips = vec!["192.168.0.1".parse().unwrap()];
    let mut done = sandbox("done");
    done.ready = false;
    for sandbox in [&web, &proxy, &done] {
        server.put(sandbox.clone());
    }
    let followed = Followed::at(server.path(), QUICK);
    followed.wait_for_names(&["done", "proxy", "web"]);
    assert_eq!(followed.named(&web.containers[1].id), named("shop/web", "proxy"));
    assert_eq!(followed.named(&web.id), named("shop/web", "POD"));
    assert_eq!(followed.named(&done.containers[0].id), named("shop/done", "app"));
    let uid = |sandbox: &Sandbox| sandbox.uid.parse::<PodUid>().unwrap();
    let pod = followed.pods.by_uid(&uid(&web)).unwrap();
    assert_eq!((pod.labels.get("app"), pod.ips.len()), (Some("web"), 2));
    assert!(followed.pods.by_uid(&uid(&proxy)).unwrap().host_network);
    let at = |ip: &str| {
        let pod = followed.pods.by_ip(ip.parse().unwrap(), unix_ns())?;
        Some(pod.name.to_string())
    };
    assert_eq!((at("10.0.0.7").as_deref(), at("fd00::7").as_deref()), (Some("web"), Some("web")));
    assert_eq!(at("192.168.0.1"), None, "it is the node's address");
    assert_eq!(followed.pods.namespaces(), [Arc::from("shop")]);
    let source = followed.source();
    assert_eq!((&*source.kind, source.pods_known), ("containerd", 3));
    assert_eq!(source.state(), PodSourceState::Connected);
    assert_eq!(source.reason, format!("2.0.0 at {}", server.path().display()));
    // One that has ended has no network to be asked for.
    assert_eq!(server.calls()["PodSandboxStatus"], 2);
}

#[test]
fn a_runtime_that_comes_later_is_found_and_one_that_was_restarted_is_found_again() {
    let dir = Dir::new();
    let path = dir.at("cri.sock");
    let followed = Followed::at(&path, QUICK);
    followed.wait_for_away(&format!("no socket {}", path.display()));
    assert_eq!((&*followed.source().kind, followed.source().pods_known), ("", 0));
    let mut server = CriServer::start(&path).unwrap();
    let a = sandbox("a");
    server.put(a.clone());
    server.put(sandbox("b"));
    followed.wait_for_names(&["a", "b"]);

    server.kill();
    followed.wait_for_away("refused");
    server.remove(&a.id);
    server.put(sandbox("c"));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        assert_eq!(followed.names(), ["a", "b"], "a gap");
        thread::sleep(Duration::from_millis(20));
    }
    let source = followed.source();
    assert!(source.age_ns >= 900_000_000 && source.kind == "containerd", "{source:?}");
    server.restart().unwrap();
    followed.wait_for_names(&["b", "c"]);
    followed.wait("a connection", |f| f.pods.state() == WatchState::Connected);
    assert_eq!(followed.named(&a.containers[0].id), named("shop/a", "app"), "for another minute");

    server.shut_down().unwrap();
    followed.wait_for_away("no socket");
    server.restart().unwrap();
    followed.wait("a connection", |f| f.pods.state() == WatchState::Connected);
}

#[test]
fn every_change_is_told_at_once_where_the_runtime_tells_everybody() {
    let dir = Dir::new();
    let server = CriServer::start(&dir.at("cri.sock")).unwrap();
    server.put(sandbox("old"));
    let followed = Followed::at(server.path(), RARE);
    followed.wait_for_names(&["old"]);
    let listening = || server.calls().get("GetContainerEvents").copied();
    followed.wait("a listener", |_| listening() == Some(1));
    // A server cannot know when a listener is there.
    let short = sandbox("short");
    followed.wait("a pod that an event told of", |followed| {
        server.put(short.clone());
        let mut again = short.clone();
        again.containers[0].running = false;
        server.put(again);
        followed.names() == ["old", "short"]
    });
    // No list ever had this one.
    let gone = sandbox("gone");
    server.put(gone.clone());
    server.remove(&gone.id);
    followed.wait("a container that lived for no time", |followed| {
        followed.named(&gone.containers[0].id) == named("shop/gone", "app")
    });
    followed.wait_for_names(&["old", "short"]);
    assert_eq!(followed.source().age_ns, 0, "every change is told");
    assert_eq!(listening(), Some(1));
}

#[test]
fn a_runtime_that_tells_nothing_is_asked_now_and_then() {
    for (tells, version) in [
        (Tells::Unimplemented, "2.0.0"),
        (Tells::Nothing, "2.0.0"),
        (Tells::Ends, "2.0.0"),
        (Tells::Everybody, "1.7.24"),
    ] {
        let dir = Dir::new();
        let server = CriServer::start(&dir.at("cri.sock")).unwrap();
        server.faults(|faults| {
            (faults.tells, faults.version.1) = (tells, version.into());
        });
        let a = sandbox("a");
        server.put(a.clone());
        let followed = Followed::at(server.path(), QUICK);
        followed.wait_for_names(&["a"]);
        server.put(sandbox("b"));
        server.remove(&a.id);
        followed.wait_for_names(&["b"]);
        let source = followed.source();
        assert!(source.state() == PodSourceState::Connected, "{source:?}");
        let before = server.calls();
        thread::sleep(Duration::from_secs(2));
        let (lists, events) = ("ListPodSandbox", "GetContainerEvents");
        let lists = server.calls()[lists] - before[lists];
        assert!((2..=8).contains(&lists), "{lists} lists in two seconds");
        let calls = server.calls().get(events).copied().unwrap_or(0);
        // The kubelet of an older one would miss what we hear.
        assert_eq!(calls, usize::from(version == "2.0.0"), "{tells:?}");
    }
}

#[test]
fn an_id_that_nobody_knows_makes_a_list_and_not_many() {
    let dir = Dir::new();
    let server = CriServer::start(&dir.at("cri.sock")).unwrap();
    server.faults(|faults| faults.tells = Tells::Unimplemented);
    server.put(sandbox("a"));
    let followed = Followed::at(server.path(), RARE);
    // The second, because the events ended.
    followed.wait("two lists", |_| server.calls().get("ListContainers") == Some(&2));
    followed.wait_for_names(&["a"]);
    let b = sandbox("b");
    server.put(b.clone());
    thread::sleep(Duration::from_millis(500));
    assert_eq!(followed.names(), ["a"], "nothing makes it list");
    followed.wait("the one that was asked for", |followed| {
        followed.named(&b.containers[0].id) == named("shop/b", "app")
    });
    let lists = || server.calls()["ListPodSandbox"];
    let before = lists();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(followed.named(&"7".repeat(64)), None);
        thread::sleep(Duration::from_millis(1));
    }
    let lists = lists() - before;
    assert!((1..=3).contains(&lists), "{lists} lists for one id in three seconds");
}

#[test]
fn a_runtime_that_hangs_is_away_and_comes_back() {
    let dir = Dir::new();
    let server = CriServer::start(&dir.at("cri.sock")).unwrap();
    server.put(sandbox("a"));
    server.faults(|faults| (faults.hang, faults.tells) = (true, Tells::Unimplemented));
    let followed = Followed::at(server.path(), QUICK);
    followed.wait_for_away("no answer within 500ms");
    server.faults(|faults| faults.hang = false);
    followed.wait_for_names(&["a"]);
    server.faults(|faults| faults.hang = true);
    followed.wait_for_away("no answer within 500ms");
    assert_eq!(followed.names(), ["a"]);
    server.faults(|faults| (faults.hang, faults.delay) = (false, Duration::from_millis(100)));
    server.put(sandbox("b"));
    followed.wait_for_names(&["a", "b"]);
    followed.wait("a connection", |f| f.pods.state() == WatchState::Connected);
}

#[test]
fn what_is_no_runtime_is_told_in_words() {
    let dir = Dir::new();
    let file = dir.at("file.sock");
    fs::write(&file, "").unwrap();
    Followed::at(&file, QUICK)
        .wait_for_away("is a file, expected the socket of a container runtime");
    let dead = dir.at("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    Followed::at(&dead, QUICK).wait_for_away("dead.sock: Connection refused");
    let mute = dir.at("mute.sock");
    let _mute = UnixListener::bind(&mute).unwrap();
    Followed::at(&mute, QUICK).wait_for_away("mute.sock: no answer within 500ms");

    let server = CriServer::start(&dir.at("cri.sock")).unwrap();
    server.faults(|faults| faults.garbage = true);
    let followed = Followed::at(server.path(), QUICK);
    followed.wait_for_away("cri.sock: neither the CRI (");
    followed.wait_for_away("nor Docker's API (it answered 400 Bad Request)");
    server.faults(|faults| (faults.garbage, faults.unimplemented) = (false, true));
    followed.wait_for_away("unknown service runtime.v1.RuntimeService");
    server.faults(|faults| faults.unimplemented = false);
    followed.wait("a connection", |f| f.pods.state() == WatchState::Connected);
    assert_eq!((&*followed.source().kind, followed.source().pods_known), ("containerd", 0));
}

#[test]
fn a_thousand_containers_are_known_and_networks_are_asked_for_once() {
    let dir = Dir::new();
    let server = CriServer::start(&dir.at("cri.sock")).unwrap();
    server.faults(|faults| faults.tells = Tells::Unimplemented);
    let mut sandboxes = Vec::new();
    for n in 0..500u16 {
        let mut sandbox = sandbox(&format!("pod-{n:03}"));
        let [high, low] = n.to_be_bytes();
        sandbox.ips = vec![[10, 1, high, low].into()];
        server.put(sandbox.clone());
        sandboxes.push(sandbox);
    }
    let followed = Followed::at(server.path(), QUICK);
    followed.wait("all", |followed| followed.names().len() == 500);
    for sandbox in &sandboxes {
        let pod = format!("shop/{}", sandbox.name);
        assert_eq!(followed.named(&sandbox.containers[0].id), named(&pod, "app"));
        assert_eq!(followed.pods.by_ip(sandbox.ips[0], unix_ns()).unwrap().name[..], sandbox.name);
    }
    let lists = server.calls()["ListPodSandbox"];
    followed.wait("more lists", |_| server.calls()["ListPodSandbox"] > lists + 2);
    assert_eq!(server.calls()["PodSandboxStatus"], 500);
}

#[test]
fn an_address_used_again_names_the_pod_that_had_it_then() {
    let dir = Dir::new();
    let server = CriServer::start(&dir.at("cri.sock")).unwrap();
    let with_ip = |name: &str| {
        let mut sandbox = sandbox(name);
        sandbox.ips = vec!["10.0.0.7".parse().unwrap()];
        sandbox
    };
    let mut web = with_ip("web");
    server.put(web.clone());
    let followed = Followed::at(server.path(), QUICK);
    followed.wait_for_names(&["web"]);
    let then = unix_ns();
    let at = |at| Some(followed.pods.by_ip("10.0.0.7".parse().unwrap(), at)?.name.to_string());
    assert_eq!(at(then).as_deref(), Some("web"));
    assert_eq!(at(then + 60_000_000_000), None, "by then it may be anybody's");
    thread::sleep(Duration::from_millis(500));
    web.ready = false;
    server.put(web.clone());
    server.remove(&web.id);
    server.put(with_ip("db"));
    followed.wait_for_names(&["db"]);
    followed.wait("the new owner", |_| at(unix_ns()).as_deref() == Some("db"));
    assert_eq!(at(then).as_deref(), Some("web"));
}

#[test]
fn dockers_containers_are_named_and_those_of_kubernetes_are_pods() {
    let dir = Dir::new();
    let mut server = DockerServer::start(&dir.at("docker.sock")).unwrap();
    let container = |name: &str, digit: &str| DockerContainer {
        id: digit.repeat(64),
        name: name.into(),
        labels: BTreeMap::new(),
        ip: Some("172.17.0.2".parse().unwrap()),
        host_network: false,
    };
    server.run(container("web", "a"));
    let uid = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
    let mut of_pod = container("k8s_app_db-0_shop", "b");
    of_pod.ip = None;
    of_pod.labels = [
        ("io.kubernetes.pod.uid", uid),
        ("io.kubernetes.pod.name", "db-0"),
        ("io.kubernetes.pod.namespace", "shop"),
        ("io.kubernetes.container.name", "app"),
        ("io.kubernetes.docker.type", "container"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    server.run(of_pod);
    let followed = Followed::at(server.path(), RARE);
    followed.wait_for_names(&["db-0", "web"]);
    assert_eq!(followed.named(&"a".repeat(64)), named("/web", "web"));
    assert_eq!(followed.named(&"b".repeat(64)), named("shop/db-0", "app"));
    assert!(followed.pods.by_uid(&uid.parse().unwrap()).is_some());
    let ip = "172.17.0.2".parse().unwrap();
    assert_eq!(followed.pods.by_ip(ip, unix_ns()).unwrap().name[..], *"web");
    assert_eq!(followed.pods.namespaces(), [Arc::from("shop")]);
    let source = followed.source();
    assert_eq!((&*source.kind, source.pods_known), ("docker", 2));
    assert_eq!(source.reason, format!("28.0.4 at {}", server.path().display()));

    // By an event: lists are an hour apart.
    followed.wait("a container that lived for no time", |followed| {
        server.run(container("job", "c"));
        server.remove(&"c".repeat(64));
        followed.named(&"c".repeat(64)) == named("/job", "job")
    });
    server.remove(&"a".repeat(64));
    followed.wait_for_names(&["db-0"]);
    server.kill();
    followed.wait_for_away("refused");
    server.restart().unwrap();
    followed.wait("a connection", |f| f.pods.state() == WatchState::Connected);
}

#[test]
fn a_socket_is_found_where_runtimes_have_it_and_the_one_with_containers_is_asked() {
    let dir = Dir::new();
    let followed = Followed::start(RuntimeSource::new(None, dir.0.path(), QUICK));
    followed.wait_for_away("no socket of a container runtime in any of the usual places");
    assert_eq!(followed.source().kind, "");
    // As on a machine with Docker, whose containerd names nobody.
    let mut containerd = CriServer::start(&dir.at("run/containerd/containerd.sock")).unwrap();
    followed.wait("the only one", |followed| followed.source().kind == "containerd");
    let docker = DockerServer::start(&dir.at("run/docker.sock")).unwrap();
    docker.run(DockerContainer {
        id: "a".repeat(64),
        name: "web".into(),
        labels: BTreeMap::new(),
        ip: None,
        host_network: true,
    });
    followed.wait_for_names(&["web"]);
    assert_eq!(followed.source().kind, "docker");
    // One that is there and refuses is told, where there is no other.
    drop(docker);
    containerd.kill();
    followed.wait_for_away("run/containerd/containerd.sock: Connection refused");
    assert_eq!(followed.names(), ["web"], "what is known stays known");
    containerd.put(sandbox("a"));
    containerd.restart().unwrap();
    followed.wait_for_names(&["a"]);
}

#[test]
fn the_runtime_is_asked_where_the_first_source_does_not_know() {
    let dir = Dir::new();
    let server = CriServer::start(&dir.at("cri.sock")).unwrap();
    let (known, other, unknown) = (sandbox("web"), sandbox("db-from-runtime"), sandbox("new"));
    for sandbox in [&known, &other, &unknown] {
        server.put(sandbox.clone());
    }
    // The API knows two of the pods, and no container yet.
    let pod = |name: &str, uid: &str| {
        format!(
            "kind: Pod\nmetadata: {{namespace: shop, name: {name}, uid: {uid}, ownerReferences: \
             [{{kind: StatefulSet, name: {name}, controller: true}}]}}\n---\n"
        )
    };
    let text = pod("web", &known.uid) + &pod("db", &other.uid);
    let followed = Followed::at(server.path(), QUICK);
    followed.wait("all", |followed| followed.names().len() == 3);
    let pods = Arc::clone(&followed.pods);
    let both = SecondOpinion::new(Arc::new(PodTable::parse(&text).unwrap()), pods);

    let by_container = |sandbox: &Sandbox| {
        let (pod, name) = both.by_container(&container_id(sandbox)).unwrap();
        (pod.name.to_string(), pod.workload(), name.to_string())
    };
    let app = || "app".to_owned();
    assert_eq!(by_container(&known), ("web".into(), Some("StatefulSet/web".into()), app()));
    assert_eq!(by_container(&unknown), ("new".into(), None, app()));
    assert_eq!(by_container(&other).0, "db", "the first source is believed");
    let by_uid = |sandbox: &Sandbox| both.by_uid(&sandbox.uid.parse().unwrap()).unwrap();
    assert_eq!((&*by_uid(&known).name, &*by_uid(&unknown).name), ("web", "new"));
    let mut names: Vec<_> = both.pods().iter().map(|pod| pod.name.to_string()).collect();
    names.sort_unstable();
    assert_eq!(names, ["db", "new", "web"]);
    assert_eq!(
        both.source().reason,
        "1 pods have another name in the container runtime, such as shop/db, which is \
         shop/db-from-runtime there"
    );
    assert_eq!(both.source().kind, "file");
    assert_eq!(both.runtime_source().unwrap().kind, "containerd");
    let before = both.generation();
    server.put(sandbox("newer"));
    followed.wait("one more", |followed| followed.names().len() == 4);
    assert!(both.generation() > before);
}

fn container_id(sandbox: &Sandbox) -> ContainerId {
    sandbox.containers[0].id.parse().unwrap()
}
