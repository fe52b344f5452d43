//! Reads records from an event ring, in batches, when the signal's timer says so.
//!
//! The probe wakes nobody up: a wake-up costs the traced task microseconds. Whoever drains asks
//! again sooner when there was much to read.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::maps::{MapData, RingBuf};
use orb8_common::Record;
use tokio::io::unix::AsyncFd;

use crate::ledger::{Amount, Ledger, LossPoint, Stage};

/// A ring of one kind of record.
pub struct Collector {
    ring: RingBuf<MapData>,
    ledger: Ledger,
    signal: &'static str,
    delivered: u64,
}

impl Collector {
    /// Reads `ring`; records that cannot be decoded go to `ledger`.
    #[must_use]
    pub fn new(ring: RingBuf<MapData>, ledger: Ledger, signal: &'static str) -> Self {
        Self { ring, ledger, signal, delivered: 0 }
    }

    /// Hands at most `limit` records to `visit`; answers how many there were.
    pub fn drain<T: Record>(&mut self, limit: usize, mut visit: impl FnMut(T)) -> usize {
        self.drain_with_rest(limit, |record, _| visit(record))
    }

    /// The same for items whose record is followed by bytes that it tells about.
    pub fn drain_with_rest<T: Record>(
        &mut self,
        limit: usize,
        mut visit: impl FnMut(T, &[u8]),
    ) -> usize {
        let mut read = 0;
        while read < limit
            && let Some(item) = self.ring.next()
        {
            read += 1;
            match T::decode(&item) {
                Some(record) => {
                    self.delivered += 1;
                    visit(record, item.get(size_of::<T>()..).unwrap_or_default());
                }
                None => self.ledger.lost(
                    LossPoint {
                        signal: self.signal,
                        stage: Stage::Collect,
                        reason: "short_record",
                    },
                    Amount::records(1),
                ),
            }
        }
        read
    }

    /// Readable when there is something to drain, for probes that wake their reader up. Needs a tokio
    /// runtime.
    #[expect(unsafe_code, reason = "only the caller can promise that a descriptor stays open")]
    pub fn readable(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let descriptor = self.ring.as_fd().try_clone_to_owned()?;
        // SAFETY: it owns an open descriptor, which nobody else can close or replace.
        unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
    }

    /// Records handed on so far.
    #[must_use]
    pub const fn delivered(&self) -> u64 {
        self.delivered
    }
}
