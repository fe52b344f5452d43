//! The Kubernetes API as a watcher asks it: a list and a watch of one kind of objects.

use std::{borrow::Cow, marker::PhantomData, pin::Pin, time::Duration};

use futures_util::{AsyncBufRead, AsyncBufReadExt as _};
use kube::{
    Client,
    core::{
        Status,
        params::{ListParams, WatchParams},
        request::Request,
    },
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    KubernetesSource,
    client::{client_and_url, innermost},
};

/// Objects at a time where the list is read from the database. The API's cache gives all at once.
const PAGE: u32 = 500;
/// Longest answer to a list. A node runs some hundred pods of some ten kilobytes.
const MAX_LIST: usize = 512 << 20;
/// Longest event. An object cannot have more than 3 MB or so.
const MAX_EVENT: usize = 32 << 20;
/// A list that is not there by then is not going to be.
const LIST_LIMIT: Duration = Duration::from_secs(300);

/// What to do about a failure, before the API is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Nothing: the watch can go on where it was.
    Resume,
    /// Connect anew, with what the configuration and the token file say by now.
    Reconnect,
    /// List again.
    List,
    /// List again, and not from a cache: its versions were too old.
    ListNewest,
}

/// The API did not answer as it should.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) remedy: Remedy,
    pub(super) reason: String,
    /// How long the API wants to be left alone.
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    fn new(remedy: Remedy, reason: impl Into<String>) -> Self {
        Self { remedy, reason: reason.into(), retry_after: None }
    }

    pub(super) fn ended_at_once() -> Self {
        Self::new(Remedy::Resume, "the API ended the watch at once")
    }

    fn of_status(status: &Status) -> Self {
        let remedy = match status.code {
            401 => Remedy::Reconnect,
            410 => Remedy::ListNewest,
            // A version that this server has not reached: one that was restored from a backup
            // never will.
            504 => Remedy::List,
            _ => Remedy::Resume,
        };
        let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        let reason = match &*status.message {
            "" => format!("the API answered {} {}", status.code, status.reason),
            message => format!("the API answered {} {}: {message}", status.code, status.reason),
        };
        let retry_after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        Self { remedy, reason, retry_after }
    }
}

/// What may be asked for in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListFrom {
    /// Whatever the API's cache has: cheap for the API, and the watch brings what is missing.
    Cache,
    /// The newest there is.
    Newest,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    /// Such as `/api/v1/pods`.
    pub(super) path: Cow<'static, str>,
    /// By fields; none: all there are.
    pub(super) fields: Option<String>,
    /// By labels; none: all there are.
    pub(super) labels: Option<String>,
}

impl Query {
    /// All objects of a list.
    pub(super) fn all(path: impl Into<Cow<'static, str>>) -> Self {
        Self { path: path.into(), fields: None, labels: None }
    }
}

/// An object as the API writes it, as far as orb8 reads it.
pub(super) trait Resource: DeserializeOwned + Send {
    /// `metadata.resourceVersion`
    fn version(&self) -> Option<&str>;
}

/// A client of the API that asks for one kind of objects.
pub(super) struct Api {
    client: Client,
    query: Query,
    url: String,
    /// How long the API may be silent.
    silence: Duration,
}

/// Objects, and the version of the cluster that they are of.
pub(super) struct Listed<T> {
    pub(super) version: String,
    pub(super) objects: Vec<T>,
}

#[derive(Deserialize)]
struct List<T> {
    metadata: ListMetadata,
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

/// An event of a watch.
#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub(super) enum Event<T> {
    Added(T),
    Modified(T),
    Deleted(T),
    /// Nothing happened up to a version.
    Bookmark(T),
    Error(Box<Status>),
}

impl Api {
    /// Reads the configuration and makes a client. Nothing is asked yet.
    pub(super) async fn new(
        source: &KubernetesSource,
        query: Query,
        silence: Duration,
    ) -> Result<Self, Failure> {
        let made = client_and_url(source).await;
        let (client, url) = made.map_err(|e| Failure::new(Remedy::Reconnect, e.to_string()))?;
        Ok(Self { client, query, url, silence })
    }

    /// All objects.
    pub(super) async fn list<T: Resource>(&self, from: ListFrom) -> Result<Listed<T>, Failure> {
        let pages = async {
            let mut listed = Listed { version: String::new(), objects: Vec::new() };
            let mut next = None;
            loop {
                let page = self.page(from, next).await?;
                listed.objects.extend(page.items.into_iter().flatten());
                listed.version = page.metadata.resource_version.unwrap_or_default();
                next = page.metadata.r#continue.filter(|token| !token.is_empty());
                if next.is_none() {
                    return Ok(listed);
                }
            }
        };
        let listed = tokio::time::timeout(LIST_LIMIT, pages).await;
        listed.unwrap_or_else(|_| Err(self.silent(LIST_LIMIT)))
    }

    async fn page<T: Resource>(
        &self,
        from: ListFrom,
        next: Option<String>,
    ) -> Result<List<T>, Failure> {
        let cached = from == ListFrom::Cache;
        let params = ListParams {
            field_selector: self.query.fields.clone(),
            label_selector: self.query.labels.clone(),
            resource_version: cached.then(|| "0".to_owned()),
            limit: (!cached).then_some(PAGE),
            continue_token: next,
            ..ListParams::default()
        };
        let mut answer = self.get(Request::new(self.query.path.as_ref()).list(&params)).await?;
        let mut text = Vec::new();
        while answer.read(&mut text, MAX_LIST).await?.is_some() {}
        serde_json::from_slice(&text).map_err(|why| {
            let path = &self.query.path;
            Failure::new(Remedy::List, format!("{}: not a list of {path}: {why}", self.url))
        })
    }

    /// Events after `version`, for no longer than `limit`.
    pub(super) async fn watch<T: Resource>(
        &self,
        version: &str,
        limit: Duration,
    ) -> Result<Events<T>, Failure> {
        let params = WatchParams {
            field_selector: self.query.fields.clone(),
            label_selector: self.query.labels.clone(),
            timeout: u32::try_from(limit.as_secs()).ok(),
            ..WatchParams::default()
        };
        let answer =
            self.get(Request::new(self.query.path.as_ref()).watch(&params, version)).await?;
        Ok(Events { answer, line: Vec::new(), objects: PhantomData })
    }

    async fn get(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Answer, Failure> {
        let request = request.map_err(|e| Failure::new(Remedy::Reconnect, e.to_string()))?;
        let answer = tokio::time::timeout(self.silence, self.client.request_stream(request)).await;
        match answer {
            Ok(Ok(body)) => {
                Ok(Answer { body: Box::pin(body), url: self.url.clone(), silence: self.silence })
            }
            Ok(Err(kube::Error::Api(status))) => Err(Failure::of_status(&status)),
            Ok(Err(error)) => {
                let reason = format!("{}: {}", self.url, innermost(&error));
                Err(Failure::new(Remedy::Reconnect, reason))
            }
            Err(_) => Err(self.silent(self.silence)),
        }
    }

    fn silent(&self, limit: Duration) -> Failure {
        let reason =
            format!("{}: no answer within {}", self.url, humantime::format_duration(limit));
        Failure::new(Remedy::Reconnect, reason)
    }
}

/// The body of an answer.
struct Answer {
    body: Pin<Box<dyn AsyncBufRead + Send>>,
    url: String,
    silence: Duration,
}

/// What [`Answer::read`] found.
struct Piece {
    ends_line: bool,
}

impl Answer {
    /// Adds the next piece to `text`, up to the end of a line. None at the end of the body.
    async fn read(&mut self, text: &mut Vec<u8>, most: usize) -> Result<Option<Piece>, Failure> {
        let piece = tokio::time::timeout(self.silence, self.body.fill_buf()).await;
        let piece = match piece {
            Ok(Ok(piece)) => piece,
            Ok(Err(error)) => {
                let reason = format!("{}: the connection broke: {}", self.url, innermost(&error));
                return Err(Failure::new(Remedy::Resume, reason));
            }
            Err(_) => {
                let silence = humantime::format_duration(self.silence);
                let reason = format!("{}: nothing came for {silence}", self.url);
                return Err(Failure::new(Remedy::Reconnect, reason));
            }
        };
        if piece.is_empty() {
            return Ok(None);
        }
        let end = piece.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let taken = end.unwrap_or(piece.len());
        text.extend_from_slice(&piece[..taken]);
        self.body.consume_unpin(taken);
        if text.len() > most {
            let reason = format!("{}: an answer of more than {most} bytes", self.url);
            return Err(Failure::new(Remedy::List, reason));
        }
        Ok(Some(Piece { ends_line: end.is_some() }))
    }
}

/// The events of a watch, one on each line.
pub(super) struct Events<T> {
    answer: Answer,
    line: Vec<u8>,
    objects: PhantomData<fn() -> T>,
}

impl<T: Resource> Events<T> {
    /// The next event; None when the watch has ended.
    pub(super) async fn next(&mut self) -> Result<Option<Event<T>>, Failure> {
        loop {
            match self.answer.read(&mut self.line, MAX_EVENT).await? {
                // Half an event says nothing; the next watch begins with the whole.
                None => return Ok(None),
                Some(Piece { ends_line: false }) => continue,
                Some(Piece { ends_line: true }) => {}
            }
            let line = std::mem::take(&mut self.line);
            if line.trim_ascii().is_empty() {
                continue;
            }
            return match serde_json::from_slice(&line) {
                Ok(Event::Error(status)) => Err(Failure::of_status(&status)),
                Ok(event) => Ok(Some(event)),
                Err(why) => {
                    let reason = format!("{}: not an event of a watch: {why}", self.answer.url);
                    Err(Failure::new(Remedy::List, reason))
                }
            };
        }
    }
}
