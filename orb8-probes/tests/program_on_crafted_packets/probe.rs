//! The loaded probe: packets go in by `BPF_PROG_TEST_RUN`, and what its maps say comes out.

use std::collections::HashMap;

use aya::{
    Ebpf, EbpfLoader,
    maps::{self, MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::{CgroupSkb, Program, SchedClassifier, TestRun, TestRunOptions},
};
use orb8_common::{
    Record,
    drops::Drop,
    network::{
        Counts, FlowKey4, FlowKey6, FlowStats, LastFlow4, LastFlow6, NetworkFlowEvent, Pulse,
    },
};

use crate::packets::Key;

/// Test runs happen on the loopback interface unless their context names another.
pub(crate) const IFINDEX: u32 = 1;
/// Bytes of an Ethernet header. A test run takes no packet that is shorter.
pub(crate) const SHORTEST: usize = 14;

const KEY4: usize = size_of::<FlowKey4>();
const KEY6: usize = size_of::<FlowKey6>();
const STATS: usize = size_of::<FlowStats>();
const LAST4: usize = size_of::<LastFlow4>();
const LAST6: usize = size_of::<LastFlow6>();

/// Whether a test run takes such a packet. Newer kernels refuse one that says to be IP right behind
/// its first 14 bytes and is too short for that.
pub(crate) fn runs(packet: &[u8]) -> bool {
    // A page, less what the kernel wants before and behind the packet.
    const LONGEST: usize = 3_500;
    let shortest = match packet.get(12..SHORTEST) {
        Some([0x08, 0x00]) => SHORTEST + 20,
        Some([0x86, 0xdd]) => SHORTEST + 40,
        _ => SHORTEST,
    };
    (shortest..=LONGEST).contains(&packet.len())
}

/// Sizes that a test asks for; the probe's own are dear to make, and more than most tests need.
pub(crate) struct Sizes {
    /// Entries of each flow table.
    pub(crate) flows: u32,
    /// Bytes of the event ring.
    pub(crate) ring: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { flows: 256, ring: 1 << 20 }
    }
}

/// One loaded copy of the object, with maps of its own.
pub(crate) struct Probe {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
}

impl Probe {
    pub(crate) fn load(sizes: &Sizes) -> Self {
        let object = orb8_probes::NETWORK_PROBE.unwrap_or_else(|missing| panic!("{missing}"));
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("FLOWS_V4", sizes.flows)
            .map_max_entries("FLOWS_V6", sizes.flows)
            .map_max_entries("FLOW_EVENTS", sizes.ring)
            .load(object)
            .unwrap_or_else(|e| panic!("{NEEDS}; loading said {e:?}"));
        for (name, program) in ebpf.programs_mut() {
            let loaded = match program {
                Program::SchedClassifier(program) => program.load(),
                // Only newer kernels tell a socket's network namespace; see `tells_netns`.
                Program::CgroupSkb(program) => match program.load() {
                    Err(e) if name.ends_with("_listed") => Err(e),
                    _ => Ok(()),
                },
                _ => panic!("{name} is of no kind that packets go through"),
            };
            loaded.unwrap_or_else(|e| panic!("{NEEDS}; loading {name} said {e:?}"));
        }
        let events = ebpf.take_map("FLOW_EVENTS").expect("the object has FLOW_EVENTS");
        Self { ebpf, events: events.try_into().expect("FLOW_EVENTS is a ring") }
    }

    /// Hands `packet` to `program` once.
    pub(crate) fn run(&self, program: &str, packet: &[u8]) {
        self.run_with(program, TestRunOptions { data_in: Some(packet), ..Default::default() });
    }

    /// Runs `program`, and sees to it that it leaves the verdict to others.
    pub(crate) fn run_with(&self, name: &str, options: TestRunOptions<'_>) {
        let length = options.data_in.map_or(0, <[u8]>::len);
        let program = self.ebpf.program(name).unwrap_or_else(|| panic!("no program {name}"));
        let program: &SchedClassifier = program.try_into().expect("all are classifiers");
        let result = program
            .test_run(options)
            .unwrap_or_else(|e| panic!("{name} on a packet of {length} bytes: {e:?}"));
        assert_eq!(result.return_value.cast_signed(), -1, "TCX_NEXT is all that {name} may say");
    }

    /// Hands `packet`, which begins with an Ethernet header that the program does not see, to a program
    /// at sockets, and sees to it that it lets the packet pass. The socket is this thread's.
    pub(crate) fn run_at_socket(&self, name: &str, packet: &[u8], repeat: u32) {
        let options = TestRunOptions { data_in: Some(packet), repeat, ..Default::default() };
        let program = self.at_socket(name);
        let result = program.test_run(options).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(result.return_value, 1, "{name} may not stop a packet");
    }

    /// Whether this kernel lets programs at sockets ask for the network namespace (6.15 or later).
    pub(crate) fn tells_netns(&self) -> bool {
        self.at_socket("orb8_host_ingress").fd().is_ok()
    }

    fn at_socket(&self, name: &str) -> &CgroupSkb {
        let program = self.ebpf.program(name).unwrap_or_else(|| panic!("no program {name}"));
        program.try_into().expect("a program at sockets")
    }

    /// Lists a cgroup, as the agent does.
    pub(crate) fn list_cgroup(&mut self, id: u64, account: u32) {
        let map = self.ebpf.map_mut("HOST_CGROUPS").expect("the object has HOST_CGROUPS");
        let mut map: maps::HashMap<_, u64, u32> = map.try_into().expect("a hash map");
        map.insert(id, account, 0).expect("room for a cgroup");
    }

    /// Has the probe take another network namespace for the agent's.
    pub(crate) fn leave_netns(&mut self) {
        let map = self.ebpf.map_mut("OWN_NETNS").expect("the object has OWN_NETNS");
        let mut map: maps::Array<_, u64> = map.try_into().expect("an array");
        let own = map.get(&0, 0).expect("one value");
        assert_ne!(own, 0, "the probe knows its namespace");
        map.set(0, own + 1, 0).expect("one value");
    }

    /// What every flow has had, taken from its entry and from the slots.
    pub(crate) fn flows(&self) -> HashMap<Key, Counts> {
        let mut flows =
            self.entries().into_iter().map(|(key, stats)| (key, stats.counts)).collect();
        for (key, pending) in self.waiting() {
            let flow: &mut Counts = HashMap::entry(&mut flows, key).or_default();
            flow.packets += pending.packets;
            flow.bytes += pending.bytes;
            flow.extra_segments += pending.extra_segments;
        }
        flows
    }

    /// The flow tables alone.
    pub(crate) fn entries(&self) -> HashMap<Key, FlowStats> {
        let v4 = self.table::<KEY4>("FLOWS_V4");
        let v6 = self.table::<KEY6>("FLOWS_V6");
        let v4 = v4.iter().map(|entry| entry.map(|(k, v)| (Key::V4(decode(&k)), decode(&v))));
        let v6 = v6.iter().map(|entry| entry.map(|(k, v)| (Key::V6(decode(&k)), decode(&v))));
        v4.chain(v6).collect::<Result<_, _>>().expect("reading the flow tables")
    }

    /// Packets that wait in the slots of all CPUs.
    pub(crate) fn waiting(&self) -> Vec<(Key, Counts)> {
        let mut found = Vec::new();
        for values in self.slots::<LAST4>("LAST_V4").iter() {
            for slot in values.expect("reading LAST_V4").iter().map(|s| decode::<LastFlow4>(s)) {
                assert_eq!(slot.opened, slot.settled, "no packet is under way");
                found.push((Key::V4(slot.key), slot.pending));
            }
        }
        for values in self.slots::<LAST6>("LAST_V6").iter() {
            for slot in values.expect("reading LAST_V6").iter().map(|s| decode::<LastFlow6>(s)) {
                assert_eq!(slot.opened, slot.settled, "no packet is under way");
                found.push((Key::V6(slot.key), slot.pending));
            }
        }
        found.retain(|(_, pending)| *pending != Counts::default());
        found
    }

    /// The slots of IPv6 flows, to be read while packets come.
    pub(crate) fn slots_v6(&self) -> PerCpuArray<&MapData, [u8; LAST6]> {
        self.slots("LAST_V6")
    }

    /// As [`Self::flows`], and leaves the maps as if nothing had been seen.
    pub(crate) fn take_flows(&mut self) -> HashMap<Key, Counts> {
        let flows = self.flows();
        for key in flows.keys() {
            self.remove(key);
        }
        self.zero_slots::<LAST4>("LAST_V4");
        self.zero_slots::<LAST6>("LAST_V6");
        flows
    }

    /// Takes a flow's entry away, as the agent does with idle ones.
    pub(crate) fn remove(&mut self, key: &Key) {
        match key {
            Key::V4(key) => self.table_mut::<KEY4>("FLOWS_V4").remove(&encode(key)),
            Key::V6(key) => self.table_mut::<KEY6>("FLOWS_V6").remove(&encode(key)),
        }
        .expect("there is such an entry");
    }

    /// Makes an overflow counter, as the agent does before it attaches.
    pub(crate) fn create_overflow(&mut self, direction: u32) {
        let map = self.ebpf.map_mut("OVERFLOW").expect("the object has OVERFLOW");
        let mut map: maps::HashMap<_, [u32; 2], [u64; 3]> = map.try_into().expect("a hash map");
        map.insert([IFINDEX, direction], [0; 3], 0).expect("room for a counter");
    }

    /// An overflow counter; zero where there is none.
    pub(crate) fn overflow(&self, direction: u32) -> Counts {
        self.overflow_of(IFINDEX, direction)
    }

    /// As [`Self::overflow`], of an interface or account of sockets.
    pub(crate) fn overflow_of(&self, ifindex: u32, direction: u32) -> Counts {
        let map = self.ebpf.map("OVERFLOW").expect("the object has OVERFLOW");
        let map: maps::HashMap<_, [u32; 2], [u64; 3]> = map.try_into().expect("a hash map");
        let [packets, bytes, extra_segments] =
            map.get(&[ifindex, direction], 0).unwrap_or_default();
        Counts { packets, bytes, extra_segments }
    }

    /// A slot of `DROPS`, over all CPUs.
    pub(crate) fn drops(&self, slot: Drop) -> u64 {
        let map = self.ebpf.map("DROPS").expect("the object has DROPS");
        let map: PerCpuArray<_, u64> = map.try_into().expect("a per-CPU array");
        map.get(&(slot as u32), 0).expect("a slot for every reason").iter().sum()
    }

    /// Everything that waits in the ring.
    pub(crate) fn take_events(&mut self) -> Vec<NetworkFlowEvent> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            assert_eq!(item.len(), size_of::<NetworkFlowEvent>());
            events.push(decode(&item));
        }
        events
    }

    /// What the last run of `orb8_pulse` wrote.
    pub(crate) fn pulse(&self) -> Pulse {
        let map = self.ebpf.map("PULSE").expect("the object has PULSE");
        let map: maps::Array<_, [u8; size_of::<Pulse>()]> = map.try_into().expect("an array");
        decode(&map.get(&0, 0).expect("one value"))
    }

    fn table<const K: usize>(&self, name: &str) -> maps::HashMap<&MapData, [u8; K], [u8; STATS]> {
        self.ebpf.map(name).and_then(|map| map.try_into().ok()).expect("a flow table")
    }

    fn table_mut<const K: usize>(
        &mut self,
        name: &str,
    ) -> maps::HashMap<&mut MapData, [u8; K], [u8; STATS]> {
        self.ebpf.map_mut(name).and_then(|map| map.try_into().ok()).expect("a flow table")
    }

    fn slots<const N: usize>(&self, name: &str) -> PerCpuArray<&MapData, [u8; N]> {
        self.ebpf.map(name).and_then(|map| map.try_into().ok()).expect("slots")
    }

    fn zero_slots<const N: usize>(&mut self, name: &str) {
        let cpus = aya::util::nr_cpus().expect("the number of CPUs");
        let map = self.ebpf.map_mut(name).expect("slots");
        let mut map: PerCpuArray<_, [u8; N]> = map.try_into().expect("a per-CPU array");
        for slot in 0..map.len() {
            let zero = PerCpuValues::try_from(vec![[0; N]; cpus]).expect("a value for each CPU");
            map.set(slot, zero, 0).expect("the slot is there");
        }
    }
}

const NEEDS: &str = "this test runs the real probe in the kernel, which takes root (CAP_BPF, \
                     CAP_NET_ADMIN, CAP_PERFMON) on a Linux with BPF";

fn decode<T: Record>(bytes: &[u8]) -> T {
    T::decode(bytes).expect("as many bytes as the record has")
}

fn encode<T: Record, const N: usize>(record: &T) -> [u8; N] {
    record.as_bytes().try_into().expect("as many bytes as the record has")
}
