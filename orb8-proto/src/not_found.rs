//! The error for a name that nobody has. It says what there is instead, to people in its text and
//! to servers, which have to put many such answers together, in its metadata.

use std::collections::BTreeSet;

use prost::Message as _;
use tonic::{
    Status,
    metadata::{MetadataMap, MetadataValue},
};

use crate::NotFound;

/// Where the metadata of a status has it.
const KEY: &str = "orb8-not-found-bin";
/// Candidates that the text names.
const IN_TEXT: usize = 12;
/// Candidates that are sent: metadata has little room.
const SENT: usize = 50;

impl NotFound {
    /// As an error; `place` says where it was looked for, such as `node worker-1`.
    #[must_use]
    pub fn status(what: &str, name: &str, place: &str, candidates: &BTreeSet<String>) -> Status {
        let named: Vec<&str> =
            candidates.iter().map(String::as_str).filter(|c| !c.is_empty()).collect();
        let shown = named.iter().take(IN_TEXT).copied().collect::<Vec<_>>().join(", ");
        let list = match named.len() {
            0 => "none is known".to_owned(),
            n if n > IN_TEXT => format!("known: {shown} and {} more", n - IN_TEXT),
            _ => format!("known: {shown}"),
        };
        let told = Self {
            what: what.to_owned(),
            name: name.to_owned(),
            candidates: named.iter().take(SENT).map(|&name| name.to_owned()).collect(),
        };
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(KEY, MetadataValue::from_bytes(&told.encode_to_vec()));
        let text = format!("no {what} {name:?} on {place}; {list}");
        Status::with_metadata(tonic::Code::NotFound, text, metadata)
    }

    /// What an error tells, if it is such a one.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        Self::decode(status.metadata().get_bin(KEY)?.to_bytes().ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_instead_is_told_to_people_and_to_servers() {
        let many: BTreeSet<String> = (0..100).map(|n| format!("pod-{n:03}")).collect();
        let status = NotFound::status("pod", "wbe", "node a", &many);
        let text = status.message();
        assert!(text.starts_with("no pod \"wbe\" on node a; known: pod-000, pod-001,"), "{text}");
        assert!(text.ends_with("pod-011 and 88 more"), "{text}");
        let told = NotFound::of(&status).unwrap();
        assert_eq!((&*told.what, &*told.name, told.candidates.len()), ("pod", "wbe", SENT));
        assert_eq!(NotFound::of(&Status::not_found("another")), None);
        let none = NotFound::status("pod", "web", "node a", &BTreeSet::from([String::new()]));
        assert_eq!(none.message(), "no pod \"web\" on node a; none is known");
    }
}
