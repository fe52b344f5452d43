//! `/metrics`, `/healthz`, `/readyz`.
//!
//! Every scrape builds its families from one snapshot: a pod that is gone leaves no series behind.

use std::{future::Future, io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use orb8_common::network::Counts;
use orb8_proto::{Loss, Usage};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api_server::Api,
    enricher::AttributedBy,
    signals::network::{PodTotals, Snapshot},
    usage,
};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the agent's metrics on a bound socket until `token` says stop.
pub(crate) fn serve(
    api: Api,
    listener: std::net::TcpListener,
    token: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        // Alive means: this process can answer. A probe that fails under load makes restarts.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::new(api));
    Ok(async move {
        let server = axum::serve(listener, router);
        if let Err(error) = server.with_graceful_shutdown(token.cancelled_owned()).await {
            tracing::error!("metrics: {error}");
        }
    })
}

async fn ready(State(api): State<Arc<Api>>) -> impl IntoResponse {
    if api.status.ready() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let reasons = api.status.signals().into_iter().map(|s| format!("{}: {}\n", s.name, s.reason));
    (StatusCode::SERVICE_UNAVAILABLE, reasons.collect())
}

async fn metrics(State(api): State<Arc<Api>>) -> impl IntoResponse {
    let snapshot = api.snapshot().await;
    let usage = usage::now(snapshot.map_bytes);
    let scrape = Scrape { losses: api.ledger.losses(), snapshot, usage };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => (StatusCode::OK, [(CONTENT_TYPE, OPENMETRICS)], text),
        Err(error) => {
            let text = format!("metrics cannot be written: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], text)
        }
    }
}

/// What one scrape tells.
#[derive(Debug)]
struct Scrape {
    snapshot: Snapshot,
    losses: Vec<Loss>,
    usage: Usage,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.traffic(&mut encoder)?;
        self.losses(&mut encoder)?;
        self.kernel(&mut encoder)?;
        self.own(&mut encoder)
    }
}

/// Every direction of a pod's account, with its labels.
fn each_direction(pod: &PodTotals) -> [(Vec<(&'static str, String)>, Counts); 2] {
    let labels = |direction: &str| {
        let owner = match pod.by {
            _ if pod.is_processes => "process",
            AttributedBy::Host => "node",
            AttributedBy::None => "unknown",
            _ => "pod",
        };
        vec![
            ("namespace", pod.namespace.to_string()),
            ("pod", pod.pod.to_string()),
            ("workload", pod.workload.as_deref().unwrap_or_default().to_owned()),
            ("owner", owner.to_owned()),
            ("direction", direction.to_owned()),
        ]
    };
    [(labels("ingress"), pod.ingress), (labels("egress"), pod.egress)]
}

impl Scrape {
    fn traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        type Of = fn(&Counts) -> u64;
        let families: [(&str, &str, Option<&Unit>, Of); 3] = [
            (
                "orb8_network",
                "L2 length of packets, as the interface counts it",
                Some(&Unit::Bytes),
                |c| c.bytes,
            ),
            ("orb8_network_packets", "Packets, as the interface counts them", None, |c| c.packets),
            (
                "orb8_network_wire_packets",
                "Packets with GSO packets counted by their segments",
                None,
                |c| c.packets + c.extra_segments,
            ),
        ];
        for (name, help, unit, of) in families {
            let mut family = encoder.encode_descriptor(
                name,
                help,
                unit,
                prometheus_client::metrics::MetricType::Counter,
            )?;
            for pod in &self.snapshot.pods {
                for (labels, counts) in each_direction(pod) {
                    ConstCounter::new(of(&counts)).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }

    fn losses(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        type Of = fn(&Loss) -> u64;
        let families: [(&str, &str, Of); 2] = [
            ("orb8_lost_records", "Event or trace records that were not delivered", |l| l.records),
            ("orb8_undetailed_packets", "Packets that are in the totals without detail", |l| {
                l.packets
            }),
        ];
        for (name, help, of) in families {
            let mut family = encoder.encode_descriptor(
                name,
                help,
                None,
                prometheus_client::metrics::MetricType::Counter,
            )?;
            for loss in self.losses.iter().filter(|loss| of(loss) > 0) {
                let labels = [
                    ("signal", loss.signal.as_str()),
                    ("stage", loss.stage.as_str()),
                    ("reason", loss.reason.as_str()),
                ];
                ConstCounter::new(of(loss)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn kernel(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let ring = [("ring", "FLOW_EVENTS")];
        let lost = self.losses.iter().filter(|l| l.stage == "kernel" && l.reason == "ring_full");
        let drops: u64 = lost.map(|loss| loss.records).sum();
        counter(encoder, "orb8_ring_buffer_drops", "Events refused by a full ring", &ring, drops)?;
        let (used, size) = self.snapshot.ring;
        let share = ratio(used, size);
        gauge(
            encoder,
            "orb8_ring_buffer_utilization",
            "Share of the ring that is in use",
            &ring,
            share,
        )?;
        let network = [("signal", "network")];
        counter(
            encoder,
            "orb8_events_seen",
            "Events that the probe wanted to emit",
            &network,
            self.snapshot.events_seen,
        )?;
        counter(
            encoder,
            "orb8_events_unwanted",
            "Events that the probe did not emit because nobody listens to that pod",
            &network,
            self.snapshot.events_unwanted,
        )?;
        counter(
            encoder,
            "orb8_events_delivered",
            "Events that reached the agent",
            &network,
            self.snapshot.events_delivered,
        )?;
        counter(
            encoder,
            "orb8_peers_unasked",
            "Flows whose first record went out before the kernel was asked who is behind their peer",
            &network,
            self.snapshot.peers_unasked,
        )?;
        let mut family = encoder.encode_descriptor(
            "orb8_map_entries_ratio",
            "Share of a kernel map that is in use",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for map in &self.snapshot.maps {
            let labels = [("map", map.name.as_str())];
            ConstGauge::new(ratio(map.entries, map.max_entries))
                .encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn own(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let none: [(&str, &str); 0] = [];
        #[expect(clippy::cast_precision_loss, reason = "memory below 2^53 bytes")]
        let float = |n: u64| n as f64;
        let usage = &self.usage;
        let mut cpu = encoder.encode_descriptor(
            "process_cpu",
            "User and system CPU time of the agent",
            Some(&Unit::Seconds),
            prometheus_client::metrics::MetricType::Counter,
        )?;
        ConstCounter::new(usage.cpu_seconds).encode(cpu.encode_family(&none)?)?;
        gauge(
            encoder,
            "process_resident_memory_bytes",
            "Resident memory of the agent",
            &none,
            float(usage.resident_bytes),
        )?;
        gauge(
            encoder,
            "process_open_fds",
            "Open descriptors of the agent",
            &none,
            float(usage.open_fds),
        )?;
        gauge(
            encoder,
            "orb8_kernel_map_memory_bytes",
            "Kernel memory of the probes' maps",
            &none,
            float(usage.kernel_map_bytes),
        )?;
        gauge(
            encoder,
            "orb8_tracked_flows",
            "Flows in the agent's table",
            &none,
            float(self.snapshot.flows),
        )?;
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        gauge(encoder, "orb8_build_info", "1, labelled with the agent's version", &build, 1.0)
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &[(&str, &str)],
    value: u64,
) -> std::fmt::Result {
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    ConstCounter::new(value).encode(family.encode_family(&labels)?)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &[(&str, &str)],
    value: f64,
) -> std::fmt::Result {
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    ConstGauge::new(value).encode(family.encode_family(&labels)?)
}

fn ratio(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let share = part as f64 / whole.max(1) as f64;
    share
}
