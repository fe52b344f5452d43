//! What the agent tells on its metrics port: its signals' own metrics, then those that all have.
//!
//! Every scrape builds its families from one snapshot: a pod that is gone leaves no series behind.

use std::{fmt, future::Future, io};

use orb8_metrics::{Families, Scrape, Source, Unit, one, process};
use orb8_proto::{Loss, PodSource, PodSourceState, SignalState, SignalStatus, Usage};
use tokio_util::sync::CancellationToken;

use crate::{api_server::Api, signals::Snapshot};

/// Serves the agent's metrics on a bound socket until `token` says stop.
pub(crate) fn serve(
    api: Api,
    listener: std::net::TcpListener,
    token: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Ok(orb8_metrics::serve(api, listener, token))
}

impl Source for Api {
    async fn scrape(&self) -> Box<dyn Scrape> {
        let signals = self.signals.snapshots().await;
        let usage = process::now(signals.iter().map(|(_, snapshot)| snapshot.map_bytes).sum());
        let source = self.pods.source();
        // Where there is no other, the runtime is the source itself.
        let second = self.pods.runtime_source().filter(|second| second.kind != source.kind);
        let sources = [Some(source), second].into_iter().flatten();
        Box::new(AgentMetrics {
            losses: self.ledger.losses(),
            signals,
            usage,
            states: self.status.signals(),
            sources: sources.filter(|source| !source.kind.is_empty()).collect(),
        })
    }

    fn ready(&self) -> Result<(), String> {
        if self.status.ready() {
            return Ok(());
        }
        let signals = self.status.signals().into_iter();
        Err(signals.map(|s| format!("{}: {}\n", s.name, s.reason)).collect())
    }
}

/// What one scrape tells.
#[derive(Debug)]
struct AgentMetrics {
    signals: Vec<(&'static str, Snapshot)>,
    losses: Vec<Loss>,
    usage: Usage,
    states: Vec<SignalStatus>,
    sources: Vec<PodSource>,
}

impl Scrape for AgentMetrics {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        for metrics in self.signals.iter().filter_map(|(_, s)| s.metrics.as_ref()) {
            metrics.write(families)?;
        }
        self.losses(families)?;
        self.rings(families)?;
        self.events(families)?;
        self.maps(families)?;
        self.state(families)?;
        self.own(families)
    }
}

impl AgentMetrics {
    fn losses(&self, families: &mut Families<'_>) -> fmt::Result {
        type Of = fn(&Loss) -> u64;
        let all: [(&str, &str, Of); 3] = [
            ("orb8_lost_records", "Event or trace records that were not delivered", |l| l.records),
            ("orb8_undetailed_packets", "Packets that are in the totals without detail", |l| {
                l.packets
            }),
            ("orb8_unattributed_calls", "System calls that are in the totals, but nobody's", |l| {
                l.calls
            }),
        ];
        for (name, help, of) in all {
            let series = self.losses.iter().filter(|loss| of(loss) > 0).map(|loss| {
                let labels = [
                    ("signal", loss.signal.as_str()),
                    ("stage", loss.stage.as_str()),
                    ("reason", loss.reason.as_str()),
                ];
                (labels, of(loss))
            });
            families.counter(name, help, None, series)?;
        }
        Ok(())
    }

    fn rings(&self, families: &mut Families<'_>) -> fmt::Result {
        let rings = || self.signals.iter().filter_map(|(name, s)| Some((*name, s.ring?)));
        let drops = rings().map(|(signal, (ring, ..))| {
            let lost = self
                .losses
                .iter()
                .filter(|l| l.signal == signal && l.stage == "kernel" && l.reason == "ring_full");
            ([("ring", ring)], lost.map(|loss| loss.records).sum::<u64>())
        });
        families.counter("orb8_ring_buffer_drops", "Events refused by a full ring", None, drops)?;
        let used = rings().map(|(_, (ring, used, size))| ([("ring", ring)], ratio(used, size)));
        let help = "Share of the ring that is in use";
        families.gauge("orb8_ring_buffer_utilization", help, None, used)
    }

    fn events(&self, families: &mut Families<'_>) -> fmt::Result {
        type Of = fn(&Snapshot) -> u64;
        let all: [(&str, &str, Of); 3] = [
            ("orb8_events_seen", "Events that the probe wanted to emit", |s| s.events_seen),
            (
                "orb8_events_unwanted",
                "Events that the probe did not emit because nobody listens to that pod",
                |s| s.events_unwanted,
            ),
            ("orb8_events_delivered", "Events that reached the agent", |s| s.events_delivered),
        ];
        for (name, help, of) in all {
            let series =
                self.signals.iter().map(|(signal, snapshot)| ([("signal", *signal)], of(snapshot)));
            families.counter(name, help, None, series)?;
        }
        Ok(())
    }

    fn maps(&self, families: &mut Families<'_>) -> fmt::Result {
        let maps = self.signals.iter().flat_map(|(n, s)| s.maps.iter().map(|m| (*n, m)));
        let series = maps.map(|(signal, map)| {
            ([("signal", signal), ("map", map.name.as_str())], ratio(map.entries, map.max_entries))
        });
        let help = "Share of a kernel map that is in use";
        families.gauge("orb8_map_entries_ratio", help, None, series)
    }

    fn state(&self, families: &mut Families<'_>) -> fmt::Result {
        let working = self.states.iter().filter_map(|signal| {
            let working = match signal.state() {
                SignalState::Active | SignalState::Degraded => 1.0,
                SignalState::Failed => 0.0,
                // What was switched off, or cannot be here, is not missed.
                _ => return None,
            };
            Some(([("signal", signal.name.as_str())], working))
        });
        let help = "1 while the signal is at work, if only in part; 0 while it has failed";
        families.gauge("orb8_signal_working", help, None, working)?;
        let connected = self.sources.iter().map(|source| {
            let connected =
                matches!(source.state(), PodSourceState::Connected | PodSourceState::Static);
            ([("source", source.kind.as_str())], f64::from(u8::from(connected)))
        });
        let help =
            "1 while changes of pods are told at once, or come from a file; 0 while they are not";
        families.gauge("orb8_pod_source_connected", help, None, connected)
    }

    fn own(&self, families: &mut Families<'_>) -> fmt::Result {
        families.process("the agent", &self.usage)?;
        let help = "Kernel memory of the probes' maps";
        let bytes = one(self.usage.kernel_map_bytes);
        families.gauge("orb8_kernel_map_memory", help, Some(&Unit::Bytes), bytes)?;
        let build = [([("version", env!("CARGO_PKG_VERSION"))], 1.0)];
        families.gauge("orb8_build_info", "1, labelled with the agent's version", None, build)
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let share = part as f64 / whole.max(1) as f64;
    share
}
