//! Keeping what is known of a kind of objects true: list, watch, and again whenever the API does not
//! do as it should.
//!
//! Of a kind there is one list and one watch, that goes on where the last one ended. What is known
//! stays known while the API is away.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::{
    KubernetesSource,
    api::{Api, Event, Failure, ListFrom, Listed, Query, Remedy, Resource},
    backoff::Backoff,
    contact::{Contact, WatchState},
    store::PodStore,
};

/// How often what is gone for long enough is forgotten.
const SWEEP: Duration = Duration::from_secs(5);

/// A watch that ends sooner was not meant to be one.
const SHORT: Duration = Duration::from_millis(500);

/// How patient the watcher is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The first wait after a failure.
    pub first_wait: Duration,
    /// The longest wait.
    pub last_wait: Duration,
    /// How long a watch lasts before it is asked for again.
    pub watch: Duration,
    /// How long the API may be silent. It sends a bookmark about every minute.
    pub silence: Duration,
    /// After this long away, versions are not trusted any more: the API may have been restored
    /// from a backup, and number its changes from there.
    pub trust: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(100),
            last_wait: Duration::from_secs(30),
            watch: Duration::from_secs(290),
            silence: Duration::from_secs(150),
            trust: Duration::from_secs(30),
        }
    }
}

/// What a watcher keeps true: objects of one kind. `now` is Unix time in nanoseconds.
pub(super) trait Mirror: Send + Sync {
    /// The objects.
    type Object: Resource;
    /// As messages call them.
    fn what(&self) -> &'static str;
    /// What to ask the API for.
    fn query(&self) -> Query;
    /// How the watch is doing.
    fn contact(&self) -> &Contact;
    /// These are all that there are: others are gone.
    fn listed(&self, objects: Vec<Self::Object>, now: i64);
    /// One is there, as it is now.
    fn changed(&self, object: Self::Object, now: i64);
    /// One was deleted; this is the last that is told of it.
    fn deleted(&self, object: Self::Object, now: i64);
    /// Time to forget what has been gone for long enough.
    fn sweep(&self, now: i64);
}

/// Watches the pods of a node. It does nothing before it is [run](PodWatcher::run).
pub struct PodWatcher(Watcher<PodStore>);

impl PodWatcher {
    /// A watcher of the pods that are scheduled to `node`.
    #[must_use]
    pub fn new(source: KubernetesSource, node: &str, timing: Timing) -> Self {
        Self(Watcher::new(source, Arc::new(PodStore::new(node)), timing))
    }

    /// What it knows, now and later.
    #[must_use]
    pub fn pods(&self) -> Arc<PodStore> {
        Arc::clone(self.0.mirror())
    }

    /// Watches until `token` says stop.
    pub async fn run(self, token: CancellationToken) {
        self.0.run(token).await;
    }
}

/// Keeps a mirror true. It does nothing before it is [run](Watcher::run).
pub(super) struct Watcher<M> {
    source: KubernetesSource,
    timing: Timing,
    mirror: Arc<M>,
}

/// How far a watcher has come with the API.
struct Course {
    api: Option<Api>,
    /// Everything up to this version is known.
    version: Option<String>,
    from: ListFrom,
    /// In a row.
    failures: u32,
}

impl<M: Mirror> Watcher<M> {
    pub(super) fn new(source: KubernetesSource, mirror: Arc<M>, timing: Timing) -> Self {
        Self { source, timing, mirror }
    }

    /// What it keeps true.
    pub(super) fn mirror(&self) -> &Arc<M> {
        &self.mirror
    }

    /// Watches until `token` says stop.
    pub(super) async fn run(self, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.watch_for_ever() => {}
            () = self.sweep_for_ever() => {}
        }
    }

    async fn sweep_for_ever(&self) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            self.mirror.sweep(unix_ns());
        }
    }

    async fn watch_for_ever(&self) {
        let mut course = Course { api: None, version: None, from: ListFrom::Cache, failures: 0 };
        let mut backoff = Backoff::new(self.timing.first_wait, self.timing.last_wait);
        loop {
            let began = Instant::now();
            let ended = self.watch_once(&mut course).await;
            let lived = began.elapsed();
            let failure = match ended {
                // A watch that ends when its time is up is as it should be.
                Ok(()) if lived >= SHORT => None,
                Ok(()) => Some(Failure::ended_at_once()),
                Err(failure) => Some(failure),
            };
            if let Some(failure) = &failure {
                self.failed(failure, &mut course);
            }
            let asked = failure.and_then(|failure| failure.retry_after);
            tokio::time::sleep(backoff.after(lived, asked)).await;
        }
    }

    fn failed(&self, failure: &Failure, course: &mut Course) {
        self.mirror.contact().away(&failure.reason);
        course.failures += 1;
        match failure.remedy {
            Remedy::Resume => {}
            Remedy::Reconnect => course.api = None,
            Remedy::List => (course.version, course.from) = (None, ListFrom::Cache),
            Remedy::ListNewest => (course.version, course.from) = (None, ListFrom::Newest),
        }
        if let WatchState::Away { since, .. } = self.mirror.contact().state()
            && since.elapsed() > self.timing.trust
        {
            course.version = None;
        }
        // One failure is every day's business; an API that stays away is told once.
        match course.failures {
            2 => tracing::warn!("{}: the API is away: {}", self.mirror.what(), failure.reason),
            _ => tracing::debug!("{}: {}", self.mirror.what(), failure.reason),
        }
    }

    /// Lists if it must, and watches until the watch ends.
    async fn watch_once(&self, course: &mut Course) -> Result<(), Failure> {
        let (mirror, what) = (&self.mirror, self.mirror.what());
        let api = match &mut course.api {
            Some(api) => api,
            none => none.insert(Api::new(&self.source, mirror.query(), self.timing.silence).await?),
        };
        let version = match &mut course.version {
            Some(version) => version,
            none => {
                let Listed { version, objects } = api.list(course.from).await?;
                tracing::debug!(objects = objects.len(), version, "{what}: listed");
                mirror.listed(objects, unix_ns());
                mirror.contact().heard();
                none.insert(version)
            }
        };
        let mut events = api.watch::<M::Object>(version, self.timing.watch).await?;
        mirror.contact().connected();
        if course.failures > 1 {
            tracing::info!("{what}: the API is back");
        }
        course.failures = 0;
        while let Some(event) = events.next().await? {
            let (Event::Added(object)
            | Event::Modified(object)
            | Event::Deleted(object)
            | Event::Bookmark(object)) = &event
            else {
                continue;
            };
            if let Some(newer) = object.version() {
                newer.clone_into(version);
            }
            // The cache was good enough, after all.
            course.from = ListFrom::Cache;
            match event {
                Event::Added(object) | Event::Modified(object) => {
                    mirror.changed(object, unix_ns());
                }
                Event::Deleted(object) => mirror.deleted(object, unix_ns()),
                Event::Bookmark(_) | Event::Error(_) => {}
            }
        }
        Ok(())
    }
}

/// The time now, in nanoseconds since the Unix epoch.
#[must_use]
pub fn unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
