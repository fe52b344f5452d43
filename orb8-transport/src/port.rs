//! A port as a whole: whom it refused, and how it ends.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{connection::Peer, handshake::Refused};

/// Between two lines of the log about one kind of refusal.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A port that is being served. Clones are the same port.
#[derive(Clone, Debug, Default)]
pub struct Port {
    inner: Arc<Mutex<Inner>>,
    cut: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    let_in: u64,
    open: usize,
    refused: BTreeMap<Refused, u64>,
    logged: BTreeMap<Refused, Logged>,
    accept_logged: Option<Instant>,
}

#[derive(Debug)]
struct Logged {
    last: Instant,
    since: u64,
}

impl Port {
    /// How many connections were let in.
    #[must_use]
    pub fn let_in_total(&self) -> u64 {
        self.lock().let_in
    }

    /// How many connections are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lock().open
    }

    /// How many connections were refused, by reason.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<Refused, u64> {
        self.lock().refused.clone()
    }

    /// Runs a server until `stop` says so, and then until its connections have ended, or `grace`
    /// later at the latest, when they are cut: a client that takes no more bytes holds up nobody.
    /// `serving` is to be told by the same token.
    pub async fn drain<T>(
        &self,
        serving: impl Future<Output = T>,
        stop: CancellationToken,
        grace: Duration,
    ) -> T {
        let late = async {
            stop.cancelled().await;
            sleep(grace).await;
        };
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended,
            () = late => self.cut.cancel(),
        }
        serving.await
    }

    pub(crate) fn until_cut(&self) -> WaitForCancellationFutureOwned {
        self.cut.clone().cancelled_owned()
    }

    /// Counts a connection, which is open for as long as what is returned is kept.
    pub(crate) fn let_in(&self, peer: &Peer) -> Open {
        tracing::debug!("{peer}: connected");
        let mut inner = self.lock();
        inner.let_in += 1;
        inner.open += 1;
        drop(inner);
        Open(self.clone())
    }

    /// Counts a refusal and logs it, unless one like it was logged just now.
    pub(crate) fn refuse(&self, reason: Refused, remote: SocketAddr, why: &str) {
        let mut inner = self.lock();
        *inner.refused.entry(reason).or_default() += 1;
        if reason == Refused::Gone {
            tracing::debug!("{remote}: {why}");
            return;
        }
        let now = Instant::now();
        let more = match inner.logged.get_mut(&reason) {
            Some(logged) if now.duration_since(logged.last) < LOG_INTERVAL => {
                logged.since += 1;
                return;
            }
            Some(logged) => logged.since,
            None => 0,
        };
        inner.logged.insert(reason, Logged { last: now, since: 0 });
        drop(inner);
        if more == 0 {
            tracing::warn!("{remote}: refused: {why}");
        } else {
            tracing::warn!("{remote}: refused: {why} (and {more} others since the last such line)");
        }
    }

    pub(crate) fn accept_failed(&self, error: &io::Error) {
        let now = Instant::now();
        let mut inner = self.lock();
        let recent = |last: Instant| now.duration_since(last) < LOG_INTERVAL;
        if !inner.accept_logged.is_some_and(recent) {
            inner.accept_logged = Some(now);
            tracing::error!("cannot accept connections: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open connection, counted.
#[derive(Debug)]
pub(crate) struct Open(Port);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
    }
}
