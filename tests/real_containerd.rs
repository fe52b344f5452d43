//! The real containerd, with runc and CNI: its sockets, cgroups and veths are what orb8 takes them
//! for, and traffic of its containers is given to them by name.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_agent::k8s::{cgroup, runtime::RuntimeChoice};
use orb8_proto::{AttributedBy, FlowQuery, PodSourceState};
use orb8_testkit::{Node, NodeOptions, Program, program::TcpSend};
use orb8_tests::{Containerd, OldGroups, RealPod, Traced};

const PATIENCE: Duration = Duration::from_secs(30);
const UID: &str = "8d5f24b5-3f56-4f60-a7a8-0c2f8b5e6f3a";
const PORT: u16 = 7001;

/// What the kernel says of the first process of a container.
fn group_of(node: &Node, id: &str) -> Result<String> {
    let dir = node.cgroup_dir().join(format!("kubepods/besteffort/pod{UID}/{id}"));
    let procs = dir.join("cgroup.procs");
    let pids = fs::read_to_string(&procs).with_context(|| procs.display().to_string())?;
    let pid = pids.lines().next().context("nobody is in its group")?;
    Ok(fs::read_to_string(format!("/proc/{pid}/cgroup"))?)
}

#[test]
fn containers_of_containerd_are_named_and_so_is_their_traffic() -> Result<()> {
    let mut old_groups = OldGroups::default();
    let node = Node::start(NodeOptions::default())?;
    old_groups.watch(&node);
    let containerd = Containerd::start(&node)?;
    let _sinks =
        [PORT, PORT + 1].map(|port| node.spawn("sink", &Program::tcp_sink(node.ipv4(), port)));
    let traced = Traced::start(&node, |config| {
        config.pods = None;
        config.runtime = RuntimeChoice::Socket(containerd.socket());
        // There is no pod yet, so nothing to attach to.
        config.interfaces = vec!["veth*".into()];
        config.require_signal = false;
    })?;
    let pod: RealPod = containerd.run_pod("shop", "web", UID)?;
    let sends = |port| {
        let to = (node.ipv4(), port).into();
        // For longer than the test takes.
        Program::TcpSend(TcpSend { to, bytes: 1 << 40, rate: Some(1 << 20) })
    };
    let app = containerd.run_container(&pod, "app", &sends(PORT))?;
    let proxy = containerd.run_container(&pod, "proxy", &sends(PORT + 1))?;

    for id in [&app, &proxy, &pod.sandbox] {
        let content = group_of(&node, id)?;
        let (path, found) = cgroup::parse_proc_cgroup(&content).context("no group")?;
        let found = found.with_context(|| format!("{path} names nobody"))?;
        let (uid, container) = (found.pod_uid, found.container_id);
        assert_eq!(uid.map(|uid| uid.to_string()).as_deref(), Some(UID), "{path}");
        assert_eq!(container.map(|id| id.to_string()).as_ref(), Some(id), "{path}");
    }

    let began = Instant::now();
    loop {
        let flows = traced.flows(FlowQuery { limit: 10_000, ..FlowQuery::default() })?;
        let sent = |port: u16, container: &str, id: &str| {
            flows.iter().any(|flow| {
                flow.dst_port == u32::from(port)
                    && flow.interface.starts_with("veth")
                    && flow.attributed_by() == AttributedBy::SocketCgroup
                    && (&*flow.namespace, &*flow.pod_name) == ("shop", "web")
                    && (&*flow.container, &*flow.container_id) == (container, id)
                    && flow.pod_uid == UID
            })
        };
        let source = traced.status()?.runtime_source.unwrap_or_default();
        if sent(PORT, "app", &app)
            && sent(PORT + 1, "proxy", &proxy)
            && source.state() == PodSourceState::Connected
            && (&*source.kind, source.pods_known) == ("containerd", 1)
        {
            break;
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "not named in time: {source:?}, {flows:#?}\n{}",
            containerd.log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }

    containerd.remove_pod(&pod)?;
    let began = Instant::now();
    while traced.status()?.runtime_source.is_some_and(|source| source.pods_known > 0) {
        ensure!(began.elapsed() < PATIENCE, "the pod is still known to exist");
        std::thread::sleep(Duration::from_millis(50));
    }
    traced.stop()
}
