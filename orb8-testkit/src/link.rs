//! Interfaces of the node: their counters, and bare veth pairs.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::netns::Netns;

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

/// What `ip -j -s link show` says about one interface, as far as it is read here.
#[derive(Deserialize)]
pub(crate) struct LinkReport {
    pub(crate) ifindex: u32,
    stats64: Option<Stats>,
    /// With `-d` only.
    #[serde(default)]
    linkinfo: LinkInfo,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LinkInfo {
    info_slave_data: BridgePort,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BridgePort {
    state: String,
}

#[derive(Deserialize)]
struct Stats {
    rx: Direction,
    tx: Direction,
}

#[derive(Deserialize)]
struct Direction {
    bytes: u64,
    packets: u64,
    dropped: u64,
}

impl LinkCounters {
    pub(crate) fn read(netns: &Netns, ifname: &str) -> Result<Self> {
        let report = netns.ip(&["-j", "-s", "-s"], &format!("link show dev {ifname}"))?;
        let stats =
            parse_report(&report)?.stats64.with_context(|| format!("no stats64 in {report}"))?;
        Ok(Self {
            rx_bytes: stats.rx.bytes,
            rx_packets: stats.rx.packets,
            rx_dropped: stats.rx.dropped,
            tx_bytes: stats.tx.bytes,
            tx_packets: stats.tx.packets,
            tx_dropped: stats.tx.dropped,
        })
    }
}

/// Waits until the bridge forwards from and to this port, and returns its index.
///
/// The kernel hears of a carrier by a work queue that needs its one lock for interfaces. Before that it drops what is
/// sent to the port, and a lost ARP request costs a second.
pub(crate) fn await_forwarding(netns: &Netns, ifname: &str) -> Result<u32> {
    let deadline = Instant::now() + FORWARDING_LIMIT;
    loop {
        let text = netns.ip(&["-j", "-d"], &format!("link show dev {ifname}"))?;
        let report = parse_report(&text)?;
        if report.linkinfo.info_slave_data.state == "forwarding" {
            return Ok(report.ifindex);
        }
        ensure!(Instant::now() < deadline, "not forwarding after {FORWARDING_LIMIT:?}: {text}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The first interface of an `ip -j link show`.
pub(crate) fn parse_report(json: &str) -> Result<LinkReport> {
    let links: Vec<LinkReport> = serde_json::from_str(json)
        .with_context(|| format!("not an interface of ip -j: {json:?}"))?;
    links.into_iter().next().context("ip showed no interface")
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
        let batch = format!(
            "link add {name} up type veth peer name {name}p\nlink set {name}p up\nlink show dev {name}"
        );
        let ifindex = parse_report(&netns.ip(&["-j"], &batch)?)?.ifindex;
        Ok(Self { netns, name: name.to_owned(), ifindex })
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
        let _ = self.netns.ip(&[], &format!("link del {}", self.name));
    }
}
