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
use orb8_proto::{Loss, PodSource, PodSourceState, SignalState, SignalStatus, Usage};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use tokio_util::sync::CancellationToken;

use crate::{api_server::Api, signals::Snapshot};

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
    let mut signals = api.signals.snapshots().await;
    let usage =
        orb8_metrics::process::now(signals.iter().map(|(_, snapshot)| snapshot.map_bytes).sum());
    let mut registry = Registry::default();
    for (_, snapshot) in &mut signals {
        if let Some(metrics) = snapshot.metrics.take() {
            registry.register_collector(metrics);
        }
    }
    let source = api.pods.source();
    // Where there is no other, the runtime is the source itself.
    let second = api.pods.runtime_source().filter(|second| second.kind != source.kind);
    let sources = [Some(source), second].into_iter().flatten();
    let scrape = Scrape {
        losses: api.ledger.losses(),
        signals,
        usage,
        states: api.status.signals(),
        sources: sources.filter(|source| !source.kind.is_empty()).collect(),
    };
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
    signals: Vec<(&'static str, Snapshot)>,
    losses: Vec<Loss>,
    usage: Usage,
    states: Vec<SignalStatus>,
    sources: Vec<PodSource>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.losses(&mut encoder)?;
        self.rings(&mut encoder)?;
        self.events(&mut encoder)?;
        self.maps(&mut encoder)?;
        self.state(&mut encoder)?;
        self.own(&mut encoder)
    }
}

impl Scrape {
    fn losses(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        type Of = fn(&Loss) -> u64;
        let families: [(&str, &str, Of); 3] = [
            ("orb8_lost_records", "Event or trace records that were not delivered", |l| l.records),
            ("orb8_undetailed_packets", "Packets that are in the totals without detail", |l| {
                l.packets
            }),
            ("orb8_unattributed_calls", "System calls that are in the totals, but nobody's", |l| {
                l.calls
            }),
        ];
        for (name, help, of) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
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

    fn rings(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let rings = || self.signals.iter().filter_map(|(name, s)| Some((*name, s.ring?)));
        let mut drops = encoder.encode_descriptor(
            "orb8_ring_buffer_drops",
            "Events refused by a full ring",
            None,
            MetricType::Counter,
        )?;
        for (signal, (ring, ..)) in rings() {
            let lost = self
                .losses
                .iter()
                .filter(|l| l.signal == signal && l.stage == "kernel" && l.reason == "ring_full");
            let lost: u64 = lost.map(|loss| loss.records).sum();
            ConstCounter::new(lost).encode(drops.encode_family(&[("ring", ring)])?)?;
        }
        let mut use_of = encoder.encode_descriptor(
            "orb8_ring_buffer_utilization",
            "Share of the ring that is in use",
            None,
            MetricType::Gauge,
        )?;
        for (_, (ring, used, size)) in rings() {
            ConstGauge::new(ratio(used, size)).encode(use_of.encode_family(&[("ring", ring)])?)?;
        }
        Ok(())
    }

    fn events(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        type Of = fn(&Snapshot) -> u64;
        let families: [(&str, &str, Of); 3] = [
            ("orb8_events_seen", "Events that the probe wanted to emit", |s| s.events_seen),
            (
                "orb8_events_unwanted",
                "Events that the probe did not emit because nobody listens to that pod",
                |s| s.events_unwanted,
            ),
            ("orb8_events_delivered", "Events that reached the agent", |s| s.events_delivered),
        ];
        for (name, help, of) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (signal, snapshot) in &self.signals {
                let labels = [("signal", *signal)];
                ConstCounter::new(of(snapshot)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn maps(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut family = encoder.encode_descriptor(
            "orb8_map_entries_ratio",
            "Share of a kernel map that is in use",
            None,
            MetricType::Gauge,
        )?;
        for (signal, map) in self.signals.iter().flat_map(|(n, s)| s.maps.iter().map(|m| (*n, m))) {
            let labels = [("signal", signal), ("map", map.name.as_str())];
            ConstGauge::new(ratio(map.entries, map.max_entries))
                .encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn state(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let gauge = MetricType::Gauge;
        let mut family = encoder.encode_descriptor(
            "orb8_signal_working",
            "1 while the signal is at work, if only in part; 0 while it has failed",
            None,
            gauge,
        )?;
        for signal in &self.states {
            let working = match signal.state() {
                SignalState::Active | SignalState::Degraded => 1.0,
                SignalState::Failed => 0.0,
                // What was switched off, or cannot be here, is not missed.
                _ => continue,
            };
            let labels = [("signal", signal.name.as_str())];
            ConstGauge::new(working).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "orb8_pod_source_connected",
            "1 while changes of pods are told at once, or come from a file; 0 while they are not",
            None,
            gauge,
        )?;
        for source in &self.sources {
            let connected =
                matches!(source.state(), PodSourceState::Connected | PodSourceState::Static);
            let labels = [("source", source.kind.as_str())];
            ConstGauge::new(f64::from(u8::from(connected)))
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
            MetricType::Counter,
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
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        gauge(encoder, "orb8_build_info", "1, labelled with the agent's version", &build, 1.0)
    }
}

/// A family of one counter.
pub(crate) fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &[(&str, &str)],
    value: u64,
) -> std::fmt::Result {
    let kind = MetricType::Counter;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    ConstCounter::new(value).encode(family.encode_family(&labels)?)
}

/// A family of one gauge.
pub(crate) fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &[(&str, &str)],
    value: f64,
) -> std::fmt::Result {
    let kind = MetricType::Gauge;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    ConstGauge::new(value).encode(family.encode_family(&labels)?)
}

fn ratio(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let share = part as f64 / whole.max(1) as f64;
    share
}
