//! The default routes of a network namespace.

use super::{NetlinkError, aligned, attributes, links::Links, number};

impl Links {
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
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(index)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::scratch::{Namespace, sh};

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
                let all = links.snapshot().await.unwrap();
                expected.push(all.iter().find(|link| link.name == name).unwrap().index);
            }
            assert_eq!(links.default_route_interfaces().await.unwrap(), expected);
        });
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = default_route(&body);
            let _ = next_hops(&body).count();
        }
    }
}
