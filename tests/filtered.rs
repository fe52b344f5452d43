//! Events that nobody wants are not emitted: what a trace filters, it filters in the kernel.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orb8_proto::{Direction, StreamRequest};
use orb8_testkit::{
    Node, NodeOptions, Pod, PodSpec, Program,
    program::{Flows, Proto},
};
use orb8_tests::{Traced, address, assert_exact};

const FLOWS: u32 = 500;
const FIRST_PORT: u16 = 7001;

struct Scene {
    web: Pod,
    db: Pod,
    sink: Pod,
    traced: Traced,
    next_port: AtomicU16,
    _node: Node,
}

impl Scene {
    fn start() -> Result<Self> {
        let node = Node::start(NodeOptions::default())?;
        let sink = node.start_pod(PodSpec::new("infra", "sink"))?;
        let web = node.start_pod(PodSpec::new("shop", "web-1"))?;
        let db = node.start_pod(PodSpec::new("shop", "db-1"))?;
        let traced = Traced::start(&node, |config| {
            config.metrics_listen = Some((Ipv4Addr::LOCALHOST, 0).into());
        })?;
        // Every veth has its owner before the first packet that is looked for.
        let next_port = AtomicU16::new(FIRST_PORT);
        let scene = Self { web, db, sink, traced, next_port, _node: node };
        scene.send()?;
        scene.await_owners()?;
        Ok(scene)
    }

    fn await_owners(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.traced.status()?.interfaces.iter().any(|i| i.pod_name.is_empty()) {
            ensure!(Instant::now() < deadline, "an interface has no owner");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Both pods send as many new flows to the same sink.
    fn send(&self) -> Result<()> {
        let port = self.next_port.fetch_add(1, Relaxed);
        let _sink = self.sink.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, port))?;
        for pod in [&self.web, &self.db] {
            let flows = Flows {
                to: address(&self.sink, false, port),
                count: FLOWS,
                packets_per_flow: 1,
                size: 64,
                proto: Proto::Udp,
                ports: None,
            };
            let sent = pod.spawn("app", &Program::Flows(flows))?.wait()?;
            assert_eq!(sent.packets, u64::from(FLOWS));
        }
        Ok(())
    }

    fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        self.traced.metrics(self.traced.metrics_addr().expect("metrics were configured"))
    }

    /// Events that were emitted and those that were not.
    fn events(&self) -> Result<(f64, f64)> {
        let metrics = self.metrics()?;
        let of = |name: &str| {
            let name = format!("orb8_events_{name}_total{{signal=\"network\"}}");
            metrics.get(&name).copied().unwrap_or(-1.0)
        };
        Ok((of("seen"), of("unwanted")))
    }

    /// What sending costs in events.
    fn events_of_sending(&self) -> Result<(f64, f64)> {
        let before = self.events()?;
        self.send()?;
        let after = self.events()?;
        Ok((after.0 - before.0, after.1 - before.1))
    }
}

#[test]
fn a_trace_of_one_pod_costs_the_events_of_that_pod() -> Result<()> {
    let scene = Scene::start()?;
    let each = f64::from(FLOWS);

    // Nobody listens: each flow begins at two interfaces, and none of that is told.
    let (seen, unwanted) = scene.events_of_sending()?;
    assert!(seen < 1.0 && unwanted >= 4.0 * each, "{seen} {unwanted}");

    // Only `web` is listened to: its own end is told, the sink's and all of `db` are not.
    let heard = scene.traced.trace(StreamRequest {
        namespace: "shop".into(),
        pod_name: "web".into(),
        ..StreamRequest::default()
    })?;
    let (seen, unwanted) = scene.events_of_sending()?;
    assert!((each..each * 1.1).contains(&seen), "{seen} {unwanted}");
    assert!(unwanted >= 3.0 * each, "{seen} {unwanted}");

    // A second subscriber widens that, and takes it along when it leaves.
    let wider = scene
        .traced
        .open(StreamRequest { namespace: "shop".into(), ..StreamRequest::default() })?;
    let (seen, _) = scene.events_of_sending()?;
    assert!((2.0 * each..2.2 * each).contains(&seen), "{seen}");
    drop(wider);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (seen, _) = scene.events_of_sending()?;
        if (each..each * 1.1).contains(&seen) {
            break;
        }
        ensure!(Instant::now() < deadline, "the probe still tells of {seen} events");
    }

    // What is not told is counted all the same, and the trace is whole.
    for pod in [&scene.web, &scene.db, &scene.sink] {
        assert_exact(&scene.traced.quiet_counters(pod.veth())?)?;
    }
    let Scene { traced, .. } = scene;
    let heard = traced.stop_with(heard)?;
    assert!(heard.flows.iter().all(|f| f.namespace == "shop" && f.pod_name == "web-1"));
    let sent = heard
        .flows
        .iter()
        .filter(|f| f.direction() == Direction::Egress && f.dst_port >= u32::from(FIRST_PORT));
    let packets: u64 = sent.map(|f| f.packets).sum();
    assert!(packets >= 3 * u64::from(FLOWS), "{packets}");
    Ok(())
}
