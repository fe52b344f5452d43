//! A watch: changes after a version, as events.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::answer::{Refusal, status_object, wanted_version};
use super::body::{Closed, Writer};
use super::faults::Gone;
use super::kinds::{Kind, Resource};
use super::selector::Selector;
use super::store::{Change, padded};
use super::{LoggedRequest, Shared, Signals, lock};

/// How long a watch lasts whose client did not say.
const DEFAULT_LIMIT: Duration = Duration::from_secs(30 * 60);

/// What a client watches, and how far it has come.
pub(super) struct Watch {
    kind: &'static Kind,
    namespace: String,
    selector: Selector,
    bookmarks: bool,
    ends: Instant,
    version: u64,
    /// Objects that were there when it began, for a watch from nowhere.
    initial: Vec<Arc<Value>>,
    gone: bool,
}

impl Watch {
    pub(super) fn new(
        shared: &Shared,
        request: &LoggedRequest,
        asked: &Resource<'_>,
        selector: Selector,
    ) -> Result<Self, Refusal> {
        let seconds = request.parameter("timeoutSeconds").and_then(|text| text.parse().ok());
        let limit = seconds.map_or(DEFAULT_LIMIT, Duration::from_secs);
        let store = lock(&shared.store);
        let mut watch = Self {
            kind: asked.kind,
            namespace: asked.namespace.to_owned(),
            bookmarks: request.parameter("allowWatchBookmarks") == Some("true"),
            ends: Instant::now() + limit,
            version: wanted_version(request)?,
            initial: Vec::new(),
            gone: false,
            selector,
        };
        if watch.version == 0 {
            watch.version = store.version();
            watch.initial = store.list(watch.kind, &watch.namespace);
            watch.initial.retain(|object| watch.selector.matches(object));
        } else if store.is_gone(watch.version) {
            watch.gone = true;
            if lock(&shared.faults).gone == Gone::Status {
                return Err((StatusCode::GONE, too_old(watch.version)));
            }
        }
        Ok(watch)
    }

    /// The event that a change is for this watch: an object that begins to match is added.
    fn event(&self, change: &Change) -> Option<(&'static str, Arc<Value>)> {
        let ours = |object: &&Arc<Value>| {
            (self.namespace.is_empty() || self.kind.namespace_of(object) == self.namespace)
                && self.selector.matches(object)
        };
        let (before, after) =
            (change.before.as_ref().filter(ours), change.after.as_ref().filter(ours));
        match (before, after) {
            (None, Some(object)) => Some(("ADDED", Arc::clone(object))),
            (Some(_), Some(object)) => Some(("MODIFIED", Arc::clone(object))),
            (Some(object), None) => Some(("DELETED", Arc::clone(object))),
            (None, None) => None,
        }
    }
}

/// Sends events until the watch's time is up, the client hangs up, or the versions are gone.
pub(super) async fn run(watch: Watch, shared: Arc<Shared>, writer: Writer) {
    shared.open_watches.fetch_add(1, Ordering::SeqCst);
    let open = Open(&shared);
    // Whoever hung up needs no more.
    let _done = tokio::select! {
        done = events(watch, &shared, &writer) => done,
        () = writer.closed() => Err(Closed),
    };
    drop(open);
}

struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open_watches.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn events(mut watch: Watch, shared: &Shared, writer: &Writer) -> Result<(), Closed> {
    let mut newest = shared.newest.subscribe();
    let mut signals = shared.signals.subscribe();
    let mut seen: Signals = *signals.borrow_and_update();
    if watch.gone {
        return writer.send(line("ERROR", &expired(watch.version))).await;
    }
    for object in std::mem::take(&mut watch.initial) {
        send(shared, writer, "ADDED", &object).await?;
    }
    loop {
        newest.mark_unchanged();
        let change = lock(&shared.store).change_after(watch.version, watch.kind);
        if let Some(change) = change {
            let delay = lock(&shared.faults).delay;
            sleep_until(Instant::from_std(change.at + delay)).await;
            watch.version = change.version;
            if let Some((what, object)) = watch.event(&change) {
                send(shared, writer, what, &object).await?;
            }
            continue;
        }
        let bookmark_at =
            lock(&shared.faults).bookmark_interval.map(|every| Instant::now() + every);
        let until = bookmark_at.map_or(watch.ends, |at| at.min(watch.ends));
        tokio::select! {
            // What happened before a bookmark was asked for is told before it.
            biased;
            _changed = newest.changed() => {}
            _signal = signals.changed() => {
                let now = *signals.borrow_and_update();
                if now.expiries > seen.expiries {
                    return writer.send(line("ERROR", &expired(watch.version))).await;
                }
                if now.bookmarks > seen.bookmarks {
                    bookmark(&mut watch, shared, writer).await?;
                }
                seen = now;
            }
            () = sleep_until(until) => {
                if Instant::now() >= watch.ends {
                    return Ok(());
                }
                bookmark(&mut watch, shared, writer).await?;
            }
        }
    }
}

/// Tells the client how far it is, where it allows that.
async fn bookmark(watch: &mut Watch, shared: &Shared, writer: &Writer) -> Result<(), Closed> {
    if !watch.bookmarks {
        return Ok(());
    }
    {
        let store = lock(&shared.store);
        if store.change_after(watch.version, watch.kind).is_none() {
            watch.version = watch.version.max(store.version());
        }
    }
    let object = json!({
        "kind": watch.kind.name,
        "apiVersion": watch.kind.api_version,
        "metadata": { "resourceVersion": watch.version.to_string(), "creationTimestamp": null },
    });
    writer.send(line("BOOKMARK", &object)).await
}

async fn send(shared: &Shared, writer: &Writer, what: &str, object: &Value) -> Result<(), Closed> {
    let padding = lock(&shared.faults).padding;
    writer.send(line(what, &padded(object, padding))).await
}

fn line(what: &str, object: &Value) -> Vec<u8> {
    let mut line = json!({ "type": what, "object": object }).to_string().into_bytes();
    line.push(b'\n');
    line
}

fn expired(version: u64) -> Value {
    status_object(StatusCode::GONE, &too_old(version))
}

fn too_old(version: u64) -> String {
    format!("too old resource version: {version}")
}
