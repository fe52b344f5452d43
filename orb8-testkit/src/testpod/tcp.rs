//! TCP: a sink that confirms what it has read, and a sender of an exact number of bytes.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orb8_testkit::Summary;
use orb8_testkit::program::{TcpSend, TcpSink};
use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::run_time::{Pace, RunTime};
use super::{report, udp};

/// How long one read or write, or a connection's opening, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes written at once.
const CHUNK: usize = 256 << 10;

/// Reads connections, each on a thread of its own, until the end.
pub(super) fn sink(sink: &TcpSink, run_time: RunTime) -> Result<()> {
    let bytes = Arc::new(AtomicU64::new(0));
    let flows = Arc::new(AtomicU64::new(0));
    let mut first = None;
    for addr in udp::ports(sink.bind, sink.ports)? {
        let listener = listen(addr)?;
        first = first.or(listener.local_addr().ok());
        let (bytes, flows) = (Arc::clone(&bytes), Arc::clone(&flows));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                flows.fetch_add(1, Ordering::Relaxed);
                let bytes = Arc::clone(&bytes);
                // A connection that breaks is the sender's error, which it reports.
                thread::spawn(move || swallow(stream, &bytes));
            }
        });
    }
    report::ready(first)?;
    run_time.wait_for_the_end();
    let (bytes, flows) = (bytes.load(Ordering::Relaxed), flows.load(Ordering::Relaxed));
    report::summary(&Summary { bytes, flows, ..Summary::default() })
}

/// Sends as many bytes as asked, and waits until the sink says that it has read them.
pub(super) fn send(send: &TcpSend) -> Result<()> {
    let mut stream = connected(send.to, 0)?;
    let chunk = vec![0x2a; CHUNK];
    let pace = Pace::new(send.rate);
    let mut sent = 0;
    while sent < send.bytes {
        pace.until(sent);
        let size = usize::try_from(send.bytes - sent).map_or(CHUNK, |left| left.min(CHUNK));
        stream.write_all(&chunk[..size]).with_context(|| format!("after {sent} bytes"))?;
        sent += size as u64;
    }
    finish(stream, sent)?;
    report::summary(&Summary { bytes: sent, flows: 1, ..Summary::default() })
}

/// A listener on `addr`.
pub(super) fn listen(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).with_context(|| format!("cannot listen on {addr}"))
}

/// A connection to `to` from a port of its own, or from one that the kernel chooses (0).
pub(super) fn connected(to: SocketAddr, from_port: u16) -> Result<TcpStream> {
    let (family, any): (_, IpAddr) = match to {
        SocketAddr::V4(_) => (AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if from_port != 0 {
        // A port of which another connection is still in TIME_WAIT can be had, as long as the peers differ.
        set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddr::new(any, from_port))
            .with_context(|| format!("cannot bind port {from_port}"))?;
    }
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    connect(&socket, &to).with_context(|| format!("cannot connect to {to}"))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Ends a connection to a sink, which must have read exactly `sent` bytes.
pub(super) fn finish(mut stream: TcpStream, sent: u64) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count).context("the sink did not confirm")?;
    let read = u64::from_be_bytes(count);
    ensure!(read == sent, "the sink has read {read} bytes of {sent}");
    Ok(())
}

fn swallow(mut stream: TcpStream, total: &AtomicU64) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut read = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            size => {
                read += size as u64;
                total.fetch_add(size as u64, Ordering::Relaxed);
            }
        }
    }
    stream.write_all(&read.to_be_bytes())
}
