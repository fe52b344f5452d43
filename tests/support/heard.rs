//! What a subscriber hears.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Result, bail, ensure};
use orb8_proto::{
    Anomaly, Direction, Event, InterfaceStatus, LossReport, NetworkFlow, SyscallEvent, event,
};
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};

use crate::client::PATIENCE;

/// A trace that is being heard.
pub struct Trace {
    reader: JoinHandle<Result<Vec<Event>, Status>>,
    heard: Arc<AtomicU64>,
}

impl Trace {
    pub(crate) fn read(runtime: &Runtime, mut stream: Streaming<Event>) -> Self {
        let heard = Arc::new(AtomicU64::new(0));
        let so_far = Arc::clone(&heard);
        let reader = runtime.spawn(async move {
            let mut events = Vec::new();
            while let Some(event) = stream.next().await {
                events.push(event?);
                so_far.fetch_add(1, Relaxed);
            }
            Ok(events)
        });
        Self { reader, heard }
    }

    /// Events of all kinds so far.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    pub(crate) fn end(self, runtime: &Runtime) -> Result<Heard> {
        let events = runtime.block_on(async { tokio::time::timeout(PATIENCE, self.reader).await });
        let mut heard = Heard::default();
        for (at, event) in events???.into_iter().enumerate() {
            match event.event {
                Some(event::Event::NetworkFlow(flow)) => heard.flows.push(flow),
                Some(event::Event::Loss(report)) => heard.reports.push(report),
                Some(event::Event::NodeStatus(_)) => heard.began_with_status |= at == 0,
                Some(event::Event::Syscall(call)) => heard.syscalls.push(call),
                Some(event::Event::Anomaly(anomaly)) => heard.anomalies.push(anomaly),
                None => bail!("an event without content"),
            }
        }
        Ok(heard)
    }
}

/// What a subscriber heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// Records, in order.
    pub flows: Vec<NetworkFlow>,
    /// System calls, in order.
    pub syscalls: Vec<SyscallEvent>,
    /// Anomalies, in order.
    pub anomalies: Vec<Anomaly>,
    /// Loss reports, in order.
    pub reports: Vec<LossReport>,
    /// The first event told the node's state.
    pub began_with_status: bool,
}

/// Counters of an interface, read while nothing moved.
#[derive(Clone, Debug)]
pub struct Quiet {
    pub(crate) counters: InterfaceStatus,
    /// A time in the middle of the silence.
    pub(crate) within_ns: i64,
}

impl Deref for Quiet {
    type Target = InterfaceStatus;

    fn deref(&self) -> &InterfaceStatus {
        &self.counters
    }
}

/// Packets and bytes.
pub type Sum = (u64, u64);

impl Heard {
    /// The last event, which has to be a final loss report.
    #[must_use]
    pub fn last_report(&self) -> &LossReport {
        let last = self.reports.last().expect("a loss report");
        assert!(last.r#final, "{last:?}");
        last
    }

    /// Fails unless the records between two silences add up to what the kernel counted.
    pub fn assert_sums_to_kernel(&self, before: &Quiet, now: &Quiet) -> Result<()> {
        let sum = |direction| {
            let flows = self.flows.iter().filter(|f| {
                f.interface == now.name
                    && f.direction() == direction
                    && f.timestamp_ns < now.within_ns
            });
            flows.fold((0, 0), |sum: Sum, flow| (sum.0 + flow.packets, sum.1 + flow.bytes))
        };
        let kernel_sent = (
            now.kernel_ingress_packets - before.kernel_ingress_packets,
            now.kernel_ingress_bytes - before.kernel_ingress_bytes,
        );
        let kernel_received = (
            now.kernel_egress_packets - before.kernel_egress_packets,
            now.kernel_egress_bytes - before.kernel_egress_bytes,
        );
        let (sent, received) = (sum(Direction::Egress), sum(Direction::Ingress));
        ensure!(
            (sent, received) == (kernel_sent, kernel_received),
            "{}: records tell of {sent:?} sent and {received:?} received (packets, bytes), the \
             kernel of {kernel_sent:?} and {kernel_received:?}",
            now.name
        );
        Ok(())
    }
}
