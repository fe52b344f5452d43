//! The connections of a port, and who of them makes room for another.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::AbortHandle;

/// Connections at a time. One more displaces the oldest of the address that has the most: an honest
/// client has asked within milliseconds, and is not among many of its address.
pub(super) const CONNECTIONS: usize = 256;
/// Connections that have asked: some Prometheis and a kubelet. An answer is held until it is read, and
/// may be of megabytes. One more displaces the one that asked first, in the same way.
const ASKED: usize = 16;

/// Every open connection.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Of arrivals and of requests.
    counter: u64,
    open: HashMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    address: IpAddr,
    /// `None`: it is being spawned.
    abort: Option<AbortHandle>,
    /// When it asked last; `None`: not yet.
    asked: Option<u64>,
}

/// A connection's place, which it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
}

impl Crowd {
    /// Takes in a connection, which `spawn` serves, and makes room for it.
    pub(super) fn let_in(
        self: &Arc<Self>,
        address: IpAddr,
        spawn: impl FnOnce(Place) -> AbortHandle,
    ) {
        let mut inner = self.lock();
        if inner.open.len() >= CONNECTIONS {
            inner.displace(|number, _| Some(number));
        }
        inner.counter += 1;
        let number = inner.counter;
        inner.open.insert(number, Open { address, abort: None, asked: None });
        // A runtime that ends drops what is spawned at once, and the place with it.
        drop(inner);
        let abort = spawn(Place { crowd: Arc::clone(self), number });
        match self.lock().open.get_mut(&number) {
            Some(open) => open.abort = Some(abort),
            // It is over, or was displaced meanwhile.
            None => abort.abort(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Ends the first, by `order`, of the address that has the most of those that have one.
    fn displace(&mut self, order: impl Fn(u64, &Open) -> Option<u64>) {
        let mut addresses: HashMap<IpAddr, (usize, u64, u64)> = HashMap::new();
        for (number, open) in &self.open {
            let Some(at) = order(*number, open) else { continue };
            let (members, first, who) = addresses.entry(open.address).or_insert((0, at, *number));
            *members += 1;
            if at < *first {
                (*first, *who) = (at, *number);
            }
        }
        let most = addresses.into_values().max_by_key(|(members, ..)| *members);
        if let Some(open) = most.and_then(|(_, _, number)| self.open.remove(&number)) {
            tracing::debug!("metrics: {}: displaced by newer connections", open.address);
            if let Some(abort) = open.abort {
                abort.abort();
            }
        }
    }
}

impl Place {
    /// Notes that there is a request.
    pub(super) fn asks(&self) {
        let mut inner = self.crowd.lock();
        inner.counter += 1;
        let now = inner.counter;
        if let Some(open) = inner.open.get_mut(&self.number) {
            open.asked = Some(now);
        }
        if inner.open.values().filter(|open| open.asked.is_some()).count() > ASKED {
            inner.displace(|_, open| open.asked);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.lock().open.remove(&self.number);
    }
}
