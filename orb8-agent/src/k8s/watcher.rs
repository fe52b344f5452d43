//! Keeping a [`PodStore`] true: list, watch, and again whenever the API does not do as it should.
//!
//! Only this node's pods are asked for, by one list and one watch that goes on where the last one
//! ended. What is known stays known while the API is away.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::{
    KubernetesSource,
    api::{Api, Event, Failure, ListFrom, Listed, Remedy},
    backoff::Backoff,
    manifest::{Object, Observed},
    store::{PodStore, WatchState},
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

/// Watches the pods of a node. It does nothing before it is [run](PodWatcher::run).
pub struct PodWatcher {
    source: KubernetesSource,
    node: String,
    timing: Timing,
    pods: Arc<PodStore>,
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

impl PodWatcher {
    /// A watcher of the pods that are scheduled to `node`.
    #[must_use]
    pub fn new(source: KubernetesSource, node: &str, timing: Timing) -> Self {
        Self { source, node: node.to_owned(), timing, pods: Arc::new(PodStore::new(node)) }
    }

    /// What it knows, now and later.
    #[must_use]
    pub fn pods(&self) -> Arc<PodStore> {
        Arc::clone(&self.pods)
    }

    /// Watches until `token` says stop.
    pub async fn run(self, token: CancellationToken) {
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
            self.pods.sweep(unix_ns());
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
        self.pods.away(&failure.reason);
        course.failures += 1;
        match failure.remedy {
            Remedy::Resume => {}
            Remedy::Reconnect => course.api = None,
            Remedy::List => (course.version, course.from) = (None, ListFrom::Cache),
            Remedy::ListNewest => (course.version, course.from) = (None, ListFrom::Newest),
        }
        if let WatchState::Away { since, .. } = self.pods.state()
            && since.elapsed() > self.timing.trust
        {
            course.version = None;
        }
        // One failure is every day's business; an API that stays away is told once.
        match course.failures {
            2 => tracing::warn!("pods: the API is away: {}", failure.reason),
            _ => tracing::debug!("pods: {}", failure.reason),
        }
    }

    /// Lists if it must, and watches until the watch ends.
    async fn watch_once(&self, course: &mut Course) -> Result<(), Failure> {
        let api = match &mut course.api {
            Some(api) => api,
            none => none.insert(Api::new(&self.source, &self.node, self.timing.silence).await?),
        };
        let version = match &mut course.version {
            Some(version) => version,
            none => {
                let Listed { version, pods } = api.list(course.from).await?;
                let pods: Vec<_> = pods.into_iter().filter_map(|pod| self.observe(pod)).collect();
                tracing::debug!(pods = pods.len(), version, "pods: listed");
                self.pods.replace(pods, unix_ns());
                self.pods.heard();
                none.insert(version)
            }
        };
        let mut events = api.watch(version, self.timing.watch).await?;
        self.pods.connected();
        if course.failures > 1 {
            tracing::info!("pods: the API is back");
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
            self.take(event);
        }
        Ok(())
    }

    fn take(&self, event: Event) {
        let now = unix_ns();
        match event {
            Event::Added(object) | Event::Modified(object) => {
                if let Some(observed) = self.observe(object) {
                    self.pods.apply(observed, now);
                }
            }
            Event::Deleted(object) => {
                if let Some(observed) = self.observe(object) {
                    self.pods.delete(observed, now);
                }
            }
            Event::Bookmark(_) | Event::Error(_) => {}
        }
    }

    /// A pod of this node, whatever the API sends.
    fn observe(&self, object: Object) -> Option<Observed> {
        let observed = object
            .observe("from the API")
            .inspect_err(|why| tracing::warn!("pods: left out: {why}"))
            .ok()?;
        for problem in &observed.problems {
            tracing::debug!("pods: {problem}");
        }
        (*observed.pod.node == *self.node).then_some(observed)
    }
}

fn unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
