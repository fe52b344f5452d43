//! Interfaces of one network namespace: all of them, one of them, and every change.

use std::{io, time::Duration};

use futures_util::{Stream, stream};

use super::{Message, NetlinkError, RouteSocket, attributes, number, text};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index in this namespace. Indices are used again.
    pub index: u32,
    /// Its name, such as `eth0`.
    pub name: String,
    /// The driver's kind (`veth`, `bridge`, …); none for hardware and loopback.
    pub kind: Option<String>,
    /// The link layer (`ARPHRD_*`): 1 is Ethernet, 65534 none at all.
    pub arphrd: u16,
    /// Administratively up.
    pub up: bool,
    /// `IFLA_LINK`: the other end of a veth, by its index in its own namespace, or the device below
    /// this one.
    pub peer_index: Option<u32>,
    /// `IFLA_LINK_NETNSID`: the namespace of that other device, where it is not this one.
    pub peer_nsid: Option<i32>,
    /// What it carried so far.
    pub counters: LinkCounters,
}

/// The kernel's own counters of an interface (`IFLA_STATS64`), in packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Received.
    pub rx_packets: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Received.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_bytes: u64,
}

impl Link {
    /// Whether this is a veth whose other end is in another namespace, as a pod's is.
    #[must_use]
    pub fn host_side_of_pod(&self) -> bool {
        self.kind.as_deref() == Some("veth") && self.peer_nsid.is_some_and(|nsid| nsid >= 0)
    }

    /// Reads RTM_NEWLINK and RTM_DELLINK.
    fn parse(body: &[u8]) -> Option<Self> {
        // struct ifinfomsg: family, padding, type (u16), index (i32), flags (u32), change mask
        let index = i32::from_ne_bytes(number(body.get(4..)?)?);
        let flags = u32::from_ne_bytes(number(body.get(8..)?)?);
        let mut link = Self {
            index: u32::try_from(index).ok()?,
            name: String::new(),
            kind: None,
            arphrd: u16::from_ne_bytes(number(body.get(2..)?)?),
            up: flags & IFF_UP != 0,
            peer_index: None,
            peer_nsid: None,
            counters: LinkCounters::default(),
        };
        for (kind, value) in attributes(body.get(HEADER..)?) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_LINK => link.peer_index = number(value).map(u32::from_ne_bytes),
                IFLA_LINK_NETNSID => link.peer_nsid = number(value).map(i32::from_ne_bytes),
                IFLA_LINKINFO => {
                    let name = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                    link.kind = name.map(|(_, name)| text(name));
                }
                IFLA_STATS64 => link.counters = LinkCounters::parse(value).unwrap_or_default(),
                _ => {}
            }
        }
        Some(link)
    }
}

impl LinkCounters {
    /// The head of struct rtnl_link_stats64.
    fn parse(value: &[u8]) -> Option<Self> {
        let at = |n: usize| value.get(n * 8..).and_then(number).map(u64::from_ne_bytes);
        Some(Self { rx_packets: at(0)?, tx_packets: at(1)?, rx_bytes: at(2)?, tx_bytes: at(3)? })
    }
}

const HEADER: usize = 16;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;

/// A struct ifinfomsg that asks for this index; 0 asks for none in particular.
pub(super) fn header(index: u32) -> [u8; HEADER] {
    let mut body = [0; HEADER];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body
}

/// Asks the kernel about interfaces and routes.
pub struct Links {
    socket: RouteSocket,
}

impl Links {
    /// Asks in the network namespace of the calling thread, for ever. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = RouteSocket::open(0).map_err(|why| NetlinkError::new("open a socket", why))?;
        Ok(Self { socket })
    }

    /// Every interface.
    pub async fn snapshot(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answer = self.socket.dump("list interfaces", libc::RTM_GETLINK, &header(0)).await?;
        Ok(answer.iter().filter_map(|message| Link::parse(&message.body)).collect())
    }

    /// The interface with this index, or none.
    pub async fn get(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let what = format!("get interface {index}");
        match self.socket.call(&what, libc::RTM_GETLINK, &header(index)).await {
            Ok(answer) => Ok(answer.iter().find_map(|message| Link::parse(&message.body))),
            Err(why) if why.io().raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// The interfaces of the default routes of IPv4 and IPv6, the preferred ones first.
    pub async fn default_route_interfaces(&mut self) -> Result<Vec<u32>, NetlinkError> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut body = [0; ROUTE_HEADER];
            body[0] = u8::try_from(family).unwrap_or_default();
            let answer = match self.socket.dump("list routes", libc::RTM_GETROUTE, &body).await {
                Ok(answer) => answer,
                // A kernel without IPv6.
                Err(why) if why.io().raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
                Err(why) => return Err(why),
            };
            found
                .extend(answer.iter().filter_map(|message| default_route(&message.body)).flatten());
        }
        found.sort_by_key(|&(metric, _)| metric);
        let mut interfaces = Vec::new();
        for (_, index) in found {
            if !interfaces.contains(&index) {
                interfaces.push(index);
            }
        }
        Ok(interfaces)
    }
}

/// struct rtmsg.
const ROUTE_HEADER: usize = 12;
/// struct rtnexthop.
const NEXT_HOP: usize = 8;

/// The (metric, interface) pairs of a route, where it is a default route of the main table.
fn default_route(body: &[u8]) -> Option<Vec<(u32, u32)>> {
    let (header, rest) = body.split_at_checked(ROUTE_HEADER)?;
    let (prefix, mut table, kind) = (header[1], u32::from(header[4]), header[7]);
    let mut metric = 0;
    let mut interfaces = Vec::new();
    for (kind, value) in attributes(rest) {
        match kind {
            libc::RTA_TABLE => table = u32::from_ne_bytes(number(value)?),
            libc::RTA_PRIORITY => metric = u32::from_ne_bytes(number(value)?),
            libc::RTA_OIF => interfaces.push(u32::from_ne_bytes(number(value)?)),
            libc::RTA_MULTIPATH => interfaces.extend(next_hops(value)),
            _ => {}
        }
    }
    let wanted =
        prefix == 0 && kind == libc::RTN_UNICAST && table == u32::from(libc::RT_TABLE_MAIN);
    wanted.then(|| interfaces.into_iter().map(|index| (metric, index)).collect())
}

/// The interfaces of an array of struct rtnexthop: length (u16), flags, hops, interface (i32).
fn next_hops(mut bytes: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(number(bytes)?)).max(NEXT_HOP);
        let index = u32::from_ne_bytes(number(bytes.get(4..)?)?);
        bytes = bytes.get(super::aligned(length)..).unwrap_or_default();
        Some(index)
    })
}

/// A change of the interfaces of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// It is new, or something about it changed.
    Up(Link),
    /// It was removed, or moved to another namespace.
    Gone {
        /// Its index, free to be used again.
        index: u32,
        /// Its last name.
        name: String,
    },
    /// Changes were lost: only a new snapshot tells what is there.
    Resync,
}

/// RTNLGRP_LINK as a mask.
const LINK_GROUP: u32 = 1;
/// Holds the changes of about a thousand interfaces. When it is too small the kernel says so, and
/// the answer is [`LinkChange::Resync`].
const RECEIVE_BUFFER: usize = 4 << 20;
/// Between attempts to open a socket again.
const REOPEN_DELAY: Duration = Duration::from_secs(1);

/// Every change of the interfaces of a namespace, from now on. To miss nothing, open it before the
/// snapshot is taken. Changes queued in between are then reported although the snapshot has them.
pub struct LinkWatch {
    /// None after it broke.
    socket: Option<RouteSocket>,
    receive_buffer: usize,
    /// Received, not handed out yet; in reverse.
    pending: Vec<LinkChange>,
}

impl LinkWatch {
    /// Watches the network namespace of the calling thread. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::with_receive_buffer(RECEIVE_BUFFER)
    }

    fn with_receive_buffer(bytes: usize) -> Result<Self, NetlinkError> {
        let socket =
            subscribe(bytes).map_err(|why| NetlinkError::new("watch the interfaces", why))?;
        Ok(Self { socket: Some(socket), receive_buffer: bytes, pending: Vec::new() })
    }

    /// Waits for the next change. A socket that overran or broke is replaced by a new one, in the
    /// namespace of the thread that waits, and reported as [`LinkChange::Resync`]. Cancelling it loses
    /// nothing.
    pub async fn next(&mut self) -> LinkChange {
        loop {
            if let Some(change) = self.pending.pop() {
                return change;
            }
            let Some(socket) = &self.socket else {
                self.reopen().await;
                return LinkChange::Resync;
            };
            match socket.receive().await {
                Ok(messages) => {
                    self.pending.extend(messages.iter().rev().filter_map(change));
                }
                // The old queue is dropped with its socket: what is in it is older than the
                // snapshot that the consumer takes next, and its ends may be missing.
                Err(why) => {
                    tracing::warn!(error = %why, "changes of interfaces were lost, listing them again");
                    self.socket = None;
                }
            }
        }
    }

    /// The same as a stream without an end.
    pub fn into_stream(self) -> impl Stream<Item = LinkChange> + Send {
        stream::unfold(self, async |mut watch| Some((watch.next().await, watch)))
    }

    async fn reopen(&mut self) {
        loop {
            match subscribe(self.receive_buffer) {
                Ok(socket) => {
                    self.socket = Some(socket);
                    return;
                }
                Err(why) => {
                    tracing::warn!(error = %why, "cannot watch the interfaces, trying again");
                    tokio::time::sleep(REOPEN_DELAY).await;
                }
            }
        }
    }
}

fn subscribe(receive_buffer: usize) -> io::Result<RouteSocket> {
    let socket = RouteSocket::open(LINK_GROUP)?;
    socket.set_receive_buffer(receive_buffer)?;
    Ok(socket)
}

fn change(message: &Message) -> Option<LinkChange> {
    // Bridges announce their ports in the same group. A port that leaves its bridge is not gone.
    if message.body.first() != Some(&0) {
        return None;
    }
    let link = Link::parse(&message.body)?;
    match message.kind {
        libc::RTM_NEWLINK => Some(LinkChange::Up(link)),
        libc::RTM_DELLINK => Some(LinkChange::Gone { index: link.index, name: link.name }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::scratch::{Namespace, sh};

    async fn named(links: &mut Links, name: &str) -> Link {
        let all = links.snapshot().await.unwrap();
        all.into_iter().find(|link| link.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn a_snapshot_shows_kinds_peers_and_the_kernels_counters() {
        let (node, pod) = (Namespace::new(), Namespace::new());
        node.run(async || {
            sh(&format!(
                "ip link set lo up; ip link add br0 type bridge; \
                 ip link add a0 type veth peer name a1; ip link set a0 up; \
                 ip link add pod0 type veth peer name eth0 netns {}",
                pod.pid()
            ));
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..6 {
                socket.send_to(&[0; 58], socket.local_addr().unwrap()).unwrap();
            }
            let mut links = Links::open().unwrap();
            let lo = named(&mut links, "lo").await;
            assert_eq!(
                (lo.index, lo.arphrd, lo.up, &lo.kind),
                (1, libc::ARPHRD_LOOPBACK, true, &None)
            );
            let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let row = table.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
            let row: Vec<u64> = row.split_whitespace().map(|n| n.parse().unwrap()).collect();
            let LinkCounters { rx_packets, tx_packets, rx_bytes, tx_bytes } = lo.counters;
            assert_eq!(
                [rx_bytes, rx_packets, tx_bytes, tx_packets],
                [row[0], row[1], row[8], row[9]]
            );
            assert_eq!((tx_packets, tx_bytes), (6, 6 * 86));

            let bridge = named(&mut links, "br0").await;
            assert_eq!(
                (bridge.kind.as_deref(), bridge.up, bridge.arphrd),
                (Some("bridge"), false, 1)
            );
            let (a0, a1) = (named(&mut links, "a0").await, named(&mut links, "a1").await);
            assert_eq!((a0.peer_index, a0.peer_nsid), (Some(a1.index), None));
            let pod0 = named(&mut links, "pod0").await;
            assert!(
                pod0.host_side_of_pod() && !a0.host_side_of_pod() && !bridge.host_side_of_pod()
            );
            let eth0 = pod.run(async || named(&mut Links::open().unwrap(), "eth0").await);
            assert_eq!((pod0.peer_index, eth0.peer_index), (Some(eth0.index), Some(pod0.index)));

            assert_eq!(links.get(pod0.index).await.unwrap(), Some(pod0));
            assert_eq!(links.get(4_242).await.unwrap(), None);
        });
    }

    #[test]
    fn default_routes_are_found_in_both_families_the_preferred_first() {
        Namespace::new().run(async || {
            let mut links = Links::open().unwrap();
            assert_eq!(links.default_route_interfaces().await.unwrap(), [0; 0]);
            sh("for n in 0 1 2 3 4; do ip link add d$n type veth peer name e$n; \
                 ip link set d$n up; ip link set e$n up; done; \
                ip addr add 10.0.0.1/24 dev d0; ip addr add 10.0.1.1/24 dev d1; \
                ip addr add 10.0.2.1/24 dev d2; ip -6 addr add fd00::1/64 dev d3 nodad; \
                ip route add default via 10.0.0.2 metric 300; \
                ip route add default metric 200 nexthop via 10.0.1.2 nexthop via 10.0.2.2; \
                ip -6 route add default via fd00::2 metric 100; \
                ip route add 10.9.0.0/16 dev d4; ip route add default dev d4 table 77; \
                ip route add unreachable default metric 4000");
            let mut expected = Vec::new();
            for name in ["d3", "d1", "d2", "d0"] {
                expected.push(named(&mut links, name).await.index);
            }
            assert_eq!(links.default_route_interfaces().await.unwrap(), expected);
        });
    }

    #[test]
    fn every_change_is_reported_and_a_port_that_leaves_its_bridge_is_not_gone() {
        Namespace::new().run(async || {
            let watch = LinkWatch::open().unwrap();
            sh("ip link add br0 type bridge; ip link add v0 type veth peer name v1; \
                ip link set v0 master br0; ip link set v0 up; ip link set v0 nomaster; \
                ip link set v1 name w1; ip link add end type bridge; ip link del v0");
            let mut seen = Vec::new();
            let mut changes = std::pin::pin!(watch.into_stream());
            while !seen
                .iter()
                .any(|change| matches!(change, LinkChange::Gone { name, .. } if name == "w1"))
            {
                let wait = tokio::time::timeout(Duration::from_secs(5), changes.next());
                seen.push(wait.await.expect("w1 is gone").unwrap());
            }
            let end = seen
                .iter()
                .position(|change| matches!(change, LinkChange::Up(l) if l.name == "end"));
            let (before, after) = seen.split_at(end.expect("a new interface is reported"));
            assert!(
                !before.iter().any(|change| matches!(change, LinkChange::Gone { .. })),
                "{seen:?}"
            );
            assert!(
                before
                    .iter()
                    .any(|change| matches!(change, LinkChange::Up(l) if l.name == "v0" && l.up))
            );
            assert!(
                before.iter().any(|change| matches!(change, LinkChange::Up(l) if l.name == "w1"))
            );
            assert!(
                after
                    .iter()
                    .any(|change| matches!(change, LinkChange::Gone { name, .. } if name == "v0"))
            );
        });
    }

    #[test]
    fn lost_changes_ask_for_a_new_snapshot_and_the_watch_goes_on() {
        Namespace::new().run(async || {
            let mut watch = LinkWatch::with_receive_buffer(4_096).unwrap();
            sh("for i in $(seq 60); do echo link add d$i type bridge; done | ip -batch -");
            let soon = Duration::from_secs(5);
            let lost = async { while !matches!(watch.next().await, LinkChange::Resync) {} };
            tokio::time::timeout(soon, lost).await.expect("the overrun is reported");
            assert_eq!(Links::open().unwrap().snapshot().await.unwrap().len(), 61);
            sh("ip link add after type bridge");
            let next = tokio::time::timeout(soon, watch.next()).await.expect("it goes on");
            assert!(matches!(&next, LinkChange::Up(link) if link.name == "after"), "{next:?}");
        });
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(kind in 16u16..18, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = default_route(&body);
            let _ = next_hops(&body).count();
            let _ = LinkCounters::parse(&body);
            let _ = change(&Message { kind, flags: 0, sequence: 0, body });
        }
    }
}
