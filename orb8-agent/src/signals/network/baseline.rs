//! Where the kernel's counters of an interface stood when ours began.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{give::Last, interfaces::Serial, task::Task};
use crate::netlink::links::LinkCounters;

/// Questions to the kernel about interfaces that may take long are this far apart.
const BETWEEN_BASELINES: Duration = Duration::from_millis(250);

/// Moments at which the kernel's and our counters are compared for a start. On an interface that is
/// never quiet the comparison stays off by what passed in between, and says so.
const BASELINE_ATTEMPTS: usize = 5;

impl Task {
    /// Finds the start of the kernel's counters for the next interface that lacks it, unless others
    /// are being attached to: the kernel would let us wait for those.
    pub(super) async fn find_baselines(&mut self) {
        let now = Instant::now();
        let recent = |at: Instant| now.saturating_duration_since(at) < BETWEEN_BASELINES;
        if self.attacher.pending > 0
            || self.balanced.is_some_and(recent)
            || self.follows && self.attached_at.is_some_and(recent)
        {
            return;
        }
        if let Some(serial) = self.unbalanced.pop_front() {
            self.balanced = self.follows.then_some(now);
            self.find_baseline(serial).await;
        }
    }

    /// Packets passed while the interface was attached, so the kernel's counters then are not those
    /// from which ours count. They are found at a moment when nothing moves, if there is one.
    async fn find_baseline(&mut self, serial: Serial) {
        for _ in 0..BASELINE_ATTEMPTS {
            let Some(before) = self.kernel_counters(serial).await else { return };
            self.settle(Last::Nobody);
            let after = self.kernel_counters(serial).await;
            let Some(interface) = self.interfaces.get_mut(serial) else { return };
            let [ingress, egress] = interface.totals;
            interface.kernel_at_attach = LinkCounters {
                rx_packets: before.rx_packets.saturating_sub(ingress.packets),
                rx_bytes: before.rx_bytes.saturating_sub(ingress.bytes),
                tx_packets: before.tx_packets.saturating_sub(egress.packets),
                tx_bytes: before.tx_bytes.saturating_sub(egress.bytes),
            };
            if after == Some(before) {
                interface.baseline_is_exact = true;
                return;
            }
        }
        if let Some(early) = self.interfaces.get_mut(serial).and_then(|i| i.early.as_mut()) {
            early.baseline_is_final = true;
        }
    }

    /// The kernel's counters of an interface, if it is still there under its name.
    async fn kernel_counters(&mut self, serial: Serial) -> Option<LinkCounters> {
        let interface = self.interfaces.get(serial)?;
        if !interface.is_attached() {
            return None;
        }
        let (index, name) = (interface.index, Arc::clone(&interface.name));
        let now = self.links.get(index).await.ok()??;
        (now.name == *name).then_some(now.counters)
    }
}
