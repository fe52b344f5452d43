//! What a node's status tells the user: what is attached, what is not and why, what works in part.

use std::collections::BTreeMap;

use orb8_proto::{InterfaceStatus, NodeStatus, SignalState, SignalStatus};

use crate::notes::Note;

/// Names listed in one line before the rest is only counted.
const LISTED: usize = 8;

/// The last status of one node. Each new one is told as the difference.
#[derive(Debug, Default)]
pub(crate) struct NodeNotes {
    told_first: bool,
    attached: BTreeMap<String, String>,
    skipped: BTreeMap<String, String>,
    signals: BTreeMap<String, (SignalState, String)>,
    message: String,
    /// Only this signal is of interest, and it needs no interface.
    only: Option<&'static str>,
}

impl NodeNotes {
    /// Of a signal that may be one of several. Interfaces are the network's.
    pub(crate) fn of_signal(signal: &'static str) -> Self {
        let only = (signal != "network").then_some(signal);
        NodeNotes { only, ..NodeNotes::default() }
    }

    /// Of the same signal, for another node.
    pub(crate) fn another(&self) -> Self {
        NodeNotes { only: self.only, ..NodeNotes::default() }
    }

    /// How many interfaces carry the probe, once the node has told.
    pub(crate) fn attached(&self) -> Option<usize> {
        self.told_first.then_some(self.attached.len())
    }

    /// Takes in a status and returns what is new in it.
    pub(crate) fn update(&mut self, status: &NodeStatus) -> Vec<Note> {
        let mut notes = match self.only {
            // A server does not pass on the interfaces of its nodes.
            None if status.answer.is_none() => self.interfaces(&status.interfaces),
            _ => Vec::new(),
        };
        notes.extend(self.warnings(&status.signals));
        if status.message != self.message {
            self.message.clone_from(&status.message);
            if !status.message.is_empty() {
                notes.push(Note::Info(status.message.clone()));
            }
        }
        notes
    }

    /// What is new in the states of the signals: only what the user should worry about.
    pub(crate) fn warnings(&mut self, signals: &[SignalStatus]) -> Vec<Note> {
        let mut notes = Vec::new();
        for signal in signals.iter().filter(|s| self.only.is_none_or(|only| s.name == only)) {
            let state = (signal.state(), signal.reason.clone());
            if self.signals.get(&signal.name) == Some(&state) {
                continue;
            }
            let adjective = match signal.state() {
                SignalState::Degraded => Some("degraded"),
                SignalState::Failed => Some("failed"),
                SignalState::Unsupported => Some("not supported here"),
                SignalState::Active if self.signals.contains_key(&signal.name) => {
                    notes.push(Note::Info(format!("{} works again", signal.name)));
                    None
                }
                SignalState::Active | SignalState::Disabled | SignalState::Unspecified => None,
            };
            if let Some(adjective) = adjective {
                notes.push(Note::Warning(format!(
                    "{} is {adjective}: {}",
                    signal.name, signal.reason
                )));
            }
            self.signals.insert(signal.name.clone(), state);
        }
        notes
    }

    fn interfaces(&mut self, interfaces: &[InterfaceStatus]) -> Vec<Note> {
        let (now, not): (Vec<_>, Vec<_>) =
            interfaces.iter().partition(|link| !link.attached.is_empty());
        let mut notes = Vec::new();
        let mut by_kind: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for link in now.iter().filter(|link| !self.attached.contains_key(&link.name)) {
            by_kind.entry(&link.attached).or_default().push(described(link));
        }
        for (kind, names) in by_kind {
            let count = names.len();
            let noun = if count == 1 { "interface" } else { "interfaces" };
            notes
                .push(Note::Info(format!("attached {count} {noun} by {kind}: {}", listed(&names))));
        }
        let gone: Vec<_> = self
            .attached
            .iter()
            .filter(|(name, _)| now.iter().all(|link| link.name != **name))
            .map(|(_, described)| described.clone())
            .collect();
        if !gone.is_empty() {
            notes.push(Note::Info(format!("detached: {}", listed(&gone))));
        }
        for link in &not {
            let reason = if link.reason.is_empty() { "no reason given" } else { &link.reason };
            if self.skipped.get(&link.name).map(String::as_str) != Some(reason) {
                notes.push(Note::Info(format!("not attached to {}: {reason}", described(link))));
            }
            self.skipped.insert(link.name.clone(), reason.to_owned());
        }
        self.skipped.retain(|name, _| not.iter().any(|link| link.name == *name));
        self.attached = now.iter().map(|link| (link.name.clone(), described(link))).collect();
        if self.attached.is_empty() && (!self.told_first || !gone.is_empty()) {
            notes.push(Note::Warning(String::from("attached to no interface: nothing is seen")));
        }
        self.told_first = true;
        notes
    }
}

/// `veth1234 (prod/web)`.
fn described(link: &InterfaceStatus) -> String {
    match (link.namespace.as_str(), link.pod_name.as_str()) {
        (_, "") => link.name.clone(),
        ("", pod) => format!("{} ({pod})", link.name),
        (namespace, pod) => format!("{} ({namespace}/{pod})", link.name),
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.len().min(LISTED);
    let text = names[..shown].join(", ");
    match names.len() - shown {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, attached: &str, pod: &str, reason: &str) -> InterfaceStatus {
        InterfaceStatus {
            name: name.into(),
            attached: attached.into(),
            namespace: if pod.is_empty() { "" } else { "prod" }.into(),
            pod_name: pod.into(),
            reason: reason.into(),
            ..InterfaceStatus::default()
        }
    }

    fn signal(state: SignalState, reason: &str) -> SignalStatus {
        SignalStatus { name: "network".into(), state: state.into(), reason: reason.into() }
    }

    fn status(interfaces: Vec<InterfaceStatus>) -> NodeStatus {
        NodeStatus { interfaces, ..NodeStatus::default() }
    }

    fn info(text: &str) -> Note {
        Note::Info(text.into())
    }

    #[test]
    fn the_first_status_lists_what_is_attached_and_what_is_not() {
        let notes = NodeNotes::default().update(&status(vec![
            link("veth1", "tcx", "web", ""),
            link("veth2", "tcx", "", ""),
            link("lo", "", "", "loopback"),
        ]));
        assert_eq!(
            notes,
            [
                info("attached 2 interfaces by tcx: veth1 (prod/web), veth2"),
                info("not attached to lo: loopback"),
            ]
        );
    }

    #[test]
    fn later_ones_tell_only_what_changed() {
        let mut node = NodeNotes::default();
        let first = vec![link("veth1", "tcx", "web", ""), link("lo", "", "", "loopback")];
        node.update(&status(first.clone()));
        assert_eq!(node.update(&status(first)), []);
        let notes = node.update(&status(vec![link("veth3", "clsact", "db", "")]));
        assert_eq!(
            notes,
            [
                info("attached 1 interface by clsact: veth3 (prod/db)"),
                info("detached: veth1 (prod/web)"),
            ]
        );
        assert_eq!(node.attached(), Some(1));
        assert_eq!(NodeNotes::default().attached(), None);
    }

    #[test]
    fn no_interface_at_all_is_a_warning_once() {
        let mut node = NodeNotes::default();
        assert!(matches!(node.update(&status(vec![]))[..], [Note::Warning(_)]));
        assert_eq!(node.update(&status(vec![])), []);
    }

    #[test]
    fn broken_signals_warn_and_mended_ones_are_told() {
        let mut node = NodeNotes::default();
        assert_eq!(node.warnings(&[signal(SignalState::Active, "")]), []);
        let broken = [signal(SignalState::Degraded, "no ring")];
        assert_eq!(node.warnings(&broken), [Note::Warning("network is degraded: no ring".into())]);
        assert_eq!(node.warnings(&broken), []);
        assert_eq!(
            node.warnings(&[signal(SignalState::Active, "")]),
            [info("network works again")]
        );
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let links = (0..20).map(|n| link(&format!("veth{n:02}"), "tcx", "", "")).collect();
        let notes = NodeNotes::default().update(&status(links));
        let [Note::Info(text)] = &notes[..] else { panic!("{notes:?}") };
        assert!(
            text.starts_with("attached 20 interfaces") && text.ends_with("and 12 more"),
            "{text}"
        );
    }
}
