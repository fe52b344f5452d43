//! Interfaces of one network namespace: all of them, or one.

use super::{NetlinkError, RouteSocket, attributes, number, text};

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

    /// Whether this is a veth whose other end is gone: it is about to go, too, and does not tell any
    /// more where that was, nor what it received.
    #[must_use]
    pub fn is_veth_without_peer(&self) -> bool {
        self.kind.as_deref() == Some("veth") && self.peer_index == Some(0)
    }

    /// Whether nothing differs but what it carried, and whether it is up.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let fixed = |link: &Self| (link.index, link.arphrd, link.peer_index, link.peer_nsid);
        fixed(self) == fixed(other) && (&self.name, &self.kind) == (&other.name, &other.kind)
    }

    /// Reads RTM_NEWLINK and RTM_DELLINK.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
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
    pub(super) socket: RouteSocket,
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
}

#[cfg(test)]
mod tests {
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

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Link::parse(&body);
            let _ = LinkCounters::parse(&body);
        }
    }
}
