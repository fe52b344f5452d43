//! Fan-out of records to whoever traces. A slow subscriber loses its own records, is told how many,
//! and slows nobody.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use orb8_proto::{Event, StreamRequest, event};
use tokio::sync::mpsc;

/// Records that wait for one subscriber. When it is full, that subscriber loses the next ones: at
/// 100,000 records a second this holds for a sixth of a second.
const QUEUE: usize = 16_384;

/// Identifies a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriberId(u64);

/// The subscribers of an agent. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Live {
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
    next_id: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Subscriber {
    id: SubscriberId,
    filter: StreamRequest,
    queue: mpsc::Sender<Event>,
    tally: Arc<Tally>,
}

/// Whose records of a signal somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nobody listens.
    Nothing,
    /// Somebody wants all of them.
    Everything,
    /// Those of pods in these namespaces and with names that begin so; an empty text is any.
    Pods(Vec<(String, String)>),
}

impl Interest {
    /// Whether records of a pod are wanted by somebody.
    #[must_use]
    pub fn may_want(&self, namespace: &str, name: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Pods(pods) => pods.iter().any(|(of_namespace, prefix)| {
                (of_namespace.is_empty() || of_namespace == namespace) && name.starts_with(prefix)
            }),
        }
    }
}

/// What became of one subscriber's records.
#[derive(Debug, Default)]
pub struct Tally {
    delivered: AtomicU64,
    lost: AtomicU64,
    active: AtomicBool,
}

impl Tally {
    /// Records that were queued.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Relaxed)
    }

    /// Records that found the queue full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

/// The subscriber's end.
#[derive(Debug)]
pub struct Subscription {
    /// To speak about it.
    pub id: SubscriberId,
    /// The records, in order.
    pub records: mpsc::Receiver<Event>,
    /// What became of them.
    pub tally: Arc<Tally>,
}

impl Live {
    /// Adds a subscriber that gets nothing until [`Live::activate`].
    #[must_use]
    pub fn subscribe(&self, filter: StreamRequest) -> Subscription {
        let (queue, records) = mpsc::channel(QUEUE);
        let id = SubscriberId(self.next_id.fetch_add(1, Relaxed));
        let tally = Arc::new(Tally::default());
        let subscriber = Subscriber { id, filter, queue, tally: Arc::clone(&tally) };
        self.lock().push(subscriber);
        Subscription { id, records, tally }
    }

    /// From now on the subscriber gets what is published.
    pub fn activate(&self, id: SubscriberId) {
        let subscribers = self.lock();
        if let Some(subscriber) = subscribers.iter().find(|s| s.id == id) {
            subscriber.tally.active.store(true, Relaxed);
        }
    }

    /// Ends a subscription: its receiver gets what is queued and then the end.
    pub fn remove(&self, id: SubscriberId) {
        self.lock().retain(|s| s.id != id);
    }

    /// Ends every subscription.
    pub fn remove_all(&self) {
        self.lock().clear();
    }

    /// Whether anybody would get a record; if not, nobody needs to build it.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        let mut subscribers = self.lock();
        subscribers.retain(|s| !s.queue.is_closed());
        subscribers.iter().any(|s| s.tally.active.load(Relaxed))
    }

    /// What the active subscribers of `signal` want together.
    #[must_use]
    pub fn interest(&self, signal: &str) -> Interest {
        let subscribers = self.lock();
        let mut pods = Vec::new();
        for subscriber in subscribers.iter().filter(|s| s.tally.active.load(Relaxed)) {
            let StreamRequest { signals, namespace, pod_name, .. } = &subscriber.filter;
            if !signals.is_empty() && !signals.iter().any(|s| s == signal) {
                continue;
            }
            if namespace.is_empty() && pod_name.is_empty() {
                return Interest::Everything;
            }
            pods.push((namespace.clone(), pod_name.clone()));
        }
        if pods.is_empty() { Interest::Nothing } else { Interest::Pods(pods) }
    }

    /// Gives `record` to every subscriber that wants it, as `adapt` changes it for that one, unless
    /// `adapt` says that it is not for that one.
    pub fn publish(
        &self,
        signal: &str,
        record: &Event,
        adapt: impl Fn(SubscriberId, &mut Event) -> bool,
    ) {
        for subscriber in self.lock().iter() {
            if !subscriber.tally.active.load(Relaxed) || !wants(&subscriber.filter, signal, record)
            {
                continue;
            }
            let mut record = record.clone();
            if !adapt(subscriber.id, &mut record) {
                continue;
            }
            match subscriber.queue.try_reserve() {
                Ok(place) => {
                    place.send(record);
                    subscriber.tally.delivered.fetch_add(1, Relaxed);
                }
                Err(mpsc::error::TrySendError::Full(())) => {
                    subscriber.tally.lost.fetch_add(1, Relaxed);
                }
                Err(mpsc::error::TrySendError::Closed(())) => {}
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wants(filter: &StreamRequest, signal: &str, record: &Event) -> bool {
    if !filter.signals.is_empty() && !filter.signals.iter().any(|s| s == signal) {
        return false;
    }
    let Some(event::Event::NetworkFlow(flow)) = &record.event else { return true };
    (filter.namespace.is_empty() || filter.namespace == flow.namespace)
        && flow.pod_name.starts_with(&filter.pod_name)
        && (filter.interface.is_empty() || filter.interface == flow.interface)
}

#[cfg(test)]
mod tests {
    use orb8_proto::NetworkFlow;

    use super::*;

    fn record(pod: &str) -> Event {
        let flow =
            NetworkFlow { namespace: "shop".into(), pod_name: pod.into(), ..Default::default() };
        Event { event: Some(event::Event::NetworkFlow(flow)), ..Default::default() }
    }

    #[test]
    fn a_stuck_subscriber_loses_only_its_own_records_and_each_is_counted() {
        let live = Live::default();
        let mut quick = live.subscribe(StreamRequest::default());
        let stuck = live.subscribe(StreamRequest::default());
        live.activate(quick.id);
        live.activate(stuck.id);
        let sent = QUEUE + 100;
        let mut read = 0;
        for _ in 0..sent {
            live.publish("network", &record("web"), |_, _| true);
            while quick.records.try_recv().is_ok() {
                read += 1;
            }
        }
        assert_eq!(read, sent);
        assert_eq!(quick.tally.lost(), 0);
        assert_eq!((stuck.tally.delivered(), stuck.tally.lost()), (QUEUE as u64, 100));
    }

    #[test]
    fn a_subscriber_gets_what_it_asked_for_once_it_is_active() {
        let live = Live::default();
        let filter = StreamRequest { pod_name: "we".into(), ..Default::default() };
        let mut subscription = live.subscribe(filter);
        live.publish("network", &record("web"), |_, _| true);
        assert!(!live.is_heard());
        live.activate(subscription.id);
        assert!(live.is_heard());
        live.publish("network", &record("web"), |_, _| true);
        live.publish("network", &record("db"), |_, _| true);
        live.remove(subscription.id);
        let mut got = Vec::new();
        while let Ok(record) = subscription.records.try_recv() {
            got.push(record);
        }
        assert_eq!(got, [record("web")]);
    }
}
