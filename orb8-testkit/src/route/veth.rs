//! A pod's interface: both ends of a veth, its place at the bridge, its addresses and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::link::{IFF_UP, IFLA_IFNAME, IFLA_LINKINFO, RTM_NEWLINK, ifinfomsg};
use super::message::{
    Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, with, with_nested, with_text,
};
use super::{Route, family_and_bytes};

const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_GATEWAY: u16 = 5;
const AF_BRIDGE: u8 = 7;
const ALL: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// A link-layer address.
pub(crate) type Mac = [u8; 6];

/// What a pod's interface is given.
pub(crate) struct Addresses {
    pub(crate) ipv4: (Ipv4Addr, u8),
    pub(crate) ipv6: (Ipv6Addr, u8),
    pub(crate) gateways: [IpAddr; 2],
}

impl Route {
    /// Adds a veth whose one end, `name`, is here, up, and a port of the bridge if one is given by its index; the
    /// other, `peer`, is in the namespace of process `holder`, or here as well, and may be given its address.
    pub(crate) fn add_veth(
        &mut self,
        name: &str,
        (peer, mac): (&str, Option<Mac>),
        holder: Option<u32>,
        bridge: Option<u32>,
    ) -> Result<()> {
        let mut end = with_text(ifinfomsg(0, 0), IFLA_IFNAME, peer)?;
        if let Some(mac) = mac {
            end = with(end, IFLA_ADDRESS, &mac)?;
        }
        if let Some(holder) = holder {
            end = with(end, IFLA_NET_NS_PID, &holder.to_ne_bytes())?;
        }
        let info = with_text(Vec::new(), IFLA_INFO_KIND, "veth")?;
        let data = with_nested(Vec::new(), VETH_INFO_PEER, &end)?;
        let info = with_nested(info, IFLA_INFO_DATA, &data)?;
        let mut body = with_text(ifinfomsg(0, IFF_UP), IFLA_IFNAME, name)?;
        if let Some(bridge) = bridge {
            body = with(body, IFLA_MASTER, &bridge.to_ne_bytes())?;
        }
        let body = with_nested(body, IFLA_LINKINFO, &info)?;
        let what = format!("add interface {name}");
        self.request(&[Message { what, kind: RTM_NEWLINK, flags: ALL, body }]).map(drop)
    }

    /// Keeps from a port of a bridge what is for everybody, or for somebody whom the bridge does not know.
    pub(crate) fn stop_floods(&mut self, index: u32) -> Result<()> {
        let mut port = Vec::new();
        for kind in [IFLA_BRPORT_UNICAST_FLOOD, IFLA_BRPORT_MCAST_FLOOD, IFLA_BRPORT_BCAST_FLOOD] {
            port = with(port, kind, &[0])?;
        }
        let mut body = ifinfomsg(index, 0);
        body[0] = AF_BRIDGE;
        let body = with_nested(body, IFLA_PROTINFO, &port)?;
        let what = format!("set up the bridge's port {index}");
        self.request(&[Message { what, kind: RTM_SETLINK, flags: 0, body }]).map(drop)
    }

    /// Tells this namespace for good who has these addresses, on interface `index`.
    pub(crate) fn add_neighbours(&mut self, index: u32, ips: [IpAddr; 2], mac: Mac) -> Result<()> {
        let neighbour = |ip| -> Result<Message> {
            let body = with(ndmsg(index, ip)?, NDA_LLADDR, &mac)?;
            let flags = NLM_F_CREATE | NLM_F_REPLACE;
            Ok(Message { what: format!("add neighbour {ip}"), kind: RTM_NEWNEIGH, flags, body })
        };
        self.request(&[neighbour(ips[0])?, neighbour(ips[1])?]).map(drop)
    }

    /// Forgets what [`add_neighbours`](Self::add_neighbours) told.
    pub(crate) fn delete_neighbours(&mut self, index: u32, ips: [IpAddr; 2]) -> Result<()> {
        let neighbour = |ip| -> Result<Message> {
            let what = format!("remove neighbour {ip}");
            Ok(Message { what, kind: RTM_DELNEIGH, flags: 0, body: ndmsg(index, ip)? })
        };
        self.request(&[neighbour(ips[0])?, neighbour(ips[1])?]).map(drop)
    }

    /// Sets an interface up.
    pub(crate) fn set_up(&mut self, name: &str) -> Result<()> {
        self.request(&[up(name)?]).map(drop)
    }

    /// Gives interface `name` of this namespace its addresses and routes, and sets it and `lo` up.
    pub(crate) fn configure(&mut self, name: &str, addresses: &Addresses) -> Result<()> {
        let index = self.link(name)?.index;
        let mut messages = vec![
            up("lo")?,
            address(index, addresses.ipv4.0.into(), addresses.ipv4.1)?,
            address(index, addresses.ipv6.0.into(), addresses.ipv6.1)?,
            up(name)?,
        ];
        for gateway in addresses.gateways {
            messages.push(default_route(gateway)?);
        }
        self.request(&messages).map(drop)
    }
}

/// struct ndmsg, and the address.
fn ndmsg(index: u32, ip: IpAddr) -> Result<Vec<u8>> {
    const NUD_PERMANENT: u16 = 0x80;
    let (family, bytes) = family_and_bytes(ip);
    let mut body = vec![family, 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(NUD_PERMANENT.to_ne_bytes());
    body.extend([0, 0]);
    with(body, NDA_DST, &bytes)
}

fn up(name: &str) -> Result<Message> {
    let body = with_text(ifinfomsg(0, IFF_UP), IFLA_IFNAME, name)?;
    Ok(Message { what: format!("set {name} up"), kind: RTM_NEWLINK, flags: 0, body })
}

fn address(index: u32, address: IpAddr, bits: u8) -> Result<Message> {
    let (family, bytes) = family_and_bytes(address);
    // Nobody else has it, and looking for a duplicate takes a second.
    let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
    let body = [&[family, bits, flags, 0], &index.to_ne_bytes()[..]].concat();
    let body = with(with(body, IFA_LOCAL, &bytes)?, IFA_ADDRESS, &bytes)?;
    Ok(Message { what: format!("add address {address}"), kind: RTM_NEWADDR, flags: ALL, body })
}

fn default_route(gateway: IpAddr) -> Result<Message> {
    const RT_TABLE_MAIN: u8 = 254;
    const RTPROT_BOOT: u8 = 3;
    const RT_SCOPE_UNIVERSE: u8 = 0;
    const RTN_UNICAST: u8 = 1;
    let (family, bytes) = family_and_bytes(gateway);
    // Lengths of destination and source are 0: everything.
    let body = vec![
        family,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        RT_SCOPE_UNIVERSE,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    let body = with(body, RTA_GATEWAY, &bytes)?;
    let what = format!("add the default route by {gateway}");
    Ok(Message { what, kind: RTM_NEWROUTE, flags: ALL, body })
}
