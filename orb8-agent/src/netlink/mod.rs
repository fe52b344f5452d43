//! Netlink: what the kernel knows about interfaces, namespaces, tc filters and connections.
//!
//! Messages are decoded here, attribute by attribute, and only as far as orb8 needs them. A decoder of
//! the whole protocol has to refuse messages with an attribute that grew in a newer kernel, and an
//! interface that was refused would carry traffic that nobody counts.

use std::{
    io::{self, ErrorKind},
    os::fd::AsFd,
    time::Duration,
};

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rustix::net::sockopt;

pub mod addresses;
pub mod conntrack;
pub mod links;
pub mod netns;
mod routes;
#[cfg(test)]
pub(crate) mod scratch;
pub mod tc;
pub mod watch;

/// A request that the kernel refused or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("netlink: cannot {what}: {source}")]
pub struct NetlinkError {
    what: String,
    source: io::Error,
}

impl NetlinkError {
    fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { what: what.into(), source: source.into() }
    }

    /// The kernel's own error, where there is one.
    #[must_use]
    pub fn io(&self) -> &io::Error {
        &self.source
    }
}

/// The kernel answers at once; a socket that stays silent is broken.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often a dump is read again when the tables changed under it.
const DUMP_ATTEMPTS: u32 = 4;
/// The kernel fills at most 32 KiB per datagram of a dump. A longer message is an error, not cut.
const DATAGRAM_MAX: usize = 64 << 10;
const HEADER: usize = 16;
/// The address of the kernel.
const KERNEL: u32 = 0;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A message without its header. `body` begins with the fixed part of its family.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: Vec<u8>,
}

/// What the kernel answered to one request.
struct Answer {
    messages: Vec<Message>,
    /// The table changed while it was listed.
    interrupted: bool,
}

/// A route netlink socket. It belongs to the network namespace of the thread that opens it, for
/// ever. It has no task of its own: answers are read by whoever asked.
struct RouteSocket {
    socket: TokioSocket,
    sequence: u32,
}

impl RouteSocket {
    /// Opens a socket that also receives what is sent to `groups` (a bit mask; 0: nothing).
    fn open(groups: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes room for `bytes` of messages that were not read yet.
    fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        let fd = self.socket.socket_ref().as_fd();
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN.
        sockopt::set_socket_recv_buffer_size_force(fd, bytes)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(fd, bytes))?;
        Ok(())
    }

    /// Lists what `kind` asks for. A list that changed while it was read is read again.
    async fn dump(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
    ) -> Result<Vec<Message>, NetlinkError> {
        for _ in 1..DUMP_ATTEMPTS {
            let answer = self.request(what, kind, NLM_F_DUMP, body).await?;
            if !answer.interrupted {
                return Ok(answer.messages);
            }
        }
        // Still changing: every entry is true, one that moved may be missing or there twice, and
        // the change itself is announced to whoever listens.
        Ok(self.request(what, kind, NLM_F_DUMP, body).await?.messages)
    }

    /// Asks for one thing, or orders one.
    async fn call(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
    ) -> Result<Vec<Message>, NetlinkError> {
        Ok(self.request(what, kind, NLM_F_ACK, body).await?.messages)
    }

    async fn request(
        &mut self,
        what: &str,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> Result<Answer, NetlinkError> {
        match tokio::time::timeout(TIMEOUT, self.exchange(kind, flags, body)).await {
            Ok(answer) => answer.map_err(|why| NetlinkError::new(what, why)),
            Err(_) => Err(NetlinkError::new(
                what,
                io::Error::new(ErrorKind::TimedOut, format!("no answer in {TIMEOUT:?}")),
            )),
        }
    }

    async fn exchange(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Answer> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let request = encode(kind, NLM_F_REQUEST | flags, self.sequence, body)?;
        self.socket.send_to(&request, &SocketAddr::new(KERNEL, 0)).await?;
        let mut answer = Answer { messages: Vec::new(), interrupted: false };
        loop {
            for message in self.receive().await? {
                // Left over from a request that was cancelled.
                if message.sequence != self.sequence {
                    continue;
                }
                answer.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match number(&message.body).map_or(0, i32::from_ne_bytes) {
                            0 => Ok(answer),
                            code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                        };
                    }
                    _ => answer.messages.push(message),
                }
            }
        }
    }

    /// The messages of the next datagram. Cancelling it loses nothing.
    async fn receive(&self) -> io::Result<Vec<Message>> {
        let mut buffer = Vec::with_capacity(DATAGRAM_MAX);
        loop {
            buffer.clear();
            let sender = self.socket.recv_from(&mut buffer).await?;
            if let Some(messages) = received(&sender, &buffer)? {
                return Ok(messages);
            }
        }
    }

    /// The messages of the next datagram, if the kernel has one by now: asked without the detour by
    /// the runtime, which may not have heard of it yet.
    fn receive_queued(&self) -> io::Result<Option<Vec<Message>>> {
        let mut buffer = Vec::with_capacity(DATAGRAM_MAX);
        loop {
            buffer.clear();
            let read = self.socket.socket_ref().recv_from(&mut buffer, libc::MSG_DONTWAIT);
            let sender = match read {
                Ok((_, sender)) => sender,
                Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(why) => return Err(why),
            };
            if let Some(messages) = received(&sender, &buffer)? {
                return Ok(Some(messages));
            }
        }
    }
}

/// The messages of a datagram; none if it is not the kernel's.
fn received(sender: &SocketAddr, buffer: &Vec<u8>) -> io::Result<Option<Vec<Message>>> {
    // Other processes may write to this socket too.
    if sender.port_number() != KERNEL {
        return Ok(None);
    }
    // It may have been longer, and what did not fit is lost.
    if buffer.len() == buffer.capacity() {
        let why = format!("a datagram of {} bytes, expected less", buffer.len());
        return Err(io::Error::new(ErrorKind::InvalidData, why));
    }
    Ok(Some(decode(buffer)))
}

fn encode(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// Splits a datagram into messages. What follows a broken header is unreadable.
fn decode(mut datagram: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(length) = number(datagram).map(u32::from_ne_bytes) {
        let length = length as usize;
        let Some((header, body)) =
            datagram.get(..length).and_then(|all| all.split_at_checked(HEADER))
        else {
            break;
        };
        if let (Some(kind), Some(flags), Some(sequence)) =
            (number(&header[4..]), number(&header[6..]), number(&header[8..]))
        {
            messages.push(Message {
                kind: u16::from_ne_bytes(kind),
                flags: u16::from_ne_bytes(flags),
                sequence: u32::from_ne_bytes(sequence),
                body: body.to_vec(),
            });
        }
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
    }
    messages
}

/// The attributes (type without its flag bits, value) in `bytes`, up to the first broken one.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const FLAG_BITS: u16 = 0xc000;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(number(bytes)?));
        let kind = u16::from_ne_bytes(number(bytes.get(2..)?)?) & !FLAG_BITS;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Appends an attribute. None of ours comes near 64 KiB.
fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(aligned(body.len()), 0);
}

/// Messages and attributes begin at multiples of four.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The first bytes, for `from_ne_bytes`.
fn number<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

/// A C string without its end.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn an_error_of_the_kernel_says_what_could_not_be_done() {
        let mut socket = RouteSocket::open(0).unwrap();
        let nothing = 60_000u16;
        let why = socket.call("do nothing", nothing, &[0; 4]).await.unwrap_err();
        assert!(why.to_string().starts_with("netlink: cannot do nothing: "), "{why}");
        assert!(why.io().raw_os_error().is_some());
    }

    #[tokio::test]
    async fn answers_to_a_cancelled_request_are_not_taken_for_the_next_ones() {
        let mut socket = RouteSocket::open(0).unwrap();
        let all_links = links::header(0);
        let cancelled = encode(libc::RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 0xdead, &all_links);
        socket.socket.send_to(&cancelled.unwrap(), &SocketAddr::new(KERNEL, 0)).await.unwrap();
        let loopback = links::header(1);
        let answer = socket.call("get lo", libc::RTM_GETLINK, &loopback).await;
        // A socket serves one dump at a time, and the answer to lo comes after it.
        assert_eq!(answer.unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_never_panic_and_never_loop(
            bytes in prop::collection::vec(any::<u8>(), 0..256),
            length in 0u32..64,
        ) {
            let mut all = length.to_ne_bytes().to_vec();
            all.extend(&bytes);
            for bytes in [&all, &bytes] {
                for message in decode(bytes) {
                    let _ = attributes(&message.body).count();
                }
                let _ = attributes(bytes).count();
                let _ = text(bytes);
            }
        }

        #[test]
        fn messages_and_attributes_round_trip(
            values in prop::collection::vec((0u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..6),
            kind in 16u16..,
            flags: u16,
            sequence: u32,
        ) {
            let mut body = Vec::new();
            for (kind, value) in &values {
                push_attribute(&mut body, *kind, value);
            }
            let mut datagram = encode(kind, flags, sequence, &body).unwrap();
            datagram.extend(datagram.clone());
            let message = Message { kind, flags, sequence, body };
            let messages = decode(&datagram);
            prop_assert_eq!(&messages, &[message.clone(), message]);
            let read: Vec<_> = attributes(&messages[0].body).map(|(k, v)| (k, v.to_vec())).collect();
            prop_assert_eq!(read, values);
        }
    }
}
