//! Nothing vanishes without a word: what was seen is what was delivered and what is reported lost.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use orb8_agent::config::Config;
use orb8_proto::{FlowQuery, Loss, StreamRequest};
use orb8_testkit::{
    Node, NodeOptions, Pod, PodSpec, Program,
    program::{Flows, Proto},
};
use orb8_tests::{Trace, Traced, address, assert_exact};

fn flows_to(server: &Pod, ipv6: bool, port: u16, count: u32) -> Program {
    Program::Flows(Flows {
        to: address(server, ipv6, port),
        count,
        packets_per_flow: 1,
        size: 64,
        proto: Proto::Udp,
        ports: None,
    })
}

fn ring_full(losses: &[Loss]) -> u64 {
    let lost = losses.iter().filter(|l| l.stage == "kernel" && l.reason == "ring_full");
    lost.map(|loss| loss.records).sum()
}

/// Not what the node says, which is also what these tests ask the agent.
fn of_the_pods() -> StreamRequest {
    StreamRequest { namespace: "load".into(), ..StreamRequest::default() }
}

/// Two scrapes with nothing lost between them. A scrape is a connection, and so news by itself.
fn quiet_metrics(traced: &Traced) -> Result<BTreeMap<String, f64>> {
    let at = traced.metrics_addr().expect("metrics were configured");
    let events = |samples: &BTreeMap<String, f64>| {
        let lost = r#"orb8_lost_records_total{signal="network",stage="kernel",reason="ring_full"}"#;
        samples.get(lost).copied()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut before = traced.metrics(at)?;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = traced.metrics(at)?;
        if events(&now) == events(&before) {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "losses never cease: {now:?}");
        before = now;
    }
}

#[test]
fn events_that_found_the_ring_full_are_counted_and_cost_no_total() -> Result<()> {
    const FLOWS: u32 = 5_000;
    let node = Node::start(NodeOptions::default())?;
    let client = node.start_pod(PodSpec::new("load", "client"))?;
    let server = node.start_pod(PodSpec::new("load", "server"))?;
    let _udp = server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, 7001))?;
    let page = u32::try_from(rustix::param::page_size())?;
    let nobody_reads = |config: &mut Config| {
        config.ring_buffer_size = page;
        config.event_interval = Duration::from_secs(3600);
        config.tick = Duration::from_secs(3600);
        config.metrics_listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    };
    let traced = Traced::start(&node, nobody_reads)?;
    let (trace, before) = traced.while_quiet(client.veth(), || traced.trace(of_the_pods()))?;

    let sent = client.spawn("app", &flows_to(&server, false, 7001, FLOWS))?.wait()?;
    assert_eq!(sent.packets, u64::from(FLOWS));

    // seen = delivered + lost, by three ways of asking.
    let metrics = quiet_metrics(&traced)?;
    let of = |name: &str| metrics.get(name).copied().unwrap_or(-1.0);
    let seen = of(r#"orb8_events_seen_total{signal="network"}"#);
    let delivered = of(r#"orb8_events_delivered_total{signal="network"}"#);
    let lost = of(r#"orb8_lost_records_total{signal="network",stage="kernel",reason="ring_full"}"#);
    assert!(seen >= f64::from(FLOWS) * 2.0, "one event per flow and interface: {metrics:?}");
    assert!(delivered > 0.0 && lost > f64::from(FLOWS), "{metrics:?}");
    assert!((seen - delivered - lost).abs() < 0.5, "{seen} != {delivered} + {lost}");
    assert_eq!(of(r#"orb8_ring_buffer_drops_total{ring="FLOW_EVENTS"}"#), lost);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let by_status = ring_full(&traced.status()?.losses) as f64;
    assert_eq!(by_status, lost);

    // It cost no packet and no flow: those are read from maps.
    let now = traced.quiet_counters(client.veth())?;
    assert_exact(&now)?;
    assert_exact(&traced.quiet_counters(server.veth())?)?;
    let query =
        FlowQuery { interface: client.veth().into(), limit: 100_000, ..FlowQuery::default() };
    let flows = traced.flows(query)?;
    let ours = flows.iter().filter(|f| f.dst_port == 7001 && f.packets == 1).count();
    assert_eq!(ours, FLOWS as usize);

    // And whoever traced meanwhile got every packet, and is told of the events.
    let heard = traced.stop_with(trace)?;
    heard.assert_sums_to_kernel(&before, &now)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let told = ring_full(&heard.last_report().losses) as f64;
    assert_eq!(told, lost);
    Ok(())
}

/// Waits until the trace has heard everything there is.
fn let_it_catch_up(trace: &Trace) {
    let mut before = 0;
    while trace.heard() != before {
        before = trace.heard();
        std::thread::sleep(Duration::from_millis(250));
    }
}

#[test]
fn a_subscriber_that_does_not_read_is_told_what_it_lost_and_slows_nobody() -> Result<()> {
    const BATCHES: u16 = 8;
    const FLOWS: u32 = 3_500;
    let node = Node::start(NodeOptions::default())?;
    let client = node.start_pod(PodSpec::new("load", "client"))?;
    let server = node.start_pod(PodSpec::new("load", "server"))?;
    let _udp = server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, 7001))?;
    let traced = Traced::start(&node, |config| config.flow_table_size = 1 << 17)?;
    let request = || StreamRequest { interface: client.veth().into(), ..StreamRequest::default() };
    // On a connection of its own: streams that share one also share its flow control.
    let other = traced.another_client()?;
    let ((stuck, quick), before) = traced
        .while_quiet(client.veth(), || Ok((other.open(request())?, traced.trace(request())?)))?;

    for batch in 0..BATCHES {
        let flows = flows_to(&server, false, 7001 + batch, FLOWS);
        assert_eq!(client.spawn("app", &flows)?.wait()?.flows, u64::from(FLOWS));
        let_it_catch_up(&quick);
    }
    let now = traced.quiet_counters(client.veth())?;
    assert_exact(&now)?;

    // Now it reads again.
    let stuck = other.listen(stuck);
    let_it_catch_up(&stuck);
    let quick = traced.stop_with(quick)?;
    let stuck = other.hear(stuck)?;
    let all = u64::from(FLOWS) * u64::from(BATCHES);
    let (of_quick, of_stuck) = (quick.last_report(), stuck.last_report());
    assert_eq!(of_quick.records_lost, 0);
    assert_eq!(of_quick.records_delivered, quick.flows.len() as u64);
    assert!(quick.flows.len() as u64 > all);
    assert_eq!(of_stuck.records_delivered, stuck.flows.len() as u64);
    assert!(of_stuck.records_lost > 1_000, "{of_stuck:?}");
    assert_eq!(
        of_stuck.records_delivered + of_stuck.records_lost,
        of_quick.records_delivered,
        "both were told of the same records"
    );
    // Not only at the end: with the first record that it read again.
    assert!(stuck.reports.len() > 1 && !stuck.reports[0].r#final, "{:?}", stuck.reports);
    assert_eq!(stuck.reports[0].records_lost, of_stuck.records_lost);

    quick.assert_sums_to_kernel(&before, &now)?;
    Ok(())
}
