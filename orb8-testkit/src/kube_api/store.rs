//! The objects, and how they came to be what they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::kinds::Kind;
use crate::pod_object::rfc3339;
use crate::random;

/// Versions of a real cluster do not begin with 1 either.
const FIRST_VERSION: u64 = 1_000;
/// Changes that are kept for watches; older ones are gone, as after a compaction.
const HISTORY: usize = 100_000;

/// Objects and their history.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    /// Watches that begin before this version have missed something.
    oldest: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Change>,
    /// What is left of lists that are read in pages, by continue token.
    pages: BTreeMap<String, (u64, Vec<Arc<Value>>)>,
}

type Key = (&'static Kind, String, String);

/// An object before and after a version. It was added where there is no before, and deleted where there is no after.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) at: Instant,
    pub(super) kind: &'static Kind,
    pub(super) before: Option<Arc<Value>>,
    pub(super) after: Option<Arc<Value>>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            version: FIRST_VERSION,
            oldest: FIRST_VERSION,
            objects: BTreeMap::new(),
            history: Vec::new(),
            pages: BTreeMap::new(),
        }
    }
}

impl Store {
    pub(super) fn apply(&mut self, mut object: Value) -> Result<u64> {
        let kind = Kind::named(object["kind"].as_str().context("an object without a kind")?)?;
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let key = (kind, kind.namespace_of(&object).to_owned(), name.to_owned());
        let known = self.objects.get(&key).cloned();
        let mut before = known.clone();
        if let Some(known) = known {
            let metadata = &mut object["metadata"];
            let (uid, its_uid) = (&known["metadata"]["uid"], metadata["uid"].clone());
            if its_uid.is_null() {
                metadata["uid"] = uid.clone();
            } else if its_uid != *uid {
                // Another object of the same name: the old one has to go first.
                self.delete(kind.name, &key.1, &key.2)?;
                before = None;
            }
            if metadata["creationTimestamp"].is_null() {
                metadata["creationTimestamp"] = known["metadata"]["creationTimestamp"].clone();
            }
        }
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = random::uuid()?.into();
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = rfc3339(SystemTime::now()).into();
        }
        if !key.1.is_empty() {
            metadata["namespace"] = key.1.clone().into();
        }
        object["apiVersion"] = kind.api_version.into();
        let after = self.next(object);
        self.objects.insert(key, Arc::clone(&after));
        Ok(self.note(kind, before, Some(after)))
    }

    pub(super) fn delete(&mut self, kind: &str, ns: &str, name: &str) -> Result<Option<u64>> {
        let kind = Kind::named(kind)?;
        let Some(last) = self.objects.remove(&(kind, ns.to_owned(), name.to_owned())) else {
            return Ok(None);
        };
        // Watches get its last state, with the version of the removal.
        let last = self.next(Value::clone(&last));
        Ok(Some(self.note(kind, Some(last), None)))
    }

    fn next(&mut self, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        Arc::new(object)
    }

    fn note(
        &mut self,
        kind: &'static Kind,
        before: Option<Arc<Value>>,
        after: Option<Arc<Value>>,
    ) -> u64 {
        if self.history.len() >= HISTORY {
            let dropped = self.history.drain(..HISTORY / 2).next_back();
            self.oldest = dropped.map_or(self.oldest, |change| change.version);
        }
        let version = self.version;
        self.history.push(Change { version, at: Instant::now(), kind, before, after });
        version
    }

    /// Forgets how things came to be.
    pub(super) fn compact(&mut self) {
        // Even a watch from the newest version is too late: something else happened in the cluster.
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
        self.pages.clear();
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn is_gone(&self, version: u64) -> bool {
        version < self.oldest
    }

    pub(super) fn list(&self, kind: &'static Kind, ns: &str) -> Vec<Arc<Value>> {
        let objects = self.objects.iter().filter(|((its_kind, its_ns, _), _)| {
            *its_kind == kind && (ns.is_empty() || its_ns == ns)
        });
        objects.map(|(_, object)| Arc::clone(object)).collect()
    }

    pub(super) fn get(&self, kind: &'static Kind, ns: &str, name: &str) -> Option<Arc<Value>> {
        self.objects.get(&(kind, ns.to_owned(), name.to_owned())).cloned()
    }

    /// Keeps what is left of a list, and gives the token for it.
    pub(super) fn keep_page(&mut self, version: u64, rest: Vec<Arc<Value>>) -> String {
        let token = format!("{version}-{}", rest.len());
        self.pages.insert(token.clone(), (version, rest));
        token
    }

    /// None: the token has expired, or never was one.
    pub(super) fn page(&self, token: &str) -> Option<(u64, Vec<Arc<Value>>)> {
        self.pages.get(token).cloned()
    }

    /// The first change of `kind` after `version`.
    pub(super) fn change_after(&self, version: u64, kind: &'static Kind) -> Option<Change> {
        let start = self.history.partition_point(|change| change.version <= version);
        self.history[start..].iter().find(|change| change.kind == kind).cloned()
    }
}

/// `object` with this much of what managers of fields leave in it.
pub(super) fn padded(object: &Value, bytes: usize) -> Value {
    let mut object = object.clone();
    if bytes > 0 {
        object["metadata"]["managedFields"] = json!([{
            "manager": "kubelet",
            "operation": "Update",
            "fieldsV1": { "f:padding": "x".repeat(bytes) },
        }]);
    }
    object
}
