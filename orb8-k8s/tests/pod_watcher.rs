//! The watcher against an API that fails in every way: no crash, no busy loop, never a gap in what
//! is known, and the right state at the end.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use orb8_k8s::{
    KubernetesSource, PodLookup,
    store::{PodStore, WatchState},
    watcher::{PodWatcher, Timing},
};
use orb8_proto::PodSourceState;
use orb8_testkit::{
    KubeApi,
    kube_api::{Break, Faults, Gone, LoggedRequest, Trickle},
    pki::CertificateAuthority,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const NODE: &str = "n1";
const PATIENCE: Duration = Duration::from_secs(20);

/// A watcher of an API's pods. It ends when it is dropped.
struct Watched {
    api: KubeApi,
    pods: Arc<PodStore>,
    token: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
    dir: tempfile::TempDir,
}

impl Watched {
    fn start(api: KubeApi) -> Self {
        Self::start_with(api, Timing::default())
    }

    fn start_with(api: KubeApi, timing: Timing) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(token_file(&dir), "first").unwrap();
        api.write_kubeconfig(&kubeconfig(&dir), Some(&token_file(&dir))).unwrap();
        Self::start_in(dir, api, timing)
    }

    fn start_in(dir: tempfile::TempDir, api: KubeApi, timing: Timing) -> Self {
        let kubeconfig = kubeconfig(&dir);
        let watcher = PodWatcher::new(KubernetesSource::Kubeconfig(Some(kubeconfig)), NODE, timing);
        let (pods, token) = (watcher.pods(), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(watcher.run(token.clone()));
        Self { api, pods, token, runtime: Some(runtime), dir }
    }

    /// Names of the pods that are known to exist, sorted.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .pods
            .pods()
            .iter()
            .filter(|pod| self.pods.is_alive(&pod.uid))
            .map(|pod| pod.name.to_string())
            .collect();
        names.sort_unstable();
        names
    }

    fn wait(&self, what: &str, until: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !until(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "not within {PATIENCE:?}: {what}; {:?}, {:?}, {:#?}",
                self.pods.state(),
                self.names(),
                self.api.requests()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for_names(&self, expected: &[&str]) {
        self.wait(&format!("pods {expected:?}"), |watched| watched.names() == expected);
    }

    fn wait_for_connection(&self) {
        self.wait("a connection", |watched| watched.pods.state() == WatchState::Connected);
    }

    fn wait_for_away(&self, reason: &str) {
        let is_away =
            |state| matches!(state, WatchState::Away { reason: r, .. } if r.contains(reason));
        self.wait(&format!("away: {reason}"), |watched| is_away(watched.pods.state()));
    }

    fn requests(&self, watches: bool) -> Vec<LoggedRequest> {
        let requests = self.api.requests().into_iter();
        requests.filter(|request| request.is_watch() == watches).collect()
    }

    fn faults(&self, change: impl FnOnce(&mut Faults)) {
        self.api.faults(change);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.token.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn kubeconfig(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("kubeconfig")
}

fn token_file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("token")
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": name } },
        "spec": { "nodeName": node, "containers": [{ "name": "app", "env": [{ "name": "A", "value": "B" }] }] },
        "status": { "phase": "Running" },
    })
}

fn api_with(names: &[&str]) -> KubeApi {
    let api = KubeApi::start().unwrap();
    for name in names {
        api.apply(pod(name, NODE)).unwrap();
    }
    api
}

#[test]
fn one_list_and_one_watch_of_this_nodes_pods_is_all_that_is_asked() {
    let api = api_with(&["a", "b"]);
    api.apply(pod("elsewhere", "n2")).unwrap();
    let watched = Watched::start(api);
    watched.wait_for_names(&["a", "b"]);
    watched.wait_for_connection();
    watched.api.await_watches(1, PATIENCE).unwrap();
    watched.api.apply(pod("c", NODE)).unwrap();
    watched.api.apply(pod("other", "n2")).unwrap();
    watched.api.delete("Pod", "shop", "a").unwrap();
    watched.wait_for_names(&["b", "c"]);
    watched.api.bookmark();
    thread::sleep(Duration::from_millis(500));

    let requests = watched.api.requests();
    assert_eq!(requests.len(), 2, "{requests:#?}");
    for request in &requests {
        assert_eq!((&*request.path, request.status), ("/api/v1/pods", 200));
        assert_eq!(request.parameter("fieldSelector"), Some("spec.nodeName=n1"));
        assert!(request.user_agent.starts_with("orb8/"), "{request:?}");
    }
    assert_eq!(requests[0].parameter("resourceVersion"), Some("0"), "from the API's cache");
    assert_eq!(requests[1].parameter("allowWatchBookmarks"), Some("true"));
    assert!(requests[1].is_watch());
    let source = watched.pods.source();
    assert_eq!((source.state(), source.pods_known), (PodSourceState::Connected, 2));
    assert_eq!((&*source.kind, source.age_ns, &*source.reason), ("kubernetes", 0, ""));
}

#[test]
fn an_api_that_is_absent_at_the_start_is_found_when_it_comes() {
    let api = api_with(&["a"]);
    api.refuse(true);
    let watched = Watched::start(api);
    watched.wait_for_away("Connection refused");
    thread::sleep(Duration::from_secs(1));
    let source = watched.pods.source();
    assert_eq!((source.state(), source.pods_known), (PodSourceState::Away, 0));
    assert!(
        source.age_ns > 500_000_000 && source.reason.contains("http://127.0.0.1"),
        "{source:?}"
    );
    watched.api.refuse(false);
    watched.wait_for_names(&["a"]);
    watched.wait_for_connection();
}

#[test]
fn a_kubeconfig_that_is_wrong_is_told_and_read_again_when_it_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let api = api_with(&["a"]);
    fs::write(kubeconfig(&dir), "clusters: 5").unwrap();
    let watched = Watched::start_in(dir, api, Timing::default());
    watched.wait_for_away("kubeconfig: ");
    // It does not speak TLS.
    watched.api.write_kubeconfig(&kubeconfig(&watched.dir), None).unwrap();
    let plain = fs::read_to_string(kubeconfig(&watched.dir)).unwrap();
    fs::write(kubeconfig(&watched.dir), plain.replace("http://", "https://")).unwrap();
    watched.wait_for_away("https://127.0.0.1");
    fs::write(kubeconfig(&watched.dir), plain).unwrap();
    watched.wait_for_names(&["a"]);
    watched.wait_for_connection();
}

#[test]
fn what_is_known_stays_known_while_the_api_is_away_and_its_age_is_told() {
    let watched = Watched::start(api_with(&["a", "b"]));
    watched.wait_for_connection();
    watched.api.refuse(true);
    watched.wait_for_away("refused");
    watched.api.apply(pod("c", NODE)).unwrap();
    watched.api.delete("Pod", "shop", "a").unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(watched.names(), ["a", "b"], "a gap");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(watched.pods.source().age_ns >= 2_000_000_000);
    watched.api.refuse(false);
    watched.wait_for_names(&["b", "c"]);
    assert_eq!(watched.requests(false).len(), 1, "the watch went on where it was");
}

#[test]
fn connections_that_are_reset_every_second_lose_nothing_and_make_no_storm() {
    let watched = Watched::start(api_with(&["start"]));
    watched.wait_for_connection();
    let began = Instant::now();
    for n in 0..10u64 {
        watched.api.apply(pod(&format!("pod-{n}"), NODE)).unwrap();
        if n >= 1 {
            watched.api.delete("Pod", "shop", &format!("pod-{}", n - 1)).unwrap();
        }
        thread::sleep(
            (began + Duration::from_secs(n + 1)).saturating_duration_since(Instant::now()),
        );
        assert!(watched.names().contains(&"start".to_owned()), "a gap");
        watched.api.cut();
    }
    watched.wait_for_names(&["pod-9", "start"]);
    watched.wait_for_connection();
    let (lists, watches) = (watched.requests(false).len(), watched.requests(true).len());
    assert!(
        (1..=2).contains(&lists) && (10..=25).contains(&watches),
        "{lists} lists, {watches} watches"
    );
}

#[test]
fn versions_that_are_gone_make_one_new_list() {
    let watched = Watched::start(api_with(&["a", "b"]));
    watched.wait_for_connection();
    // Both told in mid-stream, and again when the watch is asked for anew.
    for (round, gone) in [Gone::Status, Gone::Event].into_iter().enumerate() {
        watched.faults(|faults| faults.gone = gone);
        watched.api.await_watches(1, PATIENCE).unwrap();
        watched.api.expire_watches();
        watched.wait("a new list", |watched| watched.requests(false).len() == 2 * round + 2);
        watched.wait_for_connection();
        watched.api.await_watches(1, PATIENCE).unwrap();
        watched.api.refuse(true);
        watched.wait_for_away("refused");
        watched.api.delete("Pod", "shop", ["a", "b"][round]).unwrap();
        watched.api.apply(pod(&format!("new-{round}"), NODE)).unwrap();
        watched.api.compact();
        watched.api.refuse(false);
        watched.wait("a new list", |watched| watched.requests(false).len() == 2 * round + 3);
        watched.wait_for_connection();
    }
    watched.wait_for_names(&["new-0", "new-1"]);
    let lists = watched.requests(false);
    assert_eq!(lists.len(), 5, "{lists:#?}");
    assert!(
        lists[1..].iter().all(|list| list.parameter("resourceVersion").is_none()),
        "not cached"
    );
}

#[test]
fn half_an_event_is_told_again() {
    let watched = Watched::start(api_with(&["a"]));
    watched.wait_for_connection();
    watched.faults(|faults| faults.break_next = Some(Break::Reset));
    watched.api.apply(pod("b", NODE)).unwrap();
    watched.wait_for_names(&["a", "b"]);
    assert_eq!((watched.requests(false).len(), watched.requests(true).len()), (1, 2));
}

#[test]
fn what_is_no_json_makes_a_new_list() {
    let api = api_with(&["a"]);
    api.faults(|faults| faults.break_next = Some(Break::Malformed));
    let watched = Watched::start(api);
    watched.wait_for_names(&["a"]);
    assert_eq!(watched.requests(false).len(), 2, "the first list was none");
    watched.wait_for_connection();
    watched.faults(|faults| faults.break_next = Some(Break::Malformed));
    watched.api.apply(pod("b", NODE)).unwrap();
    watched.wait_for_names(&["a", "b"]);
    watched.wait_for_connection();
    assert_eq!(watched.requests(false).len(), 3);
}

#[test]
fn a_token_that_was_rotated_on_disk_is_read_again() {
    let api = api_with(&["a"]);
    api.faults(|faults| faults.tokens = Some(vec!["first".into()]));
    let watched = Watched::start(api);
    watched.wait_for_connection();
    watched.faults(|faults| faults.tokens = Some(vec!["second".into()]));
    watched.api.cut();
    watched.wait_for_away("401 Unauthorized");
    watched.api.apply(pod("b", NODE)).unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(watched.names(), ["a"]);
    fs::write(token_file(&watched.dir), "second").unwrap();
    watched.wait_for_names(&["a", "b"]);
    watched.wait_for_connection();
    let refused = watched.api.requests().iter().filter(|request| request.status == 401).count();
    assert!((1..=8).contains(&refused), "{refused}");
}

#[test]
fn an_api_is_believed_by_its_ca_alone_and_a_ca_that_was_changed_on_disk_is_read_again() {
    let ca = |name| CertificateAuthority::new(name).unwrap();
    let api = KubeApi::start_with_tls(&ca("first")).unwrap();
    api.faults(|faults| faults.tokens = Some(vec!["first".into()]));
    api.apply(pod("a", NODE)).unwrap();
    let watched = Watched::start(api);
    watched.wait_for_names(&["a"]);
    watched.wait_for_connection();
    // Somebody else answers at the API's address: nothing is told, not even the token.
    let answered = watched.api.requests().len();
    watched.api.change_ca(&ca("second")).unwrap();
    watched.wait_for_away("certificate");
    watched.api.apply(pod("b", NODE)).unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(watched.names(), ["a"]);
    assert_eq!(watched.api.requests().len(), answered);
    watched
        .api
        .write_kubeconfig(&kubeconfig(&watched.dir), Some(&token_file(&watched.dir)))
        .unwrap();
    watched.wait_for_names(&["a", "b"]);
    watched.wait_for_connection();
}

#[test]
fn a_right_that_is_missing_is_told_and_does_no_harm() {
    let api = api_with(&["a"]);
    api.faults(|faults| faults.forbidden = true);
    let watched = Watched::start(api);
    watched.wait_for_away("403 Forbidden: pods is forbidden");
    watched.faults(|faults| faults.forbidden = false);
    watched.wait_for_names(&["a"]);
}

#[test]
fn an_api_that_is_late_is_believed_for_what_it_says() {
    let api = api_with(&["a"]);
    api.faults(|faults| faults.delay = Duration::from_secs(2));
    let watched = Watched::start(api);
    assert_eq!(watched.pods.state(), WatchState::Syncing);
    watched.wait_for_names(&["a"]);
    watched.wait_for_connection();
    let told = Instant::now();
    watched.api.apply(pod("b", NODE)).unwrap();
    watched.wait_for_names(&["a", "b"]);
    assert!(told.elapsed() >= Duration::from_secs(2));
    assert_eq!(watched.api.requests().len(), 2);
}

#[test]
fn a_list_of_ten_megabytes_is_read_and_little_of_it_kept() {
    let names: Vec<String> = (0..250).map(|n| format!("pod-{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let api = api_with(&names);
    api.faults(|faults| {
        faults.padding = 50_000;
        // About 2 MB in a second, in pieces of odd sizes.
        faults.trickle = Some(Trickle { bytes: 49_999, pause: Duration::from_millis(4) });
    });
    let watched = Watched::start(api);
    watched.wait_for_names(&names);
    watched.faults(|faults| (faults.padding, faults.trickle) = (1 << 20, None));
    watched.api.apply(pod("zzz", NODE)).unwrap();
    watched.wait("an event of a megabyte", |watched| watched.names().len() == 251);
    assert_eq!(watched.api.requests().len(), 2);
}

#[test]
fn a_list_from_the_database_is_read_in_pages() {
    let names: Vec<String> = (0..1_200).map(|n| format!("pod-{n:04}")).collect();
    let watched = Watched::start(api_with(&names.iter().map(|n| &**n).collect::<Vec<_>>()));
    watched.wait_for_connection();
    watched.api.expire_watches();
    watched.wait("a new list", |watched| watched.requests(false).len() == 4);
    watched.wait_for_connection();
    assert_eq!(watched.names(), names);
    let lists = watched.requests(false);
    let limits: Vec<_> = lists.iter().map(|list| list.parameter("limit")).collect();
    assert_eq!(limits, [None, Some("500"), Some("500"), Some("500")]);
}

#[test]
fn an_api_that_ends_every_answer_at_once_is_asked_less_and_less() {
    let api = api_with(&["a"]);
    let watched = Watched::start_with(api, Timing { watch: Duration::ZERO, ..Timing::default() });
    watched.wait_for_names(&["a"]);
    watched.wait_for_away("at once");
    watched.faults(|faults| faults.status = Some(500));
    thread::sleep(Duration::from_secs(4));
    let requests = watched.api.requests().len();
    assert!((4..=14).contains(&requests), "{requests} requests in four seconds");
    assert_eq!(watched.names(), ["a"]);
}

#[test]
fn a_connection_that_went_dead_is_given_up() {
    let api = api_with(&["a"]);
    let timing = Timing { silence: Duration::from_millis(700), ..Timing::default() };
    let watched = Watched::start_with(api, timing);
    watched.wait_for_names(&["a"]);
    watched.wait_for_away("nothing came for 700ms");
    watched.faults(|faults| faults.bookmark_interval = Some(Duration::from_millis(200)));
    watched.wait_for_connection();
    let before = watched.api.requests().len();
    thread::sleep(Duration::from_secs(2));
    assert!(watched.api.requests().len() <= before + 1, "bookmarks are signs of life");
    assert_eq!(watched.pods.state(), WatchState::Connected);
}

#[test]
fn a_watch_whose_time_is_up_is_no_failure() {
    let timing = Timing { watch: Duration::from_secs(1), ..Timing::default() };
    let watched = Watched::start_with(api_with(&["a"]), timing);
    watched.wait_for_connection();
    watched.wait("three watches", |watched| {
        assert_eq!(watched.pods.state(), WatchState::Connected);
        watched.requests(true).len() == 3
    });
    assert_eq!(watched.requests(false).len(), 1);
}

#[test]
fn an_address_used_again_names_the_pod_that_had_it_then() {
    let api = KubeApi::start().unwrap();
    let stamp = |second| format!("2026-01-01T00:00:{second:02}Z");
    let running = |name: &str, since: u32| {
        let mut pod = pod(name, NODE);
        pod["status"] = json!({
            "phase": "Running", "podIP": "10.0.0.7", "startTime": stamp(since),
            "containerStatuses": [{ "name": "app", "state": { "running": { "startedAt": stamp(since) } } }],
        });
        pod
    };
    api.apply(running("web", 0)).unwrap();
    let watched = Watched::start(api);
    watched.wait_for_names(&["web"]);
    watched.wait_for_connection();
    let mut ended = running("web", 0);
    ended["status"]["phase"] = "Failed".into();
    ended["status"]["containerStatuses"][0]["state"] =
        json!({ "terminated": { "startedAt": stamp(0), "finishedAt": stamp(20) } });
    watched.api.apply(ended).unwrap();
    watched.api.delete("Pod", "shop", "web").unwrap();
    watched.api.apply(running("db", 22)).unwrap();
    watched.wait_for_names(&["db"]);
    let at = |second: i64| {
        let ns = (1_767_225_600 + second) * 1_000_000_000;
        watched.pods.by_ip("10.0.0.7".parse().unwrap(), ns).map(|pod| pod.name.to_string())
    };
    assert_eq!((at(10).as_deref(), at(19).as_deref()), (Some("web"), Some("web")));
    assert_eq!((at(22), at(23).as_deref(), at(999).as_deref()), (None, Some("db"), Some("db")));
}
