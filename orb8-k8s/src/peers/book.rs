//! Objects of one kind, found by their addresses at a time; those that are gone answer for a while.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt::Debug,
    hash::Hash,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use super::Named;
// UIDs of all kinds have one form.
use crate::PodUid as Uid;
use crate::{
    addresses::{Addresses, Tenure, given_up_by},
    api::{Query, Resource},
    contact::Contact,
    manifest::times::SECOND,
    store::Keep,
    watcher::Mirror,
};

/// A kind of objects that have addresses.
pub(super) trait Addressed: Resource {
    /// What it is found by.
    type Address: Clone + Debug + Eq + Hash + Send + Sync;
    /// As messages call them.
    const WHAT: &'static str;
    /// Where the API lists them.
    const PATH: &'static str;

    /// Whether an object has this address for as long as it exists.
    fn is_for_life(address: &Self::Address) -> bool;
    /// What is needed of the object. The error says what was expected.
    fn read(self) -> Result<Facts<Self::Address>, String>;
}

/// What an object says about who is where.
#[derive(Debug)]
pub(super) struct Facts<A> {
    pub(super) uid: Uid,
    pub(super) named: Arc<Named>,
    /// Unix time in nanoseconds, to the second.
    pub(super) created: Option<i64>,
    pub(super) addresses: Vec<A>,
}

/// Every object of a kind. Its watcher writes it, everybody else reads.
pub(super) struct Book<T: Addressed> {
    known: RwLock<Known<T::Address>>,
    generation: AtomicU64,
    contact: Contact,
    keep: Keep,
}

struct Known<A> {
    objects: HashMap<Uid, Entry<A>>,
    by_address: Addresses<A, Uid>,
    /// What is to be forgotten, in the order of its time.
    gone: VecDeque<(i64, Uid)>,
}

struct Entry<A> {
    named: Arc<Named>,
    addresses: Vec<A>,
    /// Addresses that it had before.
    former: Vec<A>,
    gone: Option<i64>,
}

impl<T: Addressed> Book<T> {
    /// Nobody yet. Who is gone answers for as long as `keep` says.
    pub(super) fn new(keep: Keep) -> Self {
        let known =
            Known { objects: HashMap::new(), by_address: Addresses::default(), gone: [].into() };
        Self {
            known: RwLock::new(known),
            generation: AtomicU64::new(0),
            contact: Contact::default(),
            keep,
        }
    }

    /// The names of all objects that exist.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        let known = self.read();
        let there = known.objects.values().filter(|entry| entry.gone.is_none());
        there.map(|entry| Arc::clone(&entry.named.name)).collect()
    }

    /// Who had this address at that time, if that is beyond doubt.
    pub(super) fn at(&self, address: &T::Address, at: i64) -> Option<Arc<Named>> {
        let known = self.read();
        let uid = known.by_address.owner(address, at)?;
        known.objects.get(&uid).map(|entry| Arc::clone(&entry.named))
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn facts(object: T) -> Option<Facts<T::Address>> {
        object.read().inspect_err(|why| tracing::warn!("{}: left out: {why}", T::WHAT)).ok()
    }

    fn read(&self) -> RwLockReadGuard<'_, Known<T::Address>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known<T::Address>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn news_if(&self, news: bool) {
        self.generation.fetch_add(u64::from(news), Ordering::Release);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        let known = self.read();
        (known.objects.len(), known.by_address.len())
    }
}

impl<T: Addressed> Mirror for Book<T> {
    type Object = T;

    fn what(&self) -> &'static str {
        T::WHAT
    }

    fn query(&self) -> Query {
        Query::all(T::PATH)
    }

    fn contact(&self) -> &Contact {
        &self.contact
    }

    fn listed(&self, objects: Vec<T>, now: i64) {
        let mut known = self.write();
        let mut listed = HashSet::new();
        let mut news = false;
        for facts in objects.into_iter().filter_map(Self::facts) {
            listed.insert(facts.uid);
            news |= known.apply::<T>(facts, now);
        }
        let there = known.objects.iter().filter(|(_, entry)| entry.gone.is_none());
        let missing: Vec<Uid> =
            there.map(|(uid, _)| *uid).filter(|uid| !listed.contains(uid)).collect();
        for uid in missing {
            news |= known.end(uid, now);
        }
        drop(known);
        self.news_if(news);
    }

    fn changed(&self, object: T, now: i64) {
        if let Some(facts) = Self::facts(object) {
            let news = self.write().apply::<T>(facts, now);
            self.news_if(news);
        }
    }

    fn deleted(&self, object: T, now: i64) {
        if let Some(facts) = Self::facts(object) {
            let news = self.write().end(facts.uid, now);
            self.news_if(news);
        }
    }

    fn sweep(&self, now: i64) {
        self.write().sweep(self.keep.after(now), self.keep.most);
    }
}

impl<A: Clone + Eq + Hash> Known<A> {
    /// True when an answer may have changed.
    fn apply<T: Addressed<Address = A>>(&mut self, facts: Facts<A>, now: i64) -> bool {
        let Facts { uid, named, created, addresses } = facts;
        let known = self.objects.remove(&uid);
        let had = known.as_ref().filter(|known| known.gone.is_none());
        let mut news = had.is_none_or(|known| known.named != named);
        let created = created.unwrap_or(now).min(now);
        for address in &addresses {
            if had.is_some_and(|known| known.addresses.contains(address)) {
                continue;
            }
            // An object may have got an address that is not its own for life just now.
            let since = if T::is_for_life(address) { (created + SECOND).min(now) } else { now };
            let from = if had.is_some() { now } else { created };
            let tenure = Tenure { maybe: from..i64::MAX, surely: since.max(from)..i64::MAX };
            news |= self.by_address.set(address.clone(), uid, tenure);
        }
        let (mut former, before) =
            known.map_or_else(Default::default, |known| (known.former, known.addresses));
        former.retain(|address| !addresses.contains(address));
        for address in before.into_iter().filter(|address| !addresses.contains(address)) {
            self.by_address.end(&address, uid, None, given_up_by(None, now));
            former.push(address);
            news = true;
        }
        self.objects.insert(uid, Entry { named, addresses, former, gone: None });
        news
    }

    /// True when an answer may have changed.
    fn end(&mut self, uid: Uid, now: i64) -> bool {
        let Some(entry) = self.objects.get_mut(&uid).filter(|entry| entry.gone.is_none()) else {
            return false;
        };
        entry.gone = Some(now);
        for address in &entry.addresses {
            self.by_address.end(address, uid, None, given_up_by(None, now));
        }
        self.gone.push_back((now, uid));
        true
    }

    fn sweep(&mut self, before: i64, most: usize) {
        while let Some(&(at, uid)) = self.gone.front() {
            if at >= before && self.gone.len() <= most {
                break;
            }
            self.gone.pop_front();
            // It may have come back since.
            if self.objects.get(&uid).is_some_and(|entry| entry.gone == Some(at))
                && let Some(entry) = self.objects.remove(&uid)
            {
                for address in entry.addresses.iter().chain(&entry.former) {
                    self.by_address.forget(address, uid);
                }
            }
        }
    }
}
