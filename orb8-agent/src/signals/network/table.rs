//! The agent's side of the flow table: what was taken from each flow so far, so that every packet
//! is taken once, whether the tick or an event tells of it first.
//!
//! Kernel counters only grow while an entry lives, and `first_ns` tells two lives of one key apart.
//! So what is new is always "the total now, less what was taken", and a late or repeated total adds
//! nothing.

use indexmap::{IndexMap, map::Entry};
use orb8_common::network::{Counts, FlowStats};

use super::{
    facing::Facing,
    interfaces::Serial,
    maps::{FlowId, add, is_zero, minus},
    opening::Opening,
};
use crate::{
    aggregator::{SliceNumber, Window, slice_of},
    enricher::{AttributedBy, Attribution},
};

/// A flow on an interface of this run. Interface indices are used again, serials never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    id: FlowId,
    /// 0: the flow of now. Others were of a container that is gone.
    former: u8,
}

impl FlowKey {
    pub(super) const fn new(mut id: FlowId, serial: Serial) -> Self {
        id.key.ifindex = serial.0;
        Self { id, former: 0 }
    }

    pub(super) const fn serial(&self) -> Serial {
        Serial(self.id.key.ifindex)
    }

    pub(super) const fn id(&self) -> &FlowId {
        &self.id
    }

    pub(super) const fn reverse(&self) -> Self {
        Self { id: self.id.reverse(), former: self.former }
    }
}

/// Counters of one slice of time, small because there are many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SliceCounts {
    pub(super) bytes: u64,
    /// Enough for 286 million packets a second over a slice of 15 s.
    pub(super) packets: u32,
    pub(super) extra_segments: u32,
}

impl std::ops::AddAssign for SliceCounts {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.packets = self.packets.saturating_add(other.packets);
        self.extra_segments = self.extra_segments.saturating_add(other.extra_segments);
    }
}

/// Why a flow's last record is its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Fin,
    Rst,
    Idle,
    /// The container that sent, or the one that it was sent to, is gone.
    OwnerGone,
    InterfaceGone,
}

impl End {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Fin => "fin",
            Self::Rst => "rst",
            Self::Idle => "idle",
            Self::OwnerGone => "owner_gone",
            Self::InterfaceGone => "interface_gone",
        }
    }
}

/// One direction of one conversation on one interface.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    taken: Counts,
    /// Taken and not yet given to an owner.
    pub(super) unsettled: Counts,
    /// Nanoseconds since boot.
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    pub(super) cgroup_id: u64,
    pub(super) window: Window<SliceCounts>,
    pub(super) attribution: Attribution,
    /// When the attribution was made, in the task's count of changed facts.
    pub(super) epoch: u32,
    /// How often its container was looked for.
    pub(super) tries: u8,
    pub(super) opening: Opening,
    pub(super) facing: Facing,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    /// Its first record was emitted.
    pub(super) started: bool,
    pub(super) end: Option<End>,
    touched: bool,
}

impl Flow {
    fn new(first_ns: u64) -> Self {
        Self {
            taken: Counts::default(),
            unsettled: Counts::default(),
            first_ns,
            last_ns: first_ns,
            cgroup_id: 0,
            window: Window::default(),
            attribution: Attribution { identity: None, by: AttributedBy::None },
            epoch: 0,
            tries: 0,
            opening: Opening::default(),
            facing: Facing::default(),
            syn: false,
            fin: false,
            rst: false,
            started: false,
            end: None,
            touched: false,
        }
    }

    /// Its last record was told.
    fn is_over(&self) -> bool {
        self.end.is_some() && !self.touched
    }

    /// Whether `stats` begin a new life of this key that is not the same container's.
    fn was_anothers(&self, stats: &FlowStats) -> bool {
        stats.first_ns > self.first_ns
            && self.is_over()
            && (self.end == Some(End::OwnerGone) || self.cgroup_id != stats.cgroup_id)
    }

    /// The same key begins a new life in the kernel.
    fn reborn(&mut self, first_ns: u64) {
        let window = std::mem::take(&mut self.window);
        // What is unsettled belongs to the interface's owner, whichever life it came from.
        let (unsettled, touched) = (self.unsettled, self.touched);
        *self = Self { window, unsettled, touched, ..Self::new(first_ns) };
    }
}

/// All flows that are tracked or still within the window.
pub(super) struct FlowTable {
    flows: IndexMap<FlowKey, Flow>,
    touched: Vec<FlowKey>,
}

impl FlowTable {
    pub(super) fn new() -> Self {
        Self { flows: IndexMap::new(), touched: Vec::new() }
    }

    /// Takes what is new in `stats`; `last_ns` is the time of the last packet. Totals of a life
    /// that ended before are late and add nothing.
    pub(super) fn observe(&mut self, key: FlowKey, stats: &FlowStats, last_ns: u64) -> Counts {
        let (flow, mut born) = match self.flows.entry(key) {
            Entry::Occupied(known) if known.get().was_anothers(stats) => {
                let former = known.swap_remove();
                self.keep_former(key, former);
                (self.flows.entry(key).or_insert(Flow::new(stats.first_ns)), true)
            }
            Entry::Occupied(known) => (known.into_mut(), false),
            Entry::Vacant(new) => (new.insert(Flow::new(stats.first_ns)), true),
        };
        if stats.first_ns < flow.first_ns {
            return Counts::default();
        }
        if stats.first_ns > flow.first_ns {
            flow.reborn(stats.first_ns);
            born = true;
        }
        let new = minus(&stats.counts, &flow.taken);
        let opens = stats.syn != 0 && !flow.opening.by_sender;
        flow.syn |= stats.syn != 0 || stats.syn_ack != 0;
        flow.fin |= stats.fin != 0;
        flow.rst |= stats.rst != 0;
        if stats.cgroup_id != 0 {
            flow.cgroup_id = stats.cgroup_id;
        }
        if is_zero(&new) {
            self.note_opening(&key, born, opens);
            return new;
        }
        add(&mut flow.taken, &new);
        add(&mut flow.unsettled, &new);
        flow.last_ns = flow.last_ns.max(last_ns);
        flow.end = None;
        flow.window.add(
            slice_of(flow.last_ns),
            SliceCounts {
                bytes: new.bytes,
                packets: u32::try_from(new.packets).unwrap_or(u32::MAX),
                extra_segments: u32::try_from(new.extra_segments).unwrap_or(u32::MAX),
            },
        );
        self.touch(key);
        self.note_opening(&key, born, opens);
        new
    }

    /// What a container that is gone had stays its own.
    fn keep_former(&mut self, key: FlowKey, flow: Flow) {
        // There are seconds between two of them, so there cannot be more within the window.
        let mut places = (1..=u8::MAX).map(|former| FlowKey { former, ..key });
        let free = places.find(|place| !self.flows.contains_key(place));
        self.flows.insert(free.unwrap_or(FlowKey { former: u8::MAX, ..key }), flow);
    }

    /// Marks a flow as ended; its last record is still to come.
    pub(super) fn end(&mut self, key: FlowKey, why: End) {
        if let Some(flow) = self.flows.get_mut(&key)
            && flow.end.is_none()
        {
            flow.end = Some(why);
            self.touch(key);
        }
    }

    fn touch(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.get_mut(&key)
            && !flow.touched
        {
            flow.touched = true;
            self.touched.push(key);
        }
    }

    /// Flows with something to tell. Those that must wait are given back with [`Self::postpone`].
    pub(super) fn take_touched(&mut self) -> Vec<FlowKey> {
        let touched = std::mem::take(&mut self.touched);
        for key in &touched {
            if let Some(flow) = self.flows.get_mut(key) {
                flow.touched = false;
            }
        }
        touched
    }

    pub(super) fn postpone(&mut self, key: FlowKey) {
        self.touch(key);
    }

    pub(super) fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        self.flows.get_mut(key)
    }

    pub(super) fn flows_mut(&mut self) -> impl Iterator<Item = &mut Flow> {
        self.flows.values_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&FlowKey, &Flow)> {
        self.flows.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Forgets the ended flows of interfaces that nobody knows any more; answers how many.
    pub(super) fn forget_of(&mut self, is_forgotten: impl Fn(Serial) -> bool) -> usize {
        let before = self.flows.len();
        self.flows.retain(|key, flow| flow.end.is_none() || !is_forgotten(key.serial()));
        before - self.flows.len()
    }

    /// Forgets ended flows that left the window, and, over `most`, the ended ones that were quiet
    /// longest; answers how many of those were still within the window.
    pub(super) fn forget(&mut self, oldest: SliceNumber, most: usize) -> usize {
        self.flows.retain(|_, flow| {
            !flow.is_over() || flow.window.newest().is_some_and(|newest| newest >= oldest)
        });
        let Some(over) = self.flows.len().checked_sub(most).filter(|over| *over > 0) else {
            return 0;
        };
        // An eighth more than needed: so this pass is rare, not one per new flow.
        let wanted = over + most / 8;
        let mut quiet: Vec<u64> =
            self.flows.values().filter(|f| f.is_over()).map(|f| f.last_ns).collect();
        if quiet.is_empty() {
            return 0;
        }
        let nth = wanted.min(quiet.len()) - 1;
        let (_, limit, _) = quiet.select_nth_unstable(nth);
        let limit = *limit;
        let before = self.flows.len();
        self.flows.retain(|_, flow| !flow.is_over() || flow.last_ns > limit);
        before - self.flows.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey::new(FlowId::example(6, port, 80), Serial(1))
    }

    fn stats(first_ns: u64, packets: u64) -> FlowStats {
        let counts = Counts { packets, bytes: packets * 100, extra_segments: 0 };
        FlowStats { counts, first_ns, ..FlowStats::default() }
    }

    #[test]
    fn a_total_is_taken_once_however_often_and_late_it_is_told() {
        let mut table = FlowTable::new();
        assert_eq!(table.observe(key(1), &stats(5, 3), 10).packets, 3);
        assert_eq!(table.observe(key(1), &stats(5, 3), 10).packets, 0);
        assert_eq!(table.observe(key(1), &stats(5, 9), 20).packets, 6);
        assert_eq!(table.observe(key(1), &stats(5, 4), 20).packets, 0);
        assert_eq!(table.get(&key(1)).unwrap().unsettled.packets, 9);
    }

    #[test]
    fn a_second_life_starts_from_nothing_and_the_first_ones_late_totals_add_nothing() {
        let mut table = FlowTable::new();
        table.observe(key(1), &stats(5, 3), 10);
        table.end(key(1), End::Idle);
        assert_eq!(table.observe(key(1), &stats(50, 2), 60).packets, 2);
        assert_eq!(table.observe(key(1), &stats(5, 30), 60).packets, 0);
        let flow = table.get(&key(1)).unwrap();
        assert_eq!((flow.unsettled.packets, flow.end), (5, None));
    }

    #[test]
    fn forgetting_takes_the_quiet_ended_flows_and_says_how_many_it_should_not_have() {
        let mut table = FlowTable::new();
        for port in 0..100 {
            table.observe(key(port), &stats(1 + u64::from(port), 1), 1 + u64::from(port));
            table.end(key(port), End::Idle);
        }
        table.take_touched();
        table.observe(key(200), &stats(1, 1), 1);
        assert_eq!(table.forget(0, 80), 21 + 10);
        assert!(table.get(&key(200)).is_some() && table.get(&key(99)).is_some());
        assert!(table.get(&key(0)).is_none());
        assert_eq!(table.forget(SliceNumber::MAX, 80), 0);
        assert_eq!(table.len(), 1, "only the flow that lives is left");
    }

    #[test]
    fn what_a_gone_container_sent_stays_its_own_when_the_ports_are_used_again() {
        let of = |first_ns, packets, cgroup_id| FlowStats { cgroup_id, ..stats(first_ns, packets) };
        let mut table = FlowTable::new();
        let bytes = |table: &FlowTable| {
            let mut all: Vec<_> = table
                .iter()
                .map(|(_, f)| (f.cgroup_id, f.window.sum(0, 9).unwrap().bytes))
                .collect();
            all.sort_unstable();
            all
        };
        let ends = |table: &mut FlowTable, why| {
            table.end(key(1), why);
            table.take_touched();
        };
        table.observe(key(1), &of(5, 3, 1), 10);
        ends(&mut table, End::Idle);
        // The same container goes on: one row.
        table.observe(key(1), &of(15, 1, 1), 20);
        assert_eq!(bytes(&table), [(1, 400)]);
        ends(&mut table, End::Idle);
        for (life, cgroup) in [(25, 2), (35, 3)] {
            table.observe(key(1), &of(life, 2, cgroup), life);
            ends(&mut table, End::OwnerGone);
        }
        assert_eq!(bytes(&table), [(1, 400), (2, 200), (3, 200)]);
        // What a container is sent comes from the same one as before.
        table.observe(key(1), &of(45, 5, 3), 50);
        assert_eq!(bytes(&table), [(1, 400), (2, 200), (3, 200), (3, 500)]);
        assert_eq!(table.get(&key(1)).unwrap().first_ns, 45);
        // Late news of an earlier life adds nothing.
        assert_eq!(table.observe(key(1), &of(35, 9, 3), 60).packets, 0);
        ends(&mut table, End::Idle);
        table.forget(SliceNumber::MAX, 10);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn flows_of_a_forgotten_interface_go_when_they_have_ended() {
        let mut table = FlowTable::new();
        let on = |serial, port| FlowKey::new(FlowId::example(6, port, 80), Serial(serial));
        for serial in [1, 2] {
            table.observe(on(serial, 1), &stats(1, 1), 1);
            table.observe(on(serial, 2), &stats(1, 1), 1);
            table.end(on(serial, 1), End::InterfaceGone);
        }
        assert_eq!(table.forget_of(|serial| serial == Serial(1)), 1);
        assert!(table.get(&on(1, 1)).is_none() && table.get(&on(1, 2)).is_some());
        assert_eq!(table.len(), 3);
    }

    proptest! {
        #[test]
        fn what_is_taken_is_the_sum_over_all_lives(
            lives in prop::collection::vec(prop::collection::vec(0_u64..50, 1..10), 1..6),
        ) {
            let mut table = FlowTable::new();
            let (mut taken, mut expected) = (0, 0);
            for (life, totals) in lives.iter().enumerate() {
                for total in totals {
                    taken += table.observe(key(1), &stats(life as u64 + 1, *total), 1).packets;
                }
                expected += totals.iter().max().unwrap();
            }
            prop_assert_eq!(taken, expected);
        }
    }
}
