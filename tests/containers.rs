//! Containers of one pod are told apart, in both directions, and so are the lives of one container.

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orb8_proto::{AttributedBy, Direction, FlowQuery, NetworkFlow};
use orb8_testkit::{
    KubeApi, Kubelet, KubeletPod, Node, NodeOptions, Pod, PodSpec, Program, Workload,
    kubelet::PodView,
    program::{Bind, UdpSend, UdpTalk},
};
use orb8_tests::Traced;

const LIMIT: Duration = Duration::from_secs(30);
const SINK: u16 = 7001;
/// Ethernet, IPv4 or IPv6, UDP.
const HEADERS: [u64; 2] = [14 + 20 + 8, 14 + 40 + 8];

struct Scene {
    node: Node,
    _api: KubeApi,
    peer: Pod,
    _sink: orb8_testkit::Process,
    traced: Traced,
}

impl Scene {
    /// An agent that knows no pod but a peer, which takes what it is sent and may ask.
    fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        let api = KubeApi::start_in(&node.netns())?;
        node.report_to(&api)?;
        let peer = node.start_pod(PodSpec::new("shop", "peer"))?;
        let sink = peer.spawn("app", &Program::udp_sink(Ipv6Addr::UNSPECIFIED, SINK))?;
        let traced = Traced::start_with_api(&node, &api)?;
        Ok(Self { node, _api: api, peer, _sink: sink, traced })
    }

    /// The peer's addresses, IPv4 first.
    fn peers(&self) -> Vec<SocketAddr> {
        vec![(self.peer.ipv4(), SINK).into(), (self.peer.ipv6(), SINK).into()]
    }

    fn run(&self, name: &str, app: Program, proxy: Program) -> Result<(KubeletPod, PodView)> {
        let spec = PodSpec::new("shop", name).containers(&["app", "proxy"]);
        let workload = Workload::new(spec).program("app", app).program("proxy", proxy);
        let pod = Kubelet::of(&self.node).run(workload)?;
        let view = pod.wait_running(LIMIT)?;
        Ok((pod, view))
    }

    /// The flows on the pod's interface, once they are as wanted.
    fn flows(
        &self,
        pod: &PodView,
        what: &str,
        wanted: impl Fn(&[NetworkFlow]) -> bool,
    ) -> Result<Vec<NetworkFlow>> {
        let begun = Instant::now();
        loop {
            let query = FlowQuery { interface: pod.veth.clone(), limit: 10_000, ..<_>::default() };
            // Not there yet, or gone and forgotten.
            let flows = self.traced.flows(query).unwrap_or_default();
            if wanted(&flows) {
                return Ok(flows);
            }
            ensure!(begun.elapsed() < LIMIT, "not in time: {what}: {flows:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Datagrams to the peer, over both families; then it stays.
fn talk(scene: &Scene, packets: u64, from_port: u16) -> Program {
    Program::UdpTalk(UdpTalk {
        to: scene.peers(),
        packets,
        size: 100,
        pps: 400,
        from_port,
        stay: true,
    })
}

/// Packets and bytes that a container sent to the peer, by its id.
fn sent_by(flows: &[NetworkFlow], id: &str) -> (u64, u64) {
    let flows = flows.iter().filter(|f| {
        f.container_id == id && f.dst_port == u32::from(SINK) && f.direction() == Direction::Egress
    });
    flows.fold((0, 0), |sum, flow| (sum.0 + flow.packets, sum.1 + flow.bytes))
}

fn expected(packets: u64) -> (u64, u64) {
    (2 * packets, HEADERS.iter().map(|headers| packets * (100 + headers)).sum())
}

#[test]
fn what_two_containers_of_a_pod_send_is_split_to_the_byte() -> Result<()> {
    let scene = Scene::start()?;
    let (_pod, view) = scene.run("web", talk(&scene, 120, 4_000), talk(&scene, 75, 4_001))?;
    let flows = scene.flows(&view, "all that was sent", |flows| {
        let counted = [0, 1].map(|at| sent_by(flows, &view.containers[at].id));
        counted == [expected(120), expected(75)]
    })?;
    let to_peer = flows.iter().filter(|f| f.dst_port == u32::from(SINK));
    for flow in to_peer {
        assert_eq!((&*flow.pod_uid, &*flow.namespace), (&*view.uid, "shop"), "{flow:?}");
        assert_eq!(flow.attributed_by(), AttributedBy::SocketCgroup, "{flow:?}");
        let at = if flow.src_port == 4_000 { 0 } else { 1 };
        assert_eq!(flow.container_id, view.containers[at].id, "{flow:?}");
    }
    scene.flows(&view, "names, which come from the API", |flows| {
        let mut of_pod = flows.iter().filter(|f| f.dst_port == u32::from(SINK));
        of_pod.all(|f| {
            f.pod_name == "web" && f.container == ["app", "proxy"][usize::from(f.src_port == 4_001)]
        })
    })?;
    scene.traced.stop()
}

#[test]
fn what_a_container_is_sent_is_its_own_when_it_answers() -> Result<()> {
    let scene = Scene::start()?;
    let echo = |port| Program::UdpEcho(Bind { bind: (Ipv6Addr::UNSPECIFIED, port).into() });
    let (_pod, view) = scene.run("web", echo(7_011), echo(7_012))?;
    for (port, from_port) in [(7_011, 5_001), (7_012, 5_002), (7_013, 5_003)] {
        for ip in [view.ipv4.into(), view.ipv6.into()] {
            let ask = UdpSend {
                to: SocketAddr::new(ip, port),
                packets: 5,
                size: 64,
                pps: None,
                from_port: Some(from_port),
                // Nobody is at the last port.
                await_echo: port != 7_013,
            };
            scene.peer.spawn("app", &Program::UdpSend(ask))?.wait()?;
        }
    }
    let both = |flows: &[NetworkFlow], port: u32| {
        let found = flows.iter().filter(|f| f.dst_port == port || f.src_port == port);
        found.filter(|f| f.packets == 5).cloned().collect::<Vec<_>>()
    };
    let flows = scene.flows(&view, "questions and answers", |flows| {
        let asked = both(flows, 7_013).len() == 2;
        let answered = [(7_011, 0), (7_012, 1)].iter().all(|(port, at)| {
            let flows = both(flows, *port);
            flows.len() == 4 && flows.iter().all(|f| f.container_id == view.containers[*at].id)
        });
        asked && answered
    })?;
    for flow in both(&flows, 7_011).iter().chain(&both(&flows, 7_012)) {
        assert_eq!((flow.attributed_by(), &flow.pod_uid), (AttributedBy::SocketCgroup, &view.uid));
    }
    for flow in both(&flows, 7_013) {
        assert_eq!((flow.attributed_by(), &flow.pod_uid), (AttributedBy::Veth, &view.uid));
        assert_eq!((&*flow.container_id, &*flow.container), ("", ""), "{flow:?}");
    }
    scene.traced.stop()
}

#[test]
fn a_container_that_restarts_is_another_one_of_the_same_pod_under_the_same_name() -> Result<()> {
    let scene = Scene::start()?;
    // From a port that the kernel chooses, as most clients do.
    let (pod, first) = scene.run("web", talk(&scene, 50, 0), talk(&scene, 30, 4_001))?;
    scene.flows(&first, "the first life", |flows| {
        sent_by(flows, &first.containers[0].id) == expected(50)
    })?;
    pod.crash("app")?;
    let again = |view: &PodView| view.containers[0].restarts == 1 && view.containers[0].running;
    let second = pod.wait_until("started again", LIMIT, again)?;
    let (old, new) = (&first.containers[0].id, &second.containers[0].id);
    assert_ne!(old, new);

    let flows = scene.flows(&second, "both lives and the neighbour", |flows| {
        let of_app = sent_by(flows, old).0 + sent_by(flows, new).0;
        let of_proxy = sent_by(flows, &second.containers[1].id);
        (of_app, of_proxy) == (expected(50).0 * 2, expected(30))
    })?;
    assert_eq!((sent_by(&flows, old), sent_by(&flows, new)), (expected(50), expected(50)));
    let named = scene.flows(&second, "names of both", |flows| {
        let mut of_app = flows.iter().filter(|f| [old, new].contains(&&f.container_id));
        of_app.all(|f| f.container == "app" && f.pod_name == "web")
    })?;
    let of_app = named.iter().filter(|f| [old, new].contains(&&f.container_id));
    assert_eq!(of_app.filter(|f| f.pod_uid == second.uid).count(), 4, "{named:#?}");
    let life = pod.view().lives.first().cloned().context("the first life has ended")?;
    assert_eq!((&life.id, life.exit_code), (old, 137));
    scene.traced.stop()
}

#[test]
fn a_container_that_restarts_on_the_same_ports_does_not_get_what_its_former_self_sent() -> Result<()>
{
    let scene = Scene::start()?;
    let spec = PodSpec::new("shop", "web").containers(&["app"]);
    let mut workload = Workload::new(spec).program("app", talk(&scene, 50, 4_000));
    // A kubelet waits for ten seconds. The flows of who is gone end after two.
    workload.backoff = Duration::from_secs(5);
    let pod = Kubelet::of(&scene.node).run(workload)?;
    let first = pod.wait_running(LIMIT)?;
    let old = &first.containers[0].id;
    scene.flows(&first, "the first life", |flows| sent_by(flows, old) == expected(50))?;
    pod.crash("app")?;
    let again = |view: &PodView| view.containers[0].restarts == 1 && view.containers[0].running;
    let second = pod.wait_until("started again", LIMIT, again)?;
    let new = &second.containers[0].id;
    scene.flows(&second, "both lives", |flows| {
        sent_by(flows, old) == expected(50) && sent_by(flows, new) == expected(50)
    })?;
    scene.traced.stop()
}
