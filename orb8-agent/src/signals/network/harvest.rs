//! Taking what the kernel counted: events as they come, totals on the tick. Then removing what is
//! over.

use std::{
    collections::{HashMap, HashSet},
    io,
    time::Instant,
};

use orb8_common::network::{FlowStats, NetworkFlowEvent};

use super::{
    NAME,
    interfaces::{Interfaces, Serial},
    maps::{FlowId, Run, add, is_zero, minus},
    table::{End, FlowKey, FlowTable},
    task::Task,
};
use crate::{
    ledger::{Amount, LossPoint, Stage},
    probe_loader::{Hook, LoadError},
    status::State,
};

/// A closed connection's last acknowledgements come within this time, and so do the last packets of a
/// container that is gone.
const LINGER_NS: u64 = 2_000_000_000;
/// With the table nearly full, flows are idle sooner. Far above the few jiffies for which a CPU may
/// still count on an entry.
const IDLE_UNDER_PRESSURE_NS: u64 = 5_000_000_000;
/// Events per drain, so that a storm of them cannot keep the task from its other duties.
const DRAIN: usize = 65_536;

impl Task {
    /// Life-cycle events: the flows in them have news.
    pub(super) fn drain(&mut self) -> usize {
        let Self { events, interfaces, table, .. } = self;
        events.drain(DRAIN, |event: NetworkFlowEvent| {
            let id = FlowId { key: event.key, family: event.family };
            take(interfaces, table, id, &event.stats, event.timestamp_ns);
        })
    }

    /// Totals: the flows' entries, the runs that wait, the overflow. Then removes what is over.
    pub(super) fn harvest(&mut self) {
        if let Err(error) = self.try_harvest() {
            let reason = format!("the flow table cannot be read: {error}");
            self.context.status.set(NAME, State::Failed(reason));
        }
    }

    fn try_harvest(&mut self) -> Result<(), LoadError> {
        let pulse = self.probe.pulse()?;
        self.ring_pending = pulse.ring_pending;
        self.clock.advance(pulse);
        let failed = |error| LoadError::MapIo { name: "FLOWS".into(), error };
        let mut over = Vec::new();
        let mut in_kernel = 0;
        let mut torn = false;
        {
            let retiring: HashSet<u32> = self.retiring.iter().map(|serial| serial.0).collect();
            let limits = self.idle_limits();
            let owners_gone = self.context.cgroups.gone();
            let Self { probe, interfaces, table, clock, .. } = self;
            let now = clock.now_ns();
            probe
                .each_flow(|id, stats| {
                    in_kernel += 1;
                    let last_ns = clock.boot_ns(stats.last_jiffies);
                    let serial = take(interfaces, table, id, &stats, last_ns);
                    let gone = serial.is_none_or(|serial| retiring.contains(&serial.0));
                    let quiet_ns = now.saturating_sub(last_ns);
                    let end = if gone {
                        Some(End::InterfaceGone)
                    } else {
                        let key = serial.map(|serial| FlowKey::new(id, serial));
                        let owner_gone = || {
                            let answers = key.and_then(|key| table.get(&key.reverse()));
                            owners_gone.contains(&stats.cgroup_id)
                                || answers.is_some_and(|a| owners_gone.contains(&a.cgroup_id))
                        };
                        over_since(&stats, quiet_ns, limits, owner_gone)
                    };
                    if let Some(end) = end {
                        over.push((id, end));
                    }
                })
                .map_err(failed)?;
        }
        self.flows_in_kernel = in_kernel;
        let mut running = HashMap::new();
        for (id, stats, run) in self.probe.running_flows().map_err(failed)? {
            let last_ns = self.clock.boot_ns(stats.last_jiffies);
            take(&mut self.interfaces, &mut self.table, id, &stats, last_ns);
            running.insert(id, run);
        }
        for (id, end) in over {
            match running.get(&id).copied().unwrap_or(Run::Settled) {
                Run::Settled => self.remove(id, end).map_err(failed)?,
                // No more packets come by an interface or of a container that is gone, so what waits
                // was just taken. The probe will find no entry to add it to, or one of a later life,
                // and let it be.
                Run::Waiting if matches!(end, End::InterfaceGone | End::OwnerGone) => {
                    self.remove(id, end).map_err(failed)?
                }
                Run::Waiting => {}
                Run::Torn => torn = true,
            }
        }
        self.take_overflow().map_err(failed)?;
        if !torn {
            self.retire().map_err(failed)?;
        }
        self.count_kernel_losses().map_err(failed)
    }

    fn idle_limits(&self) -> (u64, u64) {
        let idle = u64::try_from(self.context.config.flow_idle.as_nanos()).unwrap_or(u64::MAX);
        let full = self.flows_in_kernel * 5 > self.context.config.flow_table_size as usize * 4;
        (LINGER_NS, if full { idle.min(IDLE_UNDER_PRESSURE_NS) } else { idle })
    }

    fn remove(&mut self, id: FlowId, end: End) -> io::Result<()> {
        let Some(stats) = self.probe.take_flow(&id)? else { return Ok(()) };
        let last_ns = self.clock.boot_ns(stats.last_jiffies);
        match take(&mut self.interfaces, &mut self.table, id, &stats, last_ns) {
            Some(serial) => self.table.end(FlowKey::new(id, serial), end),
            // Nobody's any more: it should have been taken before its interface was forgotten.
            None => self.lose(Stage::Collect, "unknown_interface", 0, stats.counts.packets),
        }
        Ok(())
    }

    fn take_overflow(&mut self) -> io::Result<()> {
        for (index, totals) in self.probe.overflows()? {
            let Some(serial) = self.interfaces.serial(index) else { continue };
            for (at, hook) in [Hook::Ingress, Hook::Egress].into_iter().enumerate() {
                let Some(interface) = self.interfaces.get_mut(serial) else { continue };
                let new = minus(&totals[at], &interface.overflow_taken[at]);
                if is_zero(&new) {
                    continue;
                }
                interface.overflow_taken[at] = totals[at];
                add(&mut interface.totals[at], &new);
                self.book_overflow(serial, hook, new);
            }
        }
        Ok(())
    }

    fn count_kernel_losses(&mut self) -> io::Result<()> {
        self.kernel = self.probe.counts()?;
        let stands_at = |reason, records, packets| {
            let point = LossPoint { signal: NAME, stage: Stage::Kernel, reason };
            self.context.ledger.stands_at(point, Amount { records, packets, calls: 0 });
        };
        stands_at("ring_full", self.kernel.ring_full, 0);
        stands_at("flow_table_full", 0, self.kernel.table_full);
        stands_at("uncounted", 0, self.kernel.uncounted);
        Ok(())
    }

    /// Interfaces that are gone and whose flows were just removed make room for others.
    fn retire(&mut self) -> io::Result<()> {
        for serial in std::mem::take(&mut self.retiring) {
            if let Some(index) = self.interfaces.get(serial).map(|i| i.index) {
                self.probe.forget_overflow(index)?;
            }
            self.interfaces.gone(serial, Instant::now());
        }
        Ok(())
    }
}

/// Books a flow's total as far as it is new; `None` if its interface is not known.
fn take(
    interfaces: &mut Interfaces,
    table: &mut FlowTable,
    id: FlowId,
    stats: &FlowStats,
    last_ns: u64,
) -> Option<Serial> {
    let serial = interfaces.serial(id.key.ifindex)?;
    let new = table.observe(FlowKey::new(id, serial), stats, last_ns);
    if let Some(interface) = interfaces.get_mut(serial) {
        add(&mut interface.totals[usize::from(id.hook() == Hook::Egress)], &new);
    }
    Some(serial)
}

/// Why a flow that was quiet for `quiet_ns` is over, if it is.
fn over_since(
    stats: &FlowStats,
    quiet_ns: u64,
    (linger, idle): (u64, u64),
    owner_gone: impl Fn() -> bool,
) -> Option<End> {
    let lingers = quiet_ns <= linger;
    if !lingers && stats.rst != 0 {
        Some(End::Rst)
    } else if !lingers && stats.fin != 0 {
        Some(End::Fin)
    } else if quiet_ns > idle {
        Some(End::Idle)
    } else {
        (!lingers && owner_gone()).then_some(End::OwnerGone)
    }
}
