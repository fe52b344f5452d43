//! Lines that a child writes, read when somebody wants them: hundreds of children need no thread each.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ChildStdout;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The reading end of a child's standard output.
#[derive(Debug)]
pub(crate) struct Lines {
    pipe: ChildStdout,
    /// Read, but not given as a line yet.
    rest: Vec<u8>,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Text(String),
    /// The writer has closed its end, which is also how it ends.
    End,
    /// Nothing whole within the time.
    Late,
}

impl Lines {
    pub(crate) fn new(pipe: ChildStdout) -> Self {
        Self { pipe, rest: Vec::new() }
    }

    /// The next line, if it comes in time.
    pub(crate) fn next(&mut self, limit: Duration) -> Result<Line> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(Line::Text(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if !any_readable(&[self.pipe.as_fd()], Some(deadline))? {
                return Ok(Line::Late);
            }
            let mut buffer = [0; 4096];
            match self.pipe.read(&mut buffer) {
                Ok(0) => return Ok(Line::End),
                Ok(length) => self.rest.extend(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What is left to be read, by whoever wants it.
    pub(crate) fn into_pipe(self) -> ChildStdout {
        self.pipe
    }
}

/// Whether one of them has something to read, or is at its end, before the deadline; without one it waits for ever.
pub(crate) fn any_readable(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose()?;
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut polled, left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
