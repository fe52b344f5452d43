//! Something that departs from normal, and for how long it does.

use std::sync::Arc;

use super::workload::Workload;

/// What kind of departure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A call that can do harm.
    Sensitive,
    /// A call that was never seen while the workload was learnt.
    New,
    /// Far more calls than usual.
    Rate,
    /// Far more errors than usual.
    Errors,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Sensitive, Self::New, Self::Rate, Self::Errors];

    /// As in metrics and on the command line.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Sensitive => "sensitive_syscall",
            Self::New => "new_syscall",
            Self::Rate => "rate",
            Self::Errors => "error_storm",
        }
    }

    /// Findings of one workload that may last at a time. What is beyond is named in one of them, and
    /// counted: one cause shows in many calls, and the first ones tell.
    pub(super) const fn most(self) -> usize {
        match self {
            Self::Sensitive => 16,
            Self::New => 4,
            Self::Rate | Self::Errors => 3,
        }
    }
}

/// A finding. It lasts until nothing was seen of it for a while.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    /// The same for as long as it lasts, and nobody else's on this node.
    pub(crate) id: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// Whose.
    pub(crate) workload: Arc<Workload>,
    /// Pod in which it was last seen.
    pub(crate) pod_name: Arc<str>,
    /// Container in which it was last seen.
    pub(crate) container_id: Arc<str>,
    /// Name of the call, or of the error.
    pub(crate) what: String,
    /// Times in nanoseconds since the Unix epoch.
    pub(crate) since_ns: i64,
    /// When it was last seen.
    pub(crate) last_seen_ns: i64,
    /// When it was over.
    pub(crate) cleared_ns: Option<i64>,
    /// Calls or errors a second when it was last seen, of kinds that are about rates.
    pub(crate) value: f64,
    /// What is normal, of kinds that are about rates.
    pub(crate) normal: f64,
    /// How far from normal, in robust standard deviations.
    pub(crate) deviation: f64,
    /// Calls that made it.
    pub(crate) occurrences: u64,
    /// Calls that came with it and would be findings of the same kind, had there not been enough.
    pub(crate) also: Vec<String>,
    /// What was told of some of them.
    pub(crate) evidence: Vec<String>,
}

impl Finding {
    /// One line for people.
    #[must_use]
    pub(crate) fn summary(&self) -> String {
        let Self { what, value, normal, .. } = self;
        match self.kind {
            Kind::Sensitive => format!("sensitive call {what}"),
            Kind::New => {
                format!("{what} was never called while this workload was learnt{}", self.nor())
            }
            Kind::Rate => format!("{what} {value:.1} times a second, normal is {normal:.1}"),
            Kind::Errors => {
                format!("{value:.1} calls a second fail with {what}, normal is {normal:.1}")
            }
        }
    }

    /// The calls that came with it, as a part of a sentence.
    fn nor(&self) -> String {
        const SHOWN: usize = 12;
        let shown = self.also.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>();
        match self.also.len().checked_sub(SHOWN) {
            _ if shown.is_empty() => String::new(),
            None | Some(0) => format!("; nor {}", shown.join(", ")),
            Some(more) => format!("; nor {} and {more} more", shown.join(", ")),
        }
    }
}
