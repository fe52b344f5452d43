//! What a pod's worker is asked to do.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};

use crate::Program;

#[derive(Debug)]
pub(super) enum Request {
    Crash(String),
    Debug(String, Program),
    Kill {
        asked: SystemTime,
        /// Without grace.
        now: bool,
    },
}

/// A queue that can be waited for together with processes.
#[derive(Debug)]
pub(super) struct Requests {
    queue: Mutex<VecDeque<Request>>,
    /// Readable while there may be something in the queue.
    bell: OwnedFd,
}

impl Requests {
    pub(super) fn new() -> Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { queue: Mutex::default(), bell })
    }

    pub(super) fn push(&self, request: Request) -> Result<()> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(request);
        rustix::io::write(&self.bell, &1_u64.to_ne_bytes()).context("a pod's worker")?;
        Ok(())
    }

    pub(super) fn take(&self) -> VecDeque<Request> {
        // Before the queue, so that what comes in between rings again. Nothing to read is no bell.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::take(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
