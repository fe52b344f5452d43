//! Ids that somebody asked for and nobody knew: a reason to ask the runtime again, and not for ever.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use orb8_k8s::{ContainerId, PodUid};
use tokio::sync::Notify;

/// An id that is not known after so many questions belongs to somebody else's container. It is
/// found all the same when a later list has it.
const TRIES: u32 = 4;
/// Ids that are remembered. When there are more all are forgotten: that costs some lists, no names.
const REMEMBERED: usize = 1_024;
/// Between the first and the second question for an id; it doubles. A runtime lists a sandbox only
/// some time after it made its cgroup.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    Pod(PodUid),
    Container(ContainerId),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct WantedIds {
    asked: Mutex<HashMap<Wanted, (u32, Instant)>>,
    news: Notify,
}

impl WantedIds {
    /// Somebody asked for `id` in vain.
    pub(super) fn ask(&self, id: Wanted) {
        let now = Instant::now();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= REMEMBERED && !asked.contains_key(&id) {
            asked.clear();
        }
        let (times, next) = asked.entry(id).or_insert((0, now));
        if *times < TRIES && now >= *next {
            *next = now + PAUSE * 2u32.pow(*times);
            *times += 1;
            self.news.notify_one();
        }
    }

    /// Waits until the runtime should be asked again.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// It is another runtime, or the same after a restart: everything may be asked again.
    pub(super) fn forget(&self) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn id(n: u32) -> Wanted {
        Wanted::Container(format!("{n:064x}").parse().unwrap())
    }

    #[test]
    fn each_unknown_id_is_a_reason_to_ask_and_not_at_once_again() {
        let wanted = WantedIds::default();
        let has_news = || wanted.news().now_or_never().is_some();
        assert!(!has_news());
        wanted.ask(id(1));
        assert!(has_news() && !has_news());
        wanted.ask(id(1));
        assert!(!has_news(), "it was asked for a moment ago");
        wanted.ask(id(2));
        assert!(has_news());
        wanted.forget();
        wanted.ask(id(1));
        assert!(has_news());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let wanted = WantedIds::default();
        for n in 0..3_000 {
            wanted.ask(id(n));
        }
        assert!(wanted.asked.lock().unwrap().len() <= REMEMBERED);
    }
}
