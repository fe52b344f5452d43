//! One event for one program that is executed.
//!
//! A call of `execve` is told when it is made, and the program that it starts when it has started. The
//! first is early and true of calls that fail, but may not be able to read its arguments: a page that
//! nobody has touched yet is not there. Then the second has them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use orb8_common::syscall::{
    SyscallEvent,
    event_flags::{CUT, STARTED, UNREAD},
};

/// A program starts within this time, or the call has failed.
const STARTS_WITHIN: Duration = Duration::from_secs(1);
/// Calls that were told and of which no start was heard. More are forgotten, which costs events that
/// tell of a program twice.
const MOST: usize = 16_384;

/// An event as the probe tells it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) head: SyscallEvent,
    /// What its arguments point to.
    pub(super) text: Box<[u8]>,
    /// When it was read from the ring.
    pub(super) read: Instant,
}

/// Calls that may be told of a second time, by process.
#[derive(Default)]
pub(super) struct Execs {
    /// Unread, until their program has started or that takes too long.
    held: HashMap<u32, Call>,
    /// Told; the start is no news.
    told: HashMap<u32, Instant>,
}

impl Execs {
    /// Gives `tell` what is to be told now that `call` is heard of. `executes`: it is an `execve`.
    pub(super) fn take(&mut self, call: Call, executes: bool, mut tell: impl FnMut(Call)) {
        let pid = call.head.pid;
        if call.head.flags & STARTED != 0 {
            return match self.held.remove(&pid) {
                Some(held) => tell(started(held, call)),
                None if self.told.remove(&pid).is_some() => {}
                // The call found the ring full, or was another thread's.
                None => tell(call),
            };
        }
        if !executes {
            return tell(call);
        }
        if let Some(failed) = self.held.remove(&pid) {
            tell(failed);
        }
        if call.head.flags & UNREAD != 0 && self.held.len() < MOST {
            self.held.insert(pid, call);
            return;
        }
        if self.told.len() >= MOST {
            self.told.clear();
        }
        self.told.insert(pid, call.read);
        tell(call);
    }

    /// Gives `tell` the calls that have waited for long enough; all of them at the `end`.
    pub(super) fn overdue(&mut self, now: Instant, end: bool, mut tell: impl FnMut(Call)) {
        let over = |call: &Call| now.saturating_duration_since(call.read) > STARTS_WITHIN;
        for (_, call) in self.held.extract_if(|_, call| end || over(call)) {
            tell(call);
        }
        self.told.retain(|_, at| now.saturating_duration_since(*at) <= STARTS_WITHIN);
    }
}

/// The call, with what is known since its program has started.
fn started(mut call: Call, start: Call) -> Call {
    call.head.text = start.head.text;
    call.head.text_size = start.head.text_size;
    call.head.flags = start.head.flags & (CUT | UNREAD);
    call.text = start.text;
    call
}

#[cfg(test)]
mod tests {
    use super::*;
    use orb8_common::Record as _;

    fn call(pid: u32, flags: u32, text: &str) -> Call {
        let bytes = [0; size_of::<SyscallEvent>()];
        let mut head = SyscallEvent::decode(&bytes).unwrap();
        (head.pid, head.flags) = (pid, flags);
        Call { head, text: text.as_bytes().into(), read: Instant::now() }
    }

    fn told(execs: &mut Execs, calls: &[(u32, u32, &str)]) -> Vec<(u32, u32, String)> {
        let mut told = Vec::new();
        for &(pid, flags, text) in calls {
            execs.take(call(pid, flags, text), true, |call| told.push(shown(&call)));
        }
        told
    }

    fn shown(call: &Call) -> (u32, u32, String) {
        (call.head.pid, call.head.flags, String::from_utf8(call.text.to_vec()).unwrap())
    }

    #[test]
    fn a_program_is_told_once_whether_its_call_could_be_read_or_not() {
        let execs = &mut Execs::default();
        let heard = [(1, 0, "a"), (2, UNREAD, ""), (1, STARTED, "a"), (2, STARTED | CUT, "b")];
        assert_eq!(told(execs, &heard), [(1, 0, "a".into()), (2, CUT, "b".into())]);
        assert!(execs.held.is_empty() && execs.told.is_empty());
    }

    #[test]
    fn a_start_without_its_call_is_told() {
        assert_eq!(told(&mut Execs::default(), &[(1, STARTED, "a")]), [(1, STARTED, "a".into())]);
    }

    #[test]
    fn a_call_that_fails_is_told_with_the_next_one_or_when_its_time_is_over() {
        let execs = &mut Execs::default();
        let heard = [(1, UNREAD, "first"), (1, UNREAD, "second")];
        assert_eq!(told(execs, &heard), [(1, UNREAD, "first".into())]);
        let mut late = Vec::new();
        execs.overdue(Instant::now(), false, |call| late.push(shown(&call)));
        assert_eq!(late, []);
        let later = Instant::now() + STARTS_WITHIN * 2;
        execs.overdue(later, false, |call| late.push(shown(&call)));
        assert_eq!(late, [(1, UNREAD, "second".into())]);
    }

    #[test]
    fn what_does_not_execute_is_told_at_once() {
        let (mut execs, mut told) = (Execs::default(), 0);
        execs.take(call(1, UNREAD, ""), false, |_| told += 1);
        assert_eq!(told, 1);
    }
}
