//! Names come from the container runtime where there is no Kubernetes, and before Kubernetes tells
//! them where there is.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use orb8_agent::{config::Config, k8s::runtime::RuntimeChoice};
use orb8_k8s::KubernetesSource;
use orb8_proto::{AttributedBy, NetworkFlow, PodSourceState, StatusResponse};
use orb8_testkit::{
    DockerContainer, DockerServer, KubeApi, Node, NodeOptions, Pod, PodSpec, Process, Program,
    cri_server::Sandbox,
    program::{Exec, UdpSend},
    testpod_path,
};
use orb8_tests::{Traced, address};

const PORT: u16 = 7001;

/// An agent that nobody but the runtime at `socket` tells names.
fn traced(node: &Node, socket: &Path, change: impl FnOnce(&mut Config)) -> Result<Traced> {
    Traced::start(node, |config| {
        config.pods = None;
        config.runtime = RuntimeChoice::Socket(socket.to_owned());
        change(config);
    })
}

/// Twenty datagrams a second, for longer than any test takes.
fn sending(to: &Pod, port: u16) -> UdpSend {
    let to = address(to, false, port);
    UdpSend { to, packets: 100_000, size: 64, pps: Some(20), from_port: None, await_echo: false }
}

fn sends(from: &Pod, container: &str, to: &Pod, port: u16) -> Result<Process> {
    from.spawn(container, &Program::UdpSend(sending(to, port)))
}

/// What `pod` sends to `port`, on its own interface.
fn flow<'a>(flows: &'a [NetworkFlow], pod: &Pod, port: u16) -> Option<&'a NetworkFlow> {
    let from = pod.ipv4().to_string();
    let mut flows = flows.iter().filter(|flow| flow.dst_port == u32::from(port));
    flows.find(|flow| flow.src_ip == from && flow.interface == pod.veth())
}

/// Namespace, pod and container of that.
fn owner<'a>(flows: &'a [NetworkFlow], pod: &Pod, port: u16) -> Option<[&'a str; 3]> {
    let flow = flow(flows, pod, port)?;
    (flow.attributed_by() == AttributedBy::SocketCgroup).then_some([
        &*flow.namespace,
        &*flow.pod_name,
        &*flow.container,
    ])
}

#[test]
fn a_node_without_kubernetes_names_pods_and_containers_from_the_runtimes_socket() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let dir = tempfile::tempdir()?;
    let mut runtime = node.serve_cri(&dir.path().join("cri.sock"))?;
    let db = node.start_pod(PodSpec::new("shop", "db-0"))?;
    let _sinks = [PORT, PORT + 1].map(|port| db.spawn("app", &Program::udp_sink(db.ipv4(), port)));
    let web = node.start_pod(PodSpec::new("shop", "web").containers(&["app", "proxy"]))?;
    let traced = traced(&node, runtime.path(), |_| {})?;
    let _app = sends(&web, "app", &db, PORT)?;
    let _proxy = sends(&web, "proxy", &db, PORT + 1)?;
    traced.wait_for("pods and containers by name", |flows, status| {
        let source = status.pod_source.clone().unwrap_or_default();
        owner(flows, &web, PORT) == Some(["shop", "web", "app"])
            && owner(flows, &web, PORT + 1) == Some(["shop", "web", "proxy"])
            && (&*source.kind, source.pods_known) == ("containerd", 2)
            && source.state() == PodSourceState::Connected
            && status.runtime_source.as_ref().is_some_and(|runtime| runtime.reason == source.reason)
    })?;

    // The next one is named from its first record on, by an event.
    let late = node.start_pod(PodSpec::new("shop", "late"))?;
    let _late = sends(&late, "app", &db, PORT)?;
    traced.wait_for("a later pod", |flows, _| {
        owner(flows, &late, PORT) == Some(["shop", "late", "app"])
    })?;

    // What is known stays known, and what comes is named when the runtime is back.
    runtime.kill();
    let later = node.start_pod(PodSpec::new("shop", "later"))?;
    let _later = sends(&later, "app", &db, PORT)?;
    traced.wait_for("old names, and an id", |flows, status| {
        let source = status.runtime_source.clone().unwrap_or_default();
        owner(flows, &web, PORT) == Some(["shop", "web", "app"])
            && flow(flows, &later, PORT).is_some_and(|flow| flow.pod_name == later.uid())
            && source.state() == PodSourceState::Away
            && source.reason.contains("refused")
    })?;
    runtime.restart()?;
    traced.wait_for("all names", |flows, _| {
        owner(flows, &later, PORT) == Some(["shop", "later", "app"])
    })?;
    traced.stop()
}

#[test]
fn kubernetes_is_believed_and_the_runtime_names_what_it_does_not_know() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let dir = tempfile::tempdir()?;
    let runtime = node.serve_cri(&dir.path().join("cri.sock"))?;
    let api = KubeApi::start_in(&node.netns())?;
    node.report_to(&api)?;
    api.refuse(true);
    let db = node.start_pod(PodSpec::new("shop", "db-0"))?;
    let _sink = db.spawn("app", &Program::udp_sink(db.ipv4(), PORT))?;
    let web = node.start_pod(PodSpec::new("shop", "web-0").owner("StatefulSet", "web"))?;
    let kubeconfig = dir.path().join("kubeconfig");
    api.write_kubeconfig(&kubeconfig, None)?;
    let traced = traced(&node, runtime.path(), |config| {
        config.kubernetes = Some(KubernetesSource::Kubeconfig(Some(kubeconfig)));
    })?;
    let _sender = sends(&web, "app", &db, PORT)?;
    traced.wait_for("names while the API is away", |flows, status| {
        let source = status.pod_source.clone().unwrap_or_default();
        owner(flows, &web, PORT) == Some(["shop", "web-0", "app"])
            && (&*source.kind, source.state()) == ("kubernetes", PodSourceState::Away)
    })?;
    api.refuse(false);
    traced.wait_for("both sources", |flows, status| {
        let kubernetes = status.pod_source.clone().unwrap_or_default();
        let runtime = status.runtime_source.clone().unwrap_or_default();
        owner(flows, &web, PORT) == Some(["shop", "web-0", "app"])
            && (kubernetes.state(), kubernetes.pods_known) == (PodSourceState::Connected, 2)
            && (&*runtime.kind, runtime.pods_known) == ("containerd", 2)
            && kubernetes.reason.is_empty()
    })?;

    // As where a node was given another cluster, and old pods run on.
    let mut other = Sandbox::new("old", "web-0", &["app"])?;
    other.uid = web.uid().to_owned();
    other.containers[0].id = web.container_id("app")?.to_owned();
    runtime.put(other);
    traced.wait_for("a disagreement that is told", |flows, status| {
        let reason = status.pod_source.clone().unwrap_or_default().reason;
        owner(flows, &web, PORT) == Some(["shop", "web-0", "app"])
            && reason.contains("1 pods have another name in the container runtime, such as")
    })?;
    traced.stop()
}

#[test]
fn a_container_of_docker_is_named_by_its_name() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let dir = tempfile::tempdir()?;
    let docker = DockerServer::start(&dir.path().join("docker.sock"))?;
    let db = node.start_pod(PodSpec::new("shop", "db-0"))?;
    let _sink = db.spawn("app", &Program::udp_sink(db.ipv4(), PORT))?;
    let web = node.start_pod(PodSpec::new("shop", "web"))?;
    docker.run(DockerContainer {
        id: web.container_id("app")?.to_owned(),
        name: "web-of-docker".into(),
        labels: Default::default(),
        ip: Some(web.ipv4().into()),
        host_network: false,
    });
    // In a group as Docker makes them, with all that is in its network.
    let group = node.cgroup_dir().join("docker").join(web.container_id("app")?);
    fs::create_dir_all(&group)?;
    let procs = group.join("cgroup.procs");
    fs::write(&procs, web.sandbox_pid().to_string())
        .with_context(|| procs.display().to_string())?;
    let traced = traced(&node, docker.path(), |_| {})?;
    let send = Program::UdpSend(sending(&db, PORT)).arguments()?.join(" ");
    let testpod = testpod_path()?;
    let script = format!("echo $$ >{} && exec {} run {send}", procs.display(), testpod.display());
    let command = ["sh", "-c", &script].map(String::from).to_vec();
    let _sender = web.spawn("app", &Program::Exec(Exec { command }))?;
    traced.wait_for("the container by Docker's name", |flows, status| {
        let source = status.pod_source.clone().unwrap_or_default();
        owner(flows, &web, PORT) == Some(["", "web-of-docker", "web-of-docker"])
            && (&*source.kind, source.pods_known) == ("docker", 1)
    })?;
    traced.stop()
}

#[test]
fn a_socket_that_is_missing_or_none_does_not_keep_the_agent_from_starting() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let dir = tempfile::tempdir()?;
    let web = node.start_pod(PodSpec::new("shop", "web"))?;
    let db = node.start_pod(PodSpec::new("shop", "db-0"))?;
    let _sink = db.spawn("app", &Program::udp_sink(db.ipv4(), PORT))?;
    let socket = dir.path().join("cri.sock");
    fs::write(&socket, "")?;
    let traced = traced(&node, &socket, |_| {})?;
    let _sender = sends(&web, "app", &db, PORT)?;
    let away = |status: &StatusResponse, reason: &str| {
        let source = status.runtime_source.clone().unwrap_or_default();
        source.state() == PodSourceState::Away && source.reason.contains(reason)
    };
    traced.wait_for("the reason, and bare ids", |flows, status| {
        flow(flows, &web, PORT).is_some_and(|flow| flow.pod_name == web.uid())
            && away(status, "is a file, expected the socket")
    })?;
    fs::remove_file(&socket)?;
    traced.wait_for("another reason", |_, status| away(status, "no socket"))?;
    let _runtime = node.serve_cri(&socket)?;
    traced.wait_for("its name", |flows, _| {
        owner(flows, &web, PORT) == Some(["shop", "web", "app"])
    })?;
    traced.stop()
}
