//! A kubelet runs pods as a real one does, and the API hears of it, late if it is late.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail the test")]

use std::path::Path;
use std::time::{Duration, Instant};

use orb8_testkit::kubelet::{PodView, Stage};
use orb8_testkit::program::{Exec, Hold};
use orb8_testkit::{
    KubeApi, Kubelet, KubeletPod, Node, NodeOptions, PodSpec, Program, RestartPolicy, Workload,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

fn hold() -> Program {
    Program::Hold(Hold::default())
}

fn sh(script: &str) -> Program {
    Program::Exec(Exec { command: ["sh", "-c", script].map(String::from).to_vec() })
}

fn reporting() -> (Node, KubeApi) {
    let (node, api) = (Node::start(NodeOptions::default()).unwrap(), KubeApi::start().unwrap());
    node.report_to(&api).unwrap();
    (node, api)
}

fn object(api: &KubeApi, name: &str) -> Option<Value> {
    api.object("Pod", "shop", name).unwrap()
}

fn await_object(api: &KubeApi, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let now = object(api, name).unwrap_or_default();
        if wanted(&now) {
            return now;
        }
        assert!(begun.elapsed() < LIMIT, "{now:#}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn gone(pod: &KubeletPod) -> PodView {
    pod.wait_gone(LIMIT).unwrap()
}

#[test]
fn a_container_that_ends_is_started_again_with_another_id_in_the_same_pod() {
    let (node, api) = reporting();
    let spec = PodSpec::new("shop", "web").containers(&["app", "proxy"]);
    let workload = Workload::new(spec).program("app", hold()).program("proxy", hold());
    let pod = Kubelet::of(&node).run(workload).unwrap();
    let before = pod.wait_running(LIMIT).unwrap();
    let cgroup = |view: &PodView, at: usize| {
        let path = format!("kubepods/burstable/pod{}/{}", view.uid, view.containers[at].id);
        node.cgroup_dir().join(path)
    };
    assert!(cgroup(&before, 0).exists() && cgroup(&before, 1).exists());

    pod.crash("app").unwrap();
    let restarted = |view: &PodView| view.containers[0].restarts == 1 && view.containers[0].running;
    let after = pod.wait_until("restarted", LIMIT, restarted).unwrap();
    assert_eq!((&after.uid, after.ipv4, &after.veth), (&before.uid, before.ipv4, &before.veth));
    assert_eq!(after.containers[1], before.containers[1], "the other one is left alone");
    assert_ne!(after.containers[0].id, before.containers[0].id);
    assert!(!cgroup(&before, 0).exists() && cgroup(&after, 0).exists());
    assert_eq!((&after.lives[0].id, after.lives[0].exit_code), (&before.containers[0].id, 137));

    let told =
        await_object(&api, "web", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    let status = &told["status"]["containerStatuses"][0];
    assert_eq!(status["containerID"], format!("containerd://{}", after.containers[0].id));
    let last = &status["lastState"]["terminated"];
    assert_eq!(last["containerID"], format!("containerd://{}", before.containers[0].id));
    assert_eq!((&last["exitCode"], &told["status"]["phase"]), (&137.into(), &"Running".into()));

    pod.kill().unwrap();
    let end = gone(&pod);
    assert_eq!(end.lives.len(), 3);
    assert!(end.last_counters.is_some());
    assert!(!cgroup(&after, 1).parent().unwrap().exists());
    assert_eq!(object(&api, "web"), None);
}

#[test]
fn init_containers_run_before_the_others_and_sidecars_beside_them() {
    let (node, api) = reporting();
    let mut spec = PodSpec::new("shop", "job");
    spec.restart_policy = RestartPolicy::Never;
    spec.init_containers = ["mesh", "first", "second"].map(String::from).to_vec();
    spec.sidecars = vec!["mesh".into()];
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let gate = dir.path().join("gate");
    let note = |what: &str| sh(&format!("echo {what} >> {}", log.display()));
    let last = format!(
        "echo app >> {}; while [ ! -e {} ]; do sleep 0.02; done",
        log.display(),
        gate.display()
    );
    let workload = Workload::new(spec)
        .program("mesh", hold())
        .program("first", note("first"))
        .program("second", note("second"))
        .program("app", sh(&last));
    let pod = Kubelet::of(&node).run(workload).unwrap();
    let running = pod.wait_running(LIMIT).unwrap();
    let states: Vec<_> = running.containers.iter().map(|c| (&*c.name, c.running)).collect();
    assert_eq!(states, [("mesh", true), ("first", false), ("second", false), ("app", true)]);
    let told = await_object(&api, "job", |pod| pod["status"]["phase"] == "Running");
    assert_eq!(told["spec"]["initContainers"][0]["restartPolicy"], "Always");
    let init = &told["status"]["initContainerStatuses"];
    assert_eq!(init[1]["state"]["terminated"]["reason"], "Completed");
    assert!(init[0]["state"]["running"].is_object());

    pod.debug("debugger", hold()).unwrap();
    let debugged = |pod: &Value| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object()
    };
    let told = await_object(&api, "job", debugged);
    assert_eq!(told["spec"]["ephemeralContainers"][0]["name"], "debugger");

    std::fs::write(&gate, "").unwrap();
    let finished = pod.wait_until("done", LIMIT, |view| view.stage == Stage::Finished).unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "first\nsecond\napp\n");
    assert!(finished.containers.iter().all(|c| c.restarts == 0), "{finished:?}");
    await_object(&api, "job", |pod| pod["status"]["phase"] == "Succeeded");
    let ended = |view: &PodView| view.containers.iter().all(|container| !container.running);
    pod.wait_until("without its sidecar", LIMIT, ended).unwrap();
    pod.kill().unwrap();
    gone(&pod);
}

#[test]
fn a_failed_init_container_fails_the_pod_and_a_failed_job_is_tried_again() {
    let (node, api) = reporting();
    let failing = |policy| {
        let mut spec = PodSpec::new("shop", "failing");
        spec.restart_policy = policy;
        spec.init_containers = vec!["init".into()];
        Workload::new(spec).program("init", sh("exit 3")).program("app", hold())
    };
    let pod = Kubelet::of(&node).run(failing(RestartPolicy::Never)).unwrap();
    let failed = pod.wait_until("failed", LIMIT, |view| view.stage == Stage::Finished).unwrap();
    assert_eq!((failed.lives.len(), failed.lives[0].exit_code), (1, 3));
    assert!(!failed.containers[1].running);
    drop(pod);
    assert_eq!(object(&api, "failing"), None);
    let retried =
        Workload { backoff: Duration::from_millis(20), ..failing(RestartPolicy::OnFailure) };
    let pod = Kubelet::of(&node).run(retried).unwrap();
    let again = |view: &PodView| view.containers.first().is_some_and(|init| init.restarts >= 3);
    let view = pod.wait_until("tried again", LIMIT, again).unwrap();
    assert_eq!(view.stage, Stage::Pending);
}

#[test]
fn a_pod_is_asked_to_end_before_it_is_killed() {
    let (node, _api) = reporting();
    let run = |script: &str| {
        let spec =
            PodSpec { grace: Duration::from_millis(300), ..PodSpec::new("shop", "stubborn") };
        let pod = Kubelet::of(&node).run(Workload::new(spec).program("app", sh(script))).unwrap();
        pod.wait_running(LIMIT).unwrap();
        pod
    };
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready");
    let ready_file = ready.display();
    // The trap is set when the file is there.
    let wait = |path: &Path| {
        let begun = Instant::now();
        while !path.exists() {
            assert!(begun.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let idle = "while :; do sleep 0.02; done";
    let polite = run(&format!("trap 'exit 7' TERM; touch {ready_file}; {idle}"));
    wait(&ready);
    polite.kill().unwrap();
    assert_eq!(gone(&polite).lives[0].exit_code, 7);

    std::fs::remove_file(&ready).unwrap();
    let stubborn = run(&format!("trap '' TERM; touch {ready_file}; {idle}"));
    wait(&ready);
    let asked = Instant::now();
    stubborn.kill().unwrap();
    assert_eq!(gone(&stubborn).lives[0].exit_code, 137);
    assert!(asked.elapsed() >= Duration::from_millis(300), "{:?}", asked.elapsed());
}

#[test]
fn a_static_pod_has_a_mirror_with_another_uid() {
    let (node, api) = reporting();
    let spec = PodSpec { static_pod: true, ..PodSpec::new("shop", "proxy").host_network() };
    let pod = Kubelet::of(&node).run(Workload::new(spec).program("app", hold())).unwrap();
    let view = pod.wait_running(LIMIT).unwrap();
    assert_eq!((view.uid.len(), &*view.veth, view.ipv4), (32, "", node.ipv4()));
    assert_eq!(view.name, format!("proxy-{}", node.name()));
    let mirror = await_object(&api, &view.name, |pod| pod["status"]["phase"] == "Running");
    assert_eq!(mirror["metadata"]["annotations"]["kubernetes.io/config.hash"], view.uid);
    assert_eq!(mirror["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["kind"], "Node");
}

#[test]
fn what_contradicts_itself_is_an_error() {
    let node = Node::start(NodeOptions::default()).unwrap();
    let kubelet = Kubelet::of(&node);
    let none = kubelet.run(Workload::new(PodSpec::new("shop", "web"))).unwrap_err().to_string();
    assert!(none.contains("app") && none.contains("shop/web"), "{none}");
    let spec = PodSpec { host_number: Some(1), ..PodSpec::new("shop", "web") };
    let pod = kubelet.run(Workload::new(spec).program("app", hold())).unwrap();
    let failed = pod.wait_running(LIMIT).unwrap_err().to_string();
    assert!(failed.contains("host number 1"), "{failed}");
    assert!(pod.debug("late", hold()).is_err(), "it is gone");
}
