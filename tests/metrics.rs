//! Metrics are what OpenMetrics says, agree with the answers, and health says what works.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result};
use orb8_proto::{FlowQuery, PodQuery, SignalState};
use orb8_testkit::{Node, NodeOptions, Program};
use orb8_tests::{Scene, Traced, address};
use tonic::Code;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[test]
fn metrics_are_open_metrics_and_agree_with_the_answers() -> Result<()> {
    let scene = Scene::start()?;
    let traced = Traced::start(&scene.node, |config| config.metrics_listen = Some(LOOPBACK))?;
    let _sink = scene.server.spawn("app", &Program::udp_sink(Ipv4Addr::UNSPECIFIED, 7001))?;
    let send = Program::udp_send(address(&scene.server, false, 7001), 20, 1_200);
    scene.client.spawn("app", &send)?.wait()?;
    let at = traced.metrics_addr().context("it serves metrics")?;
    let veth = scene.client.veth();
    let ((text, pods), _) = traced.while_quiet(veth, || {
        let query = PodQuery { pod_name: "client".into(), ..PodQuery::default() };
        let text = traced.get_as(at, "/metrics", "application/openmetrics-text;version=1.0.0")?.1;
        Ok((text, traced.pods(query)?))
    })?;

    assert!(text.ends_with("# EOF\n"), "{text}");
    let about = |what: &str| -> BTreeMap<&str, &str> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(what));
        lines.filter_map(|line| line.split_once(' ')).collect()
    };
    let (kinds, helps) = (about("# TYPE "), about("# HELP "));
    let mut samples = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').context("a sample")?;
        value.parse::<f64>().with_context(|| line.to_owned())?;
        let name = series.split('{').next().unwrap_or_default();
        let family = name.strip_suffix("_total").unwrap_or(name);
        let kind = kinds.get(family).with_context(|| format!("no type: {line}"))?;
        assert!(helps.get(family).is_some_and(|help| !help.is_empty()), "no help: {line}");
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{line}");
        assert!(["counter", "gauge"].contains(kind), "{line}");
        samples += 1;
    }
    assert!(samples > 20, "{text}");

    let metrics = traced.metrics(at)?;
    let labels = r#"namespace="shop",pod="client",workload="",owner="pod",direction="egress""#;
    let bytes = metrics.get(&format!("orb8_network_bytes_total{{{labels}}}"));
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let answered = pods[0].egress_bytes as f64;
    assert!(bytes.is_some_and(|bytes| *bytes >= answered), "{bytes:?} and {answered}: {metrics:?}");

    assert_eq!(traced.get(at, "/healthz")?, (200, "ok\n".into()));
    assert_eq!(traced.get(at, "/readyz")?, (200, "ok\n".into()));
    traced.stop()
}

#[test]
fn an_agent_with_nothing_that_works_is_alive_and_not_ready_and_says_why() -> Result<()> {
    let node = Node::start(NodeOptions::default())?;
    let traced = Traced::start(&node, |config| {
        config.require_signal = false;
        config.interfaces = vec!["nosuch0".into()];
        config.metrics_listen = Some(LOOPBACK);
    })?;
    let at = traced.metrics_addr().context("it serves metrics")?;
    assert_eq!(traced.get(at, "/healthz")?.0, 200);
    let (code, why) = traced.get(at, "/readyz")?;
    assert_eq!(code, 503);
    assert!(why.contains("nosuch0") && why.contains("br0"), "{why}");
    let signals = traced.status()?.signals;
    assert_eq!(signals[0].state(), SignalState::Failed);
    let refused = traced.call(|mut c| async move { c.query_flows(FlowQuery::default()).await });
    let refused = refused.expect_err("there are no flows");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("nosuch0"), "{refused}");
    traced.stop()
}
