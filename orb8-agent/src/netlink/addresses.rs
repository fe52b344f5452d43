//! The addresses of the node itself.

use std::net::IpAddr;

use super::{NetlinkError, attributes, links::Links, number};

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
}

impl Links {
    /// Every address of this network namespace that means the same on every link: those that other
    /// links may have too (`fe80::…`) are left out.
    pub async fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let answer = self.socket.dump("list addresses", libc::RTM_GETADDR, &[0; HEADER]).await?;
        Ok(answer.iter().filter_map(|message| address(&message.body)).collect())
    }
}

/// struct ifaddrmsg: family, prefix length, flags, scope, index (u32).
const HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
/// The own address, where `IFA_ADDRESS` is that of the other end of a point-to-point link.
const IFA_LOCAL: u16 = 2;
const RT_SCOPE_LINK: u8 = 253;

fn address(body: &[u8]) -> Option<Address> {
    let (header, rest) = body.split_at_checked(HEADER)?;
    let index = u32::from_ne_bytes(number(&header[4..])?);
    let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted);
    let (_, value) = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    let ip = ip(value)?;
    (header[3] != RT_SCOPE_LINK).then_some(Address { index, ip })
}

/// An address in network order.
pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => number::<4>(value).map(IpAddr::from),
        16 => number::<16>(value).map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::scratch::{Namespace, sh};

    #[test]
    fn own_addresses_are_found_in_both_families_but_for_those_of_one_link_only() {
        Namespace::new().run(async || {
            sh("ip link set lo up; ip link add d0 type veth peer name d1; ip link set d0 up; \
                ip link set d1 up; ip addr add 10.0.0.1/24 dev d0; \
                ip -6 addr add fd00::1/64 dev d0 nodad; ip -6 addr add fe80::99/64 dev d1 nodad; \
                ip addr add 10.1.0.1 peer 10.1.0.2 dev d1; ip addr add 169.254.20.10/32 dev d1");
            let mut links = Links::open().unwrap();
            let mut found = links.addresses().await.unwrap();
            found.sort_by_key(|address| address.ip);
            let ips: Vec<String> = found.iter().map(|address| address.ip.to_string()).collect();
            let expected = ["10.0.0.1", "10.1.0.1", "127.0.0.1", "169.254.20.10", "::1", "fd00::1"];
            assert_eq!(ips, expected);
            assert_eq!((found[2].index, found[0].index), (1, found[5].index));
        });
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(body in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = address(&body);
        }
    }
}
