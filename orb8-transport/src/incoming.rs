//! The connections of a port, as tonic takes them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{Interval, interval, sleep},
};

use crate::{
    connection::{Connection, Io, Peer},
    handshake::{self, Refusal, Refused},
    limits::Limits,
    port::Port,
    server_tls::{CHECK_INTERVAL, ServerTls},
};

/// After a failed accept, which mostly means that there are no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that are let in one after the other, their handshakes at the same time. To be given
/// to `serve_with_incoming_shutdown`; it ends when it is dropped.
pub struct Incoming {
    stream: Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>,
    port: Port,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("port", &self.port).finish_non_exhaustive()
    }
}

/// The connections of `listener`, with TLS as the files of `tls` say at each moment, or without.
/// For them to be looked at the stream has to be polled, which a server does.
#[must_use]
pub fn incoming(listener: TcpListener, tls: Option<ServerTls>, limits: &Limits) -> Incoming {
    let port = Port::default();
    let acceptor = Acceptor {
        listener,
        tls,
        limits: *limits,
        handshakes: JoinSet::new(),
        pending: HashMap::new(),
        accepted: 0,
        files: interval(CHECK_INTERVAL),
        port: port.clone(),
    };
    let stream = futures_util::stream::unfold(acceptor, |mut acceptor| async move {
        Some((Ok(acceptor.next().await), acceptor))
    });
    Incoming { stream: Box::pin(stream), port }
}

impl Incoming {
    /// What can be known and done about the port while a server has its connections.
    #[must_use]
    pub fn port(&self) -> Port {
        self.port.clone()
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

struct Acceptor {
    listener: TcpListener,
    tls: Option<ServerTls>,
    limits: Limits,
    /// Ended with the acceptor.
    handshakes: JoinSet<Shaken>,
    pending: HashMap<Id, Pending>,
    accepted: u64,
    files: Interval,
    port: Port,
}

/// A handshake that is not over.
struct Pending {
    /// Its place in the order of arrival.
    number: u64,
    remote: SocketAddr,
    abort: AbortHandle,
}

/// From whom a connection was, and what became of it.
type Shaken = (SocketAddr, Result<(Io, Peer), Refusal>);

impl Acceptor {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, remote)) => self.begin(tcp, remote),
                    Err(error) => {
                        self.port.accept_failed(&error);
                        sleep(PAUSE).await;
                    }
                },
                Some(done) = self.handshakes.join_next_with_id() => {
                    if let Some(connection) = self.done(done) {
                        return connection;
                    }
                }
                _ = self.files.tick() => look_at(self.tls.as_ref()),
            }
        }
    }

    fn begin(&mut self, tcp: TcpStream, remote: SocketAddr) {
        if self.pending.len() >= self.limits.handshakes {
            self.displace();
        }
        // Small frames are not to wait for the acknowledgement of those before.
        let _without = tcp.set_nodelay(true);
        let config = self.tls.as_ref().map(ServerTls::config);
        let time = self.limits.handshake_time;
        let shaking = handshake::shake(tcp, remote, config, time);
        let abort = self.handshakes.spawn(async move { (remote, shaking.await) });
        self.accepted += 1;
        self.pending.insert(abort.id(), Pending { number: self.accepted, remote, abort });
    }

    /// Makes room: of the network with most handshakes the oldest goes. An honest client needs some
    /// milliseconds, so the oldest of many is hardly one.
    fn displace(&mut self) {
        let mut crowds: HashMap<IpAddr, usize> = HashMap::new();
        for pending in self.pending.values() {
            *crowds.entry(network(pending.remote.ip())).or_default() += 1;
        }
        let Some((&crowd, _)) = crowds.iter().max_by_key(|(_, members)| **members) else { return };
        let oldest = self
            .pending
            .iter()
            .filter(|(_, pending)| network(pending.remote.ip()) == crowd)
            .min_by_key(|(_, pending)| pending.number)
            .map(|(id, _)| *id);
        if let Some(pending) = oldest.and_then(|id| self.pending.remove(&id)) {
            pending.abort.abort();
            self.port.refuse(
                Refused::Displaced,
                pending.remote,
                "more handshakes at a time than there may be",
            );
        }
    }

    fn done(&mut self, done: Result<(Id, Shaken), JoinError>) -> Option<Connection> {
        let (id, (remote, result)) = match done {
            Ok(done) => done,
            Err(ended) => {
                self.pending.remove(&ended.id());
                return None;
            }
        };
        self.pending.remove(&id);
        let (io, peer) = match result {
            Ok(in_) => in_,
            Err((reason, why)) => {
                self.port.refuse(reason, remote, &why);
                return None;
            }
        };
        if self.port.open() >= self.limits.connections {
            let why =
                format!("{} connections are open, as many as may be", self.limits.connections);
            self.port.refuse(Refused::TooMany, remote, &why);
            return None;
        }
        let open = self.port.let_in(&peer);
        Some(Connection::new(io, peer, self.port.until_cut(), open))
    }
}

/// Elsewhere, for reading files may take its time.
fn look_at(tls: Option<&ServerTls>) {
    if let Some(tls) = tls.cloned() {
        // Several ports may share the files; half the interval tells their looks from the last one
        // of this port.
        tokio::spawn(async move { tls.refresh(CHECK_INTERVAL / 2).await });
    }
}

/// Who is taken for one: an address, or of IPv6 the 64 bits that one customer has at the least.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}
