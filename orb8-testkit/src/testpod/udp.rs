//! UDP: a sink, a sender of an exact number of datagrams, an echo.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use orb8_testkit::Summary;
use orb8_testkit::program::{Bind, UdpSend, UdpSink};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::run_time::{Pace, RunTime};
use super::{neighbour, report};

/// The largest datagram there is.
const LARGEST: usize = 65_535;

/// Room for a burst: without it a sender that shares the CPU overruns the sink. What does not fit is lost behind the
/// interface counters, and the sink's own count is short.
const RECEIVE_BUFFER: usize = 16 << 20;

/// Counts until the end, and then what is still on its way.
pub(super) fn sink(sink: &UdpSink, run_time: RunTime) -> Result<()> {
    let totals = Arc::new(Totals::default());
    let mut first = None;
    for addr in ports(sink.bind, sink.ports)? {
        let socket = bound(addr)?;
        first = first.or(socket.local_addr().ok());
        let totals = Arc::clone(&totals);
        thread::spawn(move || count(&socket, &totals));
    }
    report::ready(first)?;
    run_time.wait_for_the_end();
    let packets = settled(&totals.packets);
    report::summary(&Summary {
        packets,
        bytes: totals.bytes.load(Ordering::Relaxed),
        flows: totals.flows.load(Ordering::Relaxed),
        replies: 0,
    })
}

/// What all ports of a sink have received.
#[derive(Default)]
struct Totals {
    packets: AtomicU64,
    bytes: AtomicU64,
    flows: AtomicU64,
}

fn count(socket: &UdpSocket, totals: &Totals) {
    let mut senders = HashSet::new();
    let mut buffer = [0; LARGEST];
    loop {
        // An error here is a pending ICMP message about something that this socket never sent.
        let Ok((size, from)) = socket.recv_from(&mut buffer) else { continue };
        if senders.insert(from) {
            totals.flows.fetch_add(1, Ordering::Relaxed);
        }
        totals.bytes.fetch_add(size as u64, Ordering::Relaxed);
        totals.packets.fetch_add(1, Ordering::Release);
    }
}

/// Sends exactly as many datagrams as asked.
pub(super) fn send(send: &UdpSend) -> Result<()> {
    let socket = connected(send.to, send.from_port.unwrap_or(0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let payload = vec![0x2a; send.size];
    let mut reply = [0; LARGEST];
    let mut summary = Summary { flows: 1, ..Summary::default() };
    let pace = Pace::new(send.pps);
    while summary.packets < send.packets {
        pace.until(summary.packets);
        send_one(&socket, &payload)?;
        summary.packets += 1;
        summary.bytes += send.size as u64;
        if send.await_echo {
            summary.replies += u64::from(socket.recv(&mut reply).is_ok());
        } else if summary.packets == 1 {
            neighbour::await_resolution()?;
        }
    }
    report::summary(&summary)
}

/// Sends every datagram back to where it came from.
pub(super) fn echo(echo: &Bind, run_time: RunTime) -> Result<()> {
    let socket = bound(echo.bind)?;
    report::ready(socket.local_addr().ok())?;
    thread::spawn(move || {
        let mut buffer = [0; LARGEST];
        loop {
            // A reply that cannot be sent is lost like any datagram.
            if let Ok((size, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..size], from);
            }
        }
    });
    run_time.wait_for_the_end();
    Ok(())
}

/// `count` addresses with consecutive ports.
pub(super) fn ports(first: SocketAddr, count: u16) -> Result<Vec<SocketAddr>> {
    (0..count)
        .map(|offset| {
            let port = first.port().checked_add(offset);
            let port =
                port.with_context(|| format!("{count} ports from {first} on do not exist"))?;
            Ok(SocketAddr::new(first.ip(), port))
        })
        .collect()
}

/// A socket that sends to `to` from a port of its own, or from one that the kernel chooses (0).
pub(super) fn connected(to: SocketAddr, from_port: u16) -> Result<UdpSocket> {
    let socket = unconnected(to, from_port)?;
    socket.connect(to).with_context(|| format!("no route to {to}"))?;
    Ok(socket)
}

/// A socket of the address family of `to`, at a port as [`connected`].
pub(super) fn unconnected(to: SocketAddr, from_port: u16) -> Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, from_port)).with_context(|| format!("cannot bind port {from_port}"))
}

/// Sends one datagram for certain.
pub(super) fn send_one(socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    until_sent(|| socket.send(payload)).context("cannot send")
}

/// Sends one datagram for certain, from a socket that is not connected.
pub(super) fn send_to(socket: &UdpSocket, payload: &[u8], to: SocketAddr) -> Result<()> {
    until_sent(|| socket.send_to(payload, to)).with_context(|| format!("cannot send to {to}"))
}

/// An error that concerns an earlier datagram (refused), or no room (ENOBUFS), means that this one was not sent: once
/// more.
fn until_sent(mut send: impl FnMut() -> std::io::Result<usize>) -> std::io::Result<()> {
    loop {
        match send() {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                thread::sleep(Duration::from_micros(100));
            }
            Err(error) => return Err(error),
        }
    }
}

fn bound(addr: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(addr).with_context(|| format!("cannot bind {addr}"))?;
    set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
    Ok(socket)
}

/// The counter's value once it has stood still for a moment, or after two seconds.
fn settled(counter: &AtomicU64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut last = counter.load(Ordering::Acquire);
    loop {
        thread::sleep(Duration::from_millis(30));
        let now = counter.load(Ordering::Acquire);
        if now == last || Instant::now() >= deadline {
            return now;
        }
        last = now;
    }
}
