//! Interfaces of the node: their counters, and bare veth pairs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::netns::Netns;
use crate::route::{PortState, Route};

/// How long a new port may take: milliseconds, unless the machine is overloaded.
const FORWARDING_LIMIT: Duration = Duration::from_secs(10);

/// What the kernel counted on one interface (`stats64`), seen from the host: `rx` of a pod's host-side veth is what the
/// pod sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Bytes received, link-layer headers included.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent, link-layer headers included.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets dropped instead of being sent.
    pub tx_dropped: u64,
}

impl LinkCounters {
    pub(crate) fn read(netns: &Netns, ifname: &str) -> Result<Self> {
        Ok(Route::open(netns)?.link(ifname)?.counters)
    }
}

/// Waits until the bridge forwards from and to this port.
///
/// The kernel hears of a carrier by a work queue that needs its one lock for interfaces. Before that it drops what is
/// sent to the port, and a lost ARP request costs a second.
pub(crate) fn await_forwarding(route: &mut Route, ifname: &str) -> Result<()> {
    let deadline = Instant::now() + FORWARDING_LIMIT;
    loop {
        let state = route.link(ifname)?;
        if state.port == PortState::Forwarding {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not forwarding after {FORWARDING_LIMIT:?}: {state:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A veth pair with both ends in the node, up, with no pod behind it. Dropping it removes the pair.
#[derive(Debug)]
pub struct Veth {
    netns: Netns,
    name: String,
    ifindex: u32,
}

impl Veth {
    pub(crate) fn add(netns: Netns, name: &str) -> Result<Self> {
        let mut route = Route::open(&netns)?;
        let peer = format!("{name}p");
        route.add_veth(name, (&peer, None), None, None)?;
        let ifindex = route.link(name)?.index;
        let veth = Self { netns, name: name.to_owned(), ifindex };
        route.set_up(&peer)?;
        Ok(veth)
    }

    /// Its name; the other end has a `p` after it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index in the node's namespace.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        // The node may be gone already, and the pair with it.
        let _ = Route::open(&self.netns).and_then(|mut route| route.delete_link(&self.name));
    }
}
