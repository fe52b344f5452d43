//! Connection tracking: what a packet's addresses were, or become, where the node translates them.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
};

use netlink_sys::{Socket, SocketAddr as Kernel, protocols::NETLINK_NETFILTER};

use super::{
    DATAGRAM_MAX, KERNEL, NLM_F_ACK, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, addresses::ip,
    aligned, attributes, decode, encode, number, push_attribute,
};

/// Packets of one direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// IANA protocol number.
    pub protocol: u8,
    /// Where they come from.
    pub src: SocketAddr,
    /// Where they go.
    pub dst: SocketAddr,
}

/// Who is at the other end of a connection in truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RealPeer {
    /// The packets' destination is translated: they go here.
    Server(SocketAddr),
    /// They are answers, and what they answer had its source translated: it came from here.
    Client(SocketAddr),
}

/// Asks the kernel about connections.
///
/// The kernel answers a request while that is sent, so nobody waits, and the socket need not be
/// asynchronous.
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
    answer: Vec<u8>,
}

// linux/netfilter/nfnetlink_conntrack.h
const GET: u16 = 0x101;
const NEW: u16 = 0x100;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
/// struct nfgenmsg: family, version, resource.
const HEADER: usize = 4;

impl Conntrack {
    /// Asks in the network namespace of the calling thread, for ever. Fails where the kernel has no
    /// netlink for connection tracking; whether it may be asked shows when it is.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, sequence: 0, answer: Vec::with_capacity(DATAGRAM_MAX) })
    }

    /// Who is at the other end of the connection that packets from `tuple.src` to `tuple.dst`
    /// belong to, where that is not `tuple.dst`. `Ok(Err(NotTracked))`: the kernel does not know
    /// the connection (yet, or any more).
    pub fn real_peer(&mut self, tuple: &Tuple) -> io::Result<Result<Option<RealPeer>, NotTracked>> {
        match self.ask(&request(tuple)) {
            Ok(answer) => {
                let connection = answer.as_deref().and_then(connection);
                Ok(Ok(connection.and_then(|connection| connection.real_peer(tuple))))
            }
            Err(why) if why.raw_os_error() == Some(libc::ENOENT) => Ok(Err(NotTracked)),
            Err(why) => Err(why),
        }
    }

    fn ask(&mut self, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let request = encode(GET, NLM_F_REQUEST | NLM_F_ACK, self.sequence, body)?;
        self.socket.send_to(&request, &Kernel::new(KERNEL, 0), 0)?;
        let mut found = None;
        loop {
            self.answer.clear();
            let (_, sender) = self.socket.recv_from(&mut self.answer, 0)?;
            if sender.port_number() != KERNEL {
                continue;
            }
            for message in decode(&self.answer) {
                // Left over from a request whose answer could not be read.
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    NEW => found = Some(message.body),
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match number(&message.body).map_or(0, i32::from_ne_bytes) {
                            0 => Ok(found),
                            code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                        };
                    }
                    other => {
                        let why = format!("a message of type {other:#x}, expected a connection");
                        return Err(io::Error::new(ErrorKind::InvalidData, why));
                    }
                }
            }
        }
    }
}

/// The kernel tracks no such connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotTracked;

/// A connection as the side that opened it sees it, and as the side that answers does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connection {
    original: Tuple,
    reply: Tuple,
}

impl Connection {
    fn real_peer(&self, asked: &Tuple) -> Option<RealPeer> {
        let Self { original, reply } = self;
        if asked == original {
            (reply.src != asked.dst).then_some(RealPeer::Server(reply.src))
        } else if asked == reply {
            (original.src != asked.dst).then_some(RealPeer::Client(original.src))
        } else {
            None
        }
    }
}

/// The kernel finds a connection by the packets of either direction, whichever attribute they are
/// in.
fn request(tuple: &Tuple) -> Vec<u8> {
    let (family, src_kind, dst_kind) = match tuple.src {
        SocketAddr::V4(_) => (libc::AF_INET, CTA_IP_V4_SRC, CTA_IP_V4_DST),
        SocketAddr::V6(_) => (libc::AF_INET6, CTA_IP_V6_SRC, CTA_IP_V6_DST),
    };
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut addresses = Vec::new();
    push_attribute(&mut addresses, src_kind, &octets(tuple.src.ip()));
    push_attribute(&mut addresses, dst_kind, &octets(tuple.dst.ip()));
    let mut protocol = Vec::new();
    push_attribute(&mut protocol, CTA_PROTO_NUM, &[tuple.protocol]);
    push_attribute(&mut protocol, CTA_PROTO_SRC_PORT, &tuple.src.port().to_be_bytes());
    push_attribute(&mut protocol, CTA_PROTO_DST_PORT, &tuple.dst.port().to_be_bytes());
    let mut both = Vec::new();
    push_attribute(&mut both, CTA_TUPLE_IP | NLA_F_NESTED, &addresses);
    push_attribute(&mut both, CTA_TUPLE_PROTO | NLA_F_NESTED, &protocol);
    let mut body = vec![u8::try_from(family).unwrap_or_default(), 0, 0, 0];
    debug_assert_eq!(body.len(), aligned(HEADER));
    push_attribute(&mut body, CTA_TUPLE_ORIG | NLA_F_NESTED, &both);
    body
}

fn connection(body: &[u8]) -> Option<Connection> {
    let (mut original, mut reply) = (None, None);
    for (kind, value) in attributes(body.get(HEADER..)?) {
        match kind {
            CTA_TUPLE_ORIG => original = tuple(value),
            CTA_TUPLE_REPLY => reply = tuple(value),
            _ => {}
        }
    }
    Some(Connection { original: original?, reply: reply? })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut addresses, mut ports, mut protocol) = ([None; 2], [None; 2], None);
    for (kind, value) in attributes(bytes) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        CTA_IP_V4_SRC | CTA_IP_V6_SRC => addresses[0] = ip(value),
                        CTA_IP_V4_DST | CTA_IP_V6_DST => addresses[1] = ip(value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                let port = |value| number(value).map(u16::from_be_bytes);
                for (kind, value) in attributes(value) {
                    match kind {
                        CTA_PROTO_NUM => protocol = value.first().copied(),
                        CTA_PROTO_SRC_PORT => ports[0] = port(value),
                        CTA_PROTO_DST_PORT => ports[1] = port(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let end = |at: usize| Some(SocketAddr::new(addresses[at]?, ports[at]?));
    Some(Tuple { protocol: protocol?, src: end(0)?, dst: end(1)? })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use proptest::prelude::*;

    use super::*;
    use crate::netlink::scratch::{Namespace, sh};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A table that makes the kernel track connections, and translates those to port 80 of addresses
    /// that nobody has.
    const RULES: &str = "ip link set lo up; ip addr add 10.96.0.1/32 dev lo; \
        ip -6 addr add fd00:96::1/128 dev lo; PATH=$PATH:/usr/sbin; nft -f - <<'END'\n\
        table inet t {\n\
          chain out { type nat hook output priority -100; policy accept;\n\
            ip daddr 10.96.0.1 tcp dport 80 dnat ip to 127.0.0.1:8080;\n\
            ip daddr 10.96.0.1 udp dport 80 dnat ip to 127.0.0.1:8080;\n\
            ip6 daddr fd00:96::1 tcp dport 80 dnat ip6 to [::1]:8080;\n\
          }\n\
          chain post { type nat hook postrouting priority 100; policy accept;\n\
            ip daddr 127.0.0.1 tcp dport 8080 snat ip to 127.0.0.99;\n\
          }\n\
        }\nEND\n";

    #[test]
    fn a_translated_connection_tells_who_is_really_there_on_either_side() {
        Namespace::new().run(async || {
            sh(RULES);
            let mut conntrack = Conntrack::open().unwrap();
            for (service, server, client_seen) in [
                ("10.96.0.1:80", "127.0.0.1:8080", Some("127.0.0.99")),
                ("[fd00:96::1]:80", "[::1]:8080", None),
            ] {
                let listener = TcpListener::bind(server).unwrap();
                let client = TcpStream::connect(service).unwrap();
                let (accepted, seen) = listener.accept().unwrap();
                let own = client.local_addr().unwrap();
                let sent = Tuple { protocol: 6, src: own, dst: at(service) };
                let real = conntrack.real_peer(&sent).unwrap();
                assert_eq!(real, Ok(Some(RealPeer::Server(at(server)))));
                let answered =
                    Tuple { protocol: 6, src: accepted.local_addr().unwrap(), dst: seen };
                let real = conntrack.real_peer(&answered).unwrap();
                let expected = client_seen.map(|_| RealPeer::Client(own));
                assert_eq!(real, Ok(expected), "{seen} is {own}");
            }
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", "10.96.0.1:80").unwrap();
            let sent =
                Tuple { protocol: 17, src: socket.local_addr().unwrap(), dst: at("10.96.0.1:80") };
            let real = conntrack.real_peer(&sent).unwrap();
            assert_eq!(real, Ok(Some(RealPeer::Server(at("127.0.0.1:8080")))));
        });
    }

    #[test]
    fn what_is_not_translated_and_what_is_not_there_are_told_apart() {
        Namespace::new().run(async || {
            sh(RULES);
            let mut conntrack = Conntrack::open().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let server = listener.local_addr().unwrap();
            let client = TcpStream::connect(server).unwrap();
            let mut sent = Tuple { protocol: 6, src: client.local_addr().unwrap(), dst: server };
            assert_eq!(conntrack.real_peer(&sent).unwrap(), Ok(None));
            sent.dst.set_port(1);
            for _ in 0..3 {
                assert_eq!(conntrack.real_peer(&sent).unwrap(), Err(NotTracked));
            }
        });
    }

    #[test]
    fn whoever_may_not_ask_is_told_so() {
        let asked = Namespace::new().run(async || {
            // Only this thread loses its rights, and it ends with the test.
            let none = rustix::thread::CapabilitySets {
                effective: rustix::thread::CapabilitySet::empty(),
                permitted: rustix::thread::CapabilitySet::empty(),
                inheritable: rustix::thread::CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).unwrap();
            let tuple = Tuple { protocol: 6, src: at("127.0.0.1:1"), dst: at("127.0.0.1:2") };
            Conntrack::open().and_then(|mut conntrack| conntrack.real_peer(&tuple))
        });
        let why = asked.unwrap_err();
        assert_eq!(why.raw_os_error(), Some(libc::EPERM), "{why}");
    }

    fn socket_address() -> impl Strategy<Value = [SocketAddr; 2]> {
        let v4 = any::<[([u8; 4], u16); 2]>().prop_map(|both| both.map(SocketAddr::from));
        let v6 = any::<[([u8; 16], u16); 2]>().prop_map(|both| both.map(SocketAddr::from));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = connection(&body);
            let _ = tuple(&body);
        }

        #[test]
        fn a_request_reads_back_as_what_was_asked(ends in socket_address(), protocol: u8) {
            let [src, dst] = ends;
            let asked = Tuple { protocol, src, dst };
            let body = request(&asked);
            let (kind, value) = attributes(&body[HEADER..]).next().unwrap();
            prop_assert_eq!((kind, tuple(value)), (CTA_TUPLE_ORIG, Some(asked)));
        }

        #[test]
        fn a_connection_that_is_cut_anywhere_is_no_other_one(
            original in socket_address(), reply in socket_address(), cut in 0usize..200,
        ) {
            let of = |[src, dst]: [SocketAddr; 2]| Tuple { protocol: 6, src, dst };
            let whole = Connection { original: of(original), reply: of(reply) };
            let mut body = request(&whole.original);
            let mut second = request(&whole.reply).split_off(HEADER);
            second[2] = u8::try_from(CTA_TUPLE_REPLY).unwrap();
            body.extend(second);
            prop_assert_eq!(connection(&body), Some(whole));
            body.truncate(cut);
            prop_assert!(connection(&body).is_none_or(|read| read == whole));
        }
    }
}
