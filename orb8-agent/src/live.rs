//! Fan-out of records to whoever traces. A slow subscriber loses its own records, is told how many,
//! and slows nobody.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use orb8_proto::{Event, StreamRequest, event};
use tokio::sync::mpsc;

/// Records that wait for one subscriber. When it is full, that subscriber loses the next ones: at
/// 100,000 records a second this holds for a sixth of a second.
const QUEUE: usize = 16_384;

/// Identifies a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Signals whose records it gets by now.
    active: Vec<&'static str>,
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
        let tally_here = Arc::clone(&tally);
        let subscriber = Subscriber { id, filter, queue, active: Vec::new(), tally: tally_here };
        self.lock().push(subscriber);
        Subscription { id, records, tally }
    }

    /// From now on the subscriber gets what `signal` publishes.
    pub fn activate(&self, id: SubscriberId, signal: &'static str) {
        if let Some(subscriber) = self.lock().iter_mut().find(|s| s.id == id) {
            subscriber.active.push(signal);
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

    /// Whether anybody would get a record of `signal`; if not, nobody needs to build it.
    #[must_use]
    pub fn is_heard(&self, signal: &str) -> bool {
        let mut subscribers = self.lock();
        subscribers.retain(|s| !s.queue.is_closed());
        subscribers.iter().any(|s| s.hears(signal))
    }

    /// The active subscribers of `signal`, and what each asked for.
    #[must_use]
    pub fn listeners(&self, signal: &str) -> Vec<(SubscriberId, StreamRequest)> {
        let mut subscribers = self.lock();
        subscribers.retain(|s| !s.queue.is_closed());
        let active = subscribers.iter().filter(|s| s.hears(signal));
        active.map(|s| (s.id, s.filter.clone())).collect()
    }

    /// What the active subscribers of `signal` want together.
    #[must_use]
    pub fn interest(&self, signal: &str) -> Interest {
        let subscribers = self.lock();
        let mut pods = Vec::new();
        for subscriber in subscribers.iter().filter(|s| s.hears(signal)) {
            let StreamRequest { namespace, pod_name, .. } = &subscriber.filter;
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
            if !subscriber.hears(signal) || !wants(&subscriber.filter, record) {
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

impl Subscriber {
    fn hears(&self, signal: &str) -> bool {
        self.active.contains(&signal)
    }
}

fn wants(filter: &StreamRequest, record: &Event) -> bool {
    let of_pod = |namespace: &str, pod: &str| {
        (filter.namespace.is_empty() || filter.namespace == namespace)
            && pod.starts_with(&filter.pod_name)
    };
    match &record.event {
        Some(event::Event::NetworkFlow(flow)) => {
            of_pod(&flow.namespace, &flow.pod_name)
                && (filter.interface.is_empty() || filter.interface == flow.interface)
        }
        Some(event::Event::Syscall(call)) => of_pod(&call.namespace, &call.pod_name),
        Some(event::Event::Anomaly(anomaly)) => of_pod(&anomaly.namespace, &anomaly.pod_name),
        _ => true,
    }
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
        live.activate(quick.id, "network");
        live.activate(stuck.id, "network");
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
        assert!(!live.is_heard("network"));
        live.activate(subscription.id, "network");
        assert!(live.is_heard("network") && !live.is_heard("syscall"));
        live.publish("syscall", &record("web"), |_, _| true);
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
