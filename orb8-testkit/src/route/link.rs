//! One interface: what the kernel says about it, and its removal.

use anyhow::{Context, Result};

use super::Route;
use super::message::{Message, attribute, number, with_text};
use crate::link::LinkCounters;

pub(super) const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_STATE: u16 = 1;
const IFINFOMSG: usize = 16;
pub(super) const IFF_UP: u32 = 1;

/// How a bridge treats one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortState {
    /// Not a port of a bridge.
    None,
    /// What comes from it and goes to it is passed on.
    Forwarding,
    /// Some other state, in which it is not.
    Waiting(u8),
}

/// What the kernel says about an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkState {
    pub(crate) index: u32,
    pub(crate) port: PortState,
    pub(crate) counters: LinkCounters,
}

impl Route {
    /// Asks for one interface.
    pub(crate) fn link(&mut self, name: &str) -> Result<LinkState> {
        let body = with_text(ifinfomsg(0, 0), IFLA_IFNAME, name)?;
        let what = format!("get interface {name}");
        let answer = self
            .request(&[Message { what, kind: RTM_GETLINK, flags: 0, body }])?
            .into_iter()
            .next();
        let answer = answer.with_context(|| format!("nothing about interface {name}"))?;
        LinkState::parse(&answer).with_context(|| format!("interface {name}: {answer:?}"))
    }

    /// Removes an interface. What is under way from it when this begins is still passed on.
    pub(crate) fn delete_link(&mut self, name: &str) -> Result<()> {
        let body = with_text(ifinfomsg(0, 0), IFLA_IFNAME, name)?;
        let what = format!("remove interface {name}");
        self.request(&[Message { what, kind: RTM_DELLINK, flags: 0, body }]).map(drop)
    }
}

impl LinkState {
    fn parse(body: &[u8]) -> Option<Self> {
        let attributes = body.get(IFINFOMSG..)?;
        let stats = attribute(attributes, IFLA_STATS64)?;
        let stat = |at: usize| stats.get(at * 8..).and_then(number).map(u64::from_ne_bytes);
        let port = attribute(attributes, IFLA_LINKINFO)
            .and_then(|info| attribute(info, IFLA_INFO_SLAVE_DATA))
            .and_then(|data| attribute(data, IFLA_BRPORT_STATE));
        Some(Self {
            index: u32::from_ne_bytes(number(body.get(4..)?)?),
            port: match port.and_then(|state| state.first()) {
                None => PortState::None,
                Some(3) => PortState::Forwarding,
                Some(other) => PortState::Waiting(*other),
            },
            // struct rtnl_link_stats64; 4 and 5 are errors.
            counters: LinkCounters {
                rx_packets: stat(0)?,
                tx_packets: stat(1)?,
                rx_bytes: stat(2)?,
                tx_bytes: stat(3)?,
                rx_dropped: stat(6)?,
                tx_dropped: stat(7)?,
            },
        })
    }
}

/// struct ifinfomsg: no family, this index (0: by name), these flags set.
pub(super) fn ifinfomsg(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}
