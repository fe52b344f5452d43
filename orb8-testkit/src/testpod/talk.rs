//! A sender that knows to the last datagram what it has sent, even when it is told to end.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use orb8_testkit::Summary;
use orb8_testkit::program::UdpTalk;
use tokio::signal::unix::{SignalKind, signal};

use super::{report, udp};

/// The kernel looks for a neighbour for three seconds.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// Sends to every address in turn, and says at its end how much.
pub(super) fn talk(talk: &UdpTalk) -> Result<()> {
    let told = termination()?;
    // One socket for both families: it sends to IPv4 by mapped addresses.
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, talk.from_port))
        .with_context(|| format!("cannot bind port {}", talk.from_port))?;
    let payload = vec![0x2a; talk.size];
    let gap = Duration::from_nanos(1_000_000_000 / talk.pps.max(1));
    let mut summary = Summary { flows: talk.to.len() as u64, ..Summary::default() };
    let total = talk.packets * talk.to.len() as u64;
    let (begun, mut is_told) = (Instant::now(), false);
    for (to, number) in talk.to.iter().cycle().zip(0..total) {
        let due = gap.saturating_mul(u32::try_from(number)?);
        is_told = wait(&told, Some(due.saturating_sub(begun.elapsed())));
        if is_told {
            break;
        }
        udp::send_to(&socket, &payload, mapped(*to))?;
        summary.packets += 1;
        summary.bytes += talk.size as u64;
    }
    await_departure(socket.local_addr()?.port())?;
    if talk.stay && !is_told {
        wait(&told, None);
    }
    report::summary(&summary)
}

/// Hears of SIGTERM, from now on.
fn termination() -> Result<Receiver<()>> {
    let (sender, told) = sync_channel(1);
    let (ready, listening) = sync_channel(1);
    thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let entered = runtime.enter();
        let mut term = signal(SignalKind::terminate())?;
        drop(entered);
        ready.send(())?;
        runtime.block_on(term.recv());
        sender.send(())?;
        Ok(())
    });
    listening.recv().context("cannot listen to SIGTERM")?;
    Ok(told)
}

/// Whether it was told to end, within this time.
fn wait(told: &Receiver<()>, limit: Option<Duration>) -> bool {
    match limit {
        Some(limit) => !matches!(told.recv_timeout(limit), Err(RecvTimeoutError::Timeout)),
        None => told.recv().is_ok(),
    }
}

/// Waits until the socket at `port` has nothing under way: before the neighbour is known, the kernel keeps what is sent,
/// and forgets it with the namespace.
fn await_departure(port: u16) -> Result<()> {
    let deadline = Instant::now() + LEAVE_LIMIT;
    let local = format!(":{port:04X}");
    loop {
        let table = fs::read_to_string("/proc/thread-self/net/udp6").context("udp6")?;
        let mut queued = table.lines().filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let ours = fields.next()?.ends_with(&local);
            let sending = fields.nth(2)?.split(':').next()?;
            ours.then(|| sending != "00000000")
        });
        if !queued.any(|is_queued| is_queued) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("what port {port} sent did not leave within {LEAVE_LIMIT:?}");
        }
        // Reading the table costs the better part of a millisecond.
        thread::sleep(Duration::from_millis(5));
    }
}

fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), addr.port()).into(),
        IpAddr::V6(_) => addr,
    }
}
