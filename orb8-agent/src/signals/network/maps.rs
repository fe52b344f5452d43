//! The probe's maps as this slice reads them: flows, waiting runs, overflow, losses, clocks.

use std::{collections::HashMap, io, path::Path};

use aya::programs::ProgramError;
use orb8_common::{
    drops::Drop,
    network::{
        Counts, FlowKey4, FlowKey6, FlowStats, LastFlow4, LastFlow6, OverflowKey, Pulse,
        SocketSent, family, key_flags,
    },
};
use orb8_proto::MapStatus;

use crate::{
    config::Config,
    probe_loader::{CgroupAttachment, Hook, LoadError, Object, RawMap, Runner},
};

/// Which flow: the kernel's key in its wide form, with the address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowId {
    pub(super) key: FlowKey6,
    pub(super) family: u8,
}

impl FlowId {
    /// The hook at which the packets were seen.
    pub(super) const fn hook(&self) -> Hook {
        if self.key.flags & key_flags::HOOK_EGRESS != 0 { Hook::Egress } else { Hook::Ingress }
    }

    /// The other direction of the same conversation on the same interface.
    pub(super) const fn reverse(&self) -> Self {
        let FlowKey6 { src, dst, src_port, dst_port, ifindex, vlan, protocol, flags } = self.key;
        let key = FlowKey6 {
            src: dst,
            dst: src,
            src_port: dst_port,
            dst_port: src_port,
            ifindex,
            vlan,
            protocol,
            flags: flags ^ key_flags::HOOK_EGRESS,
        };
        Self { key, family: self.family }
    }
}

#[cfg(test)]
impl FlowId {
    /// For tests: from 1.0.0.0 to 2.0.0.0, as a little-endian machine reads them.
    pub(super) const fn example(protocol: u8, src_port: u16, dst_port: u16) -> Self {
        let key = FlowKey6 {
            src: [1, 0, 0, 0],
            dst: [2, 0, 0, 0],
            src_port,
            dst_port,
            ifindex: 7,
            vlan: 0,
            protocol,
            flags: 0,
        };
        Self { key, family: family::V4 }
    }
}

/// The kernel's count of events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KernelCounts {
    pub(super) events_seen: u64,
    pub(super) events_unwanted: u64,
    pub(super) ring_full: u64,
    pub(super) table_full: u64,
    pub(super) uncounted: u64,
}

/// The loaded probe and its maps.
pub(super) struct Probe {
    /// Until it is given to whoever attaches.
    object: Option<Object>,
    clocks: Runner,
    v4: RawMap,
    v6: RawMap,
    last_v4: RawMap,
    last_v6: RawMap,
    overflow: RawMap,
    drops: RawMap,
    pulse: RawMap,
    host_cgroups: RawMap,
    socket_sent: RawMap,
    watch_sockets: RawMap,
}

impl Probe {
    pub(super) fn load(config: &Config) -> Result<Self, LoadError> {
        let sizes = [
            ("FLOW_EVENTS", config.ring_buffer_size),
            ("FLOWS_V4", config.flow_table_size),
            ("FLOWS_V6", config.flow_table_size),
        ];
        let mut object = Object::load(orb8_probes::NETWORK_PROBE?, &sizes, &[])?;
        let (v4, v6) = (object.map("FLOWS_V4")?, object.map("FLOWS_V6")?);
        let (last_v4, last_v6) = (object.map("LAST_V4")?, object.map("LAST_V6")?);
        let (overflow, drops) = (object.map("OVERFLOW")?, object.map("DROPS")?);
        let pulse = object.map("PULSE")?;
        let host_cgroups = object.map("HOST_CGROUPS")?;
        let (socket_sent, watch_sockets) =
            (object.map("SOCKET_SENT")?, object.map("WATCH_SOCKETS")?);
        let clocks = object.runner("orb8_pulse")?;
        Ok(Self {
            object: Some(object),
            clocks,
            v4,
            v6,
            last_v4,
            last_v6,
            overflow,
            drops,
            pulse,
            host_cgroups,
            socket_sent,
            watch_sockets,
        })
    }

    /// The object, as long as nobody took it.
    pub(super) fn object(&mut self) -> Result<&mut Object, LoadError> {
        self.object.as_mut().ok_or_else(|| LoadError::Absent("object: it was given away".into()))
    }

    /// Gives the programs to whoever attaches them. The maps stay.
    pub(super) fn take_object(&mut self) -> Result<Object, LoadError> {
        self.object()?;
        self.object.take().ok_or_else(|| LoadError::Absent("object".into()))
    }

    /// Makes room for the packets of an interface that find the flow table full: before the first one
    /// can.
    pub(super) fn expect(&self, index: u32) -> io::Result<()> {
        for direction in [0, u32::from(key_flags::HOOK_EGRESS)] {
            self.overflow.set(&OverflowKey { ifindex: index, direction }, &Counts::default())?;
        }
        Ok(())
    }

    /// Attaches to all sockets in and below the cgroup of `dir`. True: the kernel tells in which
    /// network namespace a socket is, and those of other namespaces are left out.
    pub(super) fn attach_to_sockets(
        &mut self,
        dir: &Path,
    ) -> Result<(CgroupAttachment, bool), LoadError> {
        let (programs, tells_netns) = match self.object()?.run_at_socket("orb8_host_netns") {
            Ok(()) => (["orb8_host_ingress", "orb8_host_egress"], true),
            // Before Linux 6.15, programs at cgroups may not ask.
            Err(LoadError::Program { error: ProgramError::LoadError { .. }, .. }) => {
                (["orb8_host_ingress_listed", "orb8_host_egress_listed"], false)
            }
            Err(other) => return Err(other),
        };
        Ok((self.object()?.attach_to_cgroup(programs, dir)?, tells_netns))
    }

    /// Has the sockets of a cgroup counted under an account.
    pub(super) fn list_cgroup(&self, id: u64, account: u32) -> io::Result<()> {
        self.host_cgroups.set(&id, &account)
    }

    pub(super) fn unlist_cgroup(&self, id: u64) -> io::Result<()> {
        self.host_cgroups.remove(&id)
    }

    /// Has what pods' sockets send counted, or no longer.
    pub(super) fn watch_sockets(&self, watch: bool) -> io::Result<()> {
        self.watch_sockets.set(&0_u32, &u32::from(watch))
    }

    /// What the sockets of each cgroup sent to other network namespaces, while that was counted.
    pub(super) fn socket_sent(&mut self) -> io::Result<HashMap<u64, SocketSent>> {
        let mut sent = HashMap::new();
        self.socket_sent.for_each(|cgroup: u64, counts: SocketSent| {
            sent.insert(cgroup, counts);
        })?;
        Ok(sent)
    }

    pub(super) fn forget_socket_sent(&self, cgroup: u64) -> io::Result<()> {
        self.socket_sent.remove(&cgroup)
    }

    /// Every flow's entry, without what waits in the per-CPU slots.
    pub(super) fn each_flow(&mut self, mut visit: impl FnMut(FlowId, FlowStats)) -> io::Result<()> {
        self.v4.for_each(|key: FlowKey4, stats| {
            visit(FlowId { key: key.widen(), family: family::V4 }, stats);
        })?;
        self.v6.for_each(|key: FlowKey6, stats| {
            visit(FlowId { key, family: family::V6 }, stats);
        })
    }

    /// The flow's entry now.
    pub(super) fn flow(&self, id: &FlowId) -> io::Result<Option<FlowStats>> {
        if id.family == family::V4 { self.v4.get(&id.key.narrow()) } else { self.v6.get(&id.key) }
    }

    /// Removes an idle flow's entry and gives its last state.
    pub(super) fn take_flow(&self, id: &FlowId) -> io::Result<Option<FlowStats>> {
        if id.family == family::V4 { self.v4.take(&id.key.narrow()) } else { self.v6.take(&id.key) }
    }

    /// Flows that per-CPU slots are for, with their totals: entry and waiting together.
    ///
    /// The entry is read before the slots, so a run that is settled in between is seen in neither;
    /// the total is then early, never too high. The slots are read twice: only one that did not
    /// change hands in between is whole.
    pub(super) fn running_flows(&self) -> io::Result<Vec<(FlowId, FlowStats, Run)>> {
        let before = self.slots()?;
        let mut flows = HashMap::new();
        for slot in &before {
            if let Some(stats) = self.flow(&slot.id)? {
                flows.insert(slot.id, (stats, Run::Settled));
            }
        }
        for (slot, first) in self.slots()?.iter().zip(&before) {
            let whole =
                slot.settled == slot.opened && (slot.opened, slot.id) == (first.opened, first.id);
            for id in [slot.id, first.id] {
                let Some((stats, run)) = flows.get_mut(&id) else { continue };
                if !whole {
                    *run = Run::Torn;
                } else if !is_zero(&slot.pending) && slot.life == stats.first_ns {
                    add(&mut stats.counts, &slot.pending);
                    stats.last_jiffies = stats.last_jiffies.max(slot.last_jiffies);
                    *run = (*run).max(Run::Waiting);
                }
                if slot.id == first.id {
                    break;
                }
            }
        }
        Ok(flows.into_iter().map(|(id, (stats, run))| (id, stats, run)).collect())
    }

    fn slots(&self) -> io::Result<Vec<Slot>> {
        let mut slots = Vec::new();
        for direction in 0..2 {
            for last in self.last_v4.get_per_cpu::<LastFlow4>(direction)? {
                slots.push(Slot {
                    id: FlowId { key: last.key.widen(), family: family::V4 },
                    pending: last.pending,
                    life: last.life,
                    last_jiffies: last.last_jiffies,
                    opened: last.opened,
                    settled: last.settled,
                });
            }
            for last in self.last_v6.get_per_cpu::<LastFlow6>(direction)? {
                slots.push(Slot {
                    id: FlowId { key: last.key, family: family::V6 },
                    pending: last.pending,
                    life: last.life,
                    last_jiffies: last.last_jiffies,
                    opened: last.opened,
                    settled: last.settled,
                });
            }
        }
        Ok(slots)
    }

    /// Packets without a flow of their own, at both hooks of every interface that has any: ingress,
    /// egress.
    pub(super) fn overflows(&mut self) -> io::Result<HashMap<u32, [Counts; 2]>> {
        let mut all: HashMap<u32, [Counts; 2]> = HashMap::new();
        self.overflow.for_each(|key: OverflowKey, counts: Counts| {
            if !is_zero(&counts) {
                let egress = key.direction == u32::from(key_flags::HOOK_EGRESS);
                all.entry(key.ifindex).or_default()[usize::from(egress)] = counts;
            }
        })?;
        Ok(all)
    }

    pub(super) fn forget_overflow(&self, index: u32) -> io::Result<()> {
        for direction in [0, u32::from(key_flags::HOOK_EGRESS)] {
            self.overflow.remove(&OverflowKey { ifindex: index, direction })?;
        }
        Ok(())
    }

    pub(super) fn counts(&self) -> io::Result<KernelCounts> {
        let sum = |slot: Drop| -> io::Result<u64> {
            Ok(self.drops.get_per_cpu::<u64>(slot as u32)?.iter().sum())
        };
        Ok(KernelCounts {
            events_seen: sum(Drop::EventsSeen)?,
            events_unwanted: sum(Drop::EventsUnwanted)?,
            ring_full: sum(Drop::RingFull)?,
            table_full: sum(Drop::FlowTableFull)?,
            uncounted: sum(Drop::Uncounted)?,
        })
    }

    pub(super) fn pulse(&mut self) -> Result<Pulse, LoadError> {
        let pulse = self.clocks.run().and_then(|()| self.pulse.get::<u32, Pulse>(&0));
        pulse
            .map(Option::unwrap_or_default)
            .map_err(|error| LoadError::MapIo { name: "PULSE".into(), error })
    }

    /// Fill of the maps, and their memory in the kernel.
    pub(super) fn fill(&mut self, ring: (u64, u64)) -> io::Result<(Vec<MapStatus>, u64)> {
        let status = |name: &str, kind: &str, entries, max_entries| MapStatus {
            name: name.into(),
            r#type: kind.into(),
            entries,
            max_entries,
        };
        let v4 = self.v4.count::<FlowKey4, FlowStats>()?;
        let v6 = self.v6.count::<FlowKey6, FlowStats>()?;
        let overflow = self.overflow.count::<OverflowKey, Counts>()?;
        let host_cgroups = self.host_cgroups.count::<u64, u32>()?;
        let sent = self.socket_sent.count::<u64, SocketSent>()?;
        let maps = [
            &self.v4,
            &self.v6,
            &self.last_v4,
            &self.last_v6,
            &self.overflow,
            &self.drops,
            &self.host_cgroups,
            &self.socket_sent,
        ];
        let memory = maps.iter().map(|map| map.memory()).sum::<u64>() + ring.1;
        let all = vec![
            status("FLOWS_V4", "hash", v4, u64::from(self.v4.max_entries())),
            status("FLOWS_V6", "hash", v6, u64::from(self.v6.max_entries())),
            status("OVERFLOW", "hash", overflow, u64::from(self.overflow.max_entries())),
            status(
                "HOST_CGROUPS",
                "hash",
                host_cgroups,
                u64::from(self.host_cgroups.max_entries()),
            ),
            status("SOCKET_SENT", "lru_hash", sent, u64::from(self.socket_sent.max_entries())),
            status("FLOW_EVENTS", "ringbuf", ring.0, ring.1),
        ];
        Ok((all, memory))
    }
}

/// What a CPU's slot holds for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Run {
    /// Nothing that its entry has not.
    Settled,
    /// Packets that its entry does not have yet.
    Waiting,
    /// It changed hands while it was read.
    Torn,
}

struct Slot {
    id: FlowId,
    pending: Counts,
    life: u64,
    last_jiffies: u64,
    opened: u64,
    settled: u64,
}

pub(super) const fn add(to: &mut Counts, more: &Counts) {
    to.packets += more.packets;
    to.bytes += more.bytes;
    to.extra_segments += more.extra_segments;
}

/// What `now` has and `then` has not; never less than nothing.
pub(super) const fn minus(now: &Counts, then: &Counts) -> Counts {
    Counts {
        packets: now.packets.saturating_sub(then.packets),
        bytes: now.bytes.saturating_sub(then.bytes),
        extra_segments: now.extra_segments.saturating_sub(then.extra_segments),
    }
}

pub(super) const fn is_zero(counts: &Counts) -> bool {
    counts.packets == 0 && counts.bytes == 0
}
