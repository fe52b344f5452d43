//! Names come from the Kubernetes API: late if it is late, right whenever they come, and kept while
//! it is away.

use std::time::Duration;

use anyhow::{Result, ensure};
use orb8_k8s::KubernetesSource;
use orb8_proto::{AttributedBy, NetworkFlow, PodSource, PodSourceState, StatusResponse};
use orb8_testkit::{KubeApi, Node, NodeOptions, Pod, PodSpec, Program, program::HoldFlows};
use orb8_tests::{Traced, address};

/// An agent that asks `api` for names, which the node reports its pods to.
fn traced(node: &Node, api: &KubeApi, dir: &tempfile::TempDir) -> Result<Traced> {
    let kubeconfig = dir.path().join("kubeconfig");
    api.write_kubeconfig(&kubeconfig, None)?;
    Traced::start(node, |config| {
        config.pods = None;
        config.kubernetes = Some(KubernetesSource::Kubeconfig(Some(kubeconfig)));
    })
}

fn source(status: &StatusResponse) -> PodSource {
    status.pod_source.clone().unwrap_or_default()
}

/// The container and workload that flows from `pod`'s address to `port` are given to, and how.
fn owner<'a>(flows: &'a [NetworkFlow], pod: &Pod, port: u32) -> Option<(&'a str, &'a str, i32)> {
    let from = pod.ipv4().to_string();
    let mut flows = flows.iter();
    let flow =
        flows.find(|f| f.src_ip == from && f.dst_port == port && f.interface == pod.veth())?;
    Some((&flow.pod_name, &flow.container, flow.attributed_by))
}

fn sends(from: &Pod, to: &Pod, port: u16) -> Result<orb8_testkit::Process> {
    let to = address(to, false, port);
    from.spawn("app", &Program::HoldFlows(HoldFlows { to, count: 1, pps: 20, size: 64, ports: 1 }))
}

#[test]
fn names_come_when_the_api_does_and_stay_when_it_goes() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let dir = tempfile::tempdir()?;
    let api = KubeApi::start_in(&node.netns())?;
    node.report_to(&api)?;
    api.refuse(true);
    let web = node.start_pod(PodSpec::new("shop", "web-5d9c7bb4f8-x2x7k"))?;
    let db = node.start_pod(PodSpec::new("shop", "db-0"))?;
    let _sink = db.spawn("app", &Program::udp_sink(db.ipv4(), 7001))?;

    let traced = traced(&node, &api, &dir)?;
    let _sender = sends(&web, &db, 7001)?;
    let by = AttributedBy::SocketCgroup.into();
    traced.wait_for("the bare UID, as the API is away", |flows, status| {
        let short = &web.container_id("app").unwrap_or_default()[..12];
        owner(flows, &web, 7001) == Some((web.uid(), short, by))
            && source(status).state() == PodSourceState::Away
            && source(status).reason.contains("refused")
    })?;

    api.refuse(false);
    traced.wait_for("its name, as the API is there", |flows, status| {
        owner(flows, &web, 7001) == Some((web.name(), "app", by))
            && source(status).state() == PodSourceState::Connected
            && source(status).pods_known == 2
    })?;

    api.refuse(true);
    traced.wait_for("an API that is away", |_, status| {
        source(status).state() == PodSourceState::Away
    })?;
    let late = node.start_pod(PodSpec::new("shop", "late"))?;
    let _late_sender = sends(&late, &db, 7001)?;
    traced.wait_for("old names kept, new ones missing", |flows, status| {
        owner(flows, &web, 7001) == Some((web.name(), "app", by))
            && owner(flows, &late, 7001).is_some_and(|(name, _, _)| name == late.uid())
            && source(status).pods_known == 2
            && source(status).age_ns > 0
    })?;
    api.refuse(false);
    traced.wait_for("all names", |flows, status| {
        owner(flows, &late, 7001) == Some((late.name(), "app", by))
            && source(status).pods_known == 3
    })?;
    traced.stop()
}

#[test]
fn a_deleted_pods_traffic_keeps_its_name_and_its_successors_address_is_its_own() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let dir = tempfile::tempdir()?;
    let api = KubeApi::start_in(&node.netns())?;
    node.report_to(&api)?;
    let db = node.start_pod(PodSpec::new("shop", "db-0"))?;
    let _sink = db.spawn("app", &Program::udp_sink(db.ipv4(), 7001))?;
    let traced = traced(&node, &api, &dir)?;
    api.faults(|faults| faults.delay = Duration::from_secs(1));

    let spec = |name: &str| PodSpec { host_number: Some(77), ..PodSpec::new("shop", name) };
    let mut sent = Vec::new();
    for name in ["first", "second", "third"] {
        let pod = node.start_pod(spec(name))?;
        traced.wait_attached(pod.veth())?;
        let summary = pod
            .spawn("app", &Program::udp_send(address(&db, false, 7001), 500, 100))?
            .wait_for(Duration::from_secs(30))?;
        sent.push((name, pod.veth().to_owned(), summary.packets));
        // By its UID at first: the API is late.
        traced.wait_for("the pod, under whatever name", |flows, _| {
            owner(flows, &pod, 7001).is_some_and(|(name, _, _)| !name.is_empty())
        })?;
        pod.stop()?;
    }
    traced.wait_for("every pod's packets under its name", |flows, _| {
        sent.iter().all(|(name, veth, packets)| {
            let of_pod = |flow: &&NetworkFlow| flow.interface == *veth && flow.dst_port == 7001;
            let mut flows = flows.iter().filter(of_pod);
            flows.next().is_some_and(|flow| flow.pod_name == *name && flow.packets == *packets)
        })
    })?;
    ensure!(source(&traced.status()?).pods_known == 1, "the deleted ones are not counted");
    traced.stop()
}
