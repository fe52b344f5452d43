//! How the runtime fails, changed at run time.

use std::time::Duration;

/// What it says of itself, and what goes wrong. The default: nothing.
#[derive(Clone, Debug)]
pub struct Faults {
    /// `runtime_name` and `runtime_version`.
    pub version: (String, String),
    /// Every answer takes this long.
    pub delay: Duration,
    /// Nothing is answered at all.
    pub hang: bool,
    /// Whoever connects gets a line of HTTP/1 and is cut off.
    pub garbage: bool,
    /// Every call is refused as if the server were of another kind.
    pub unimplemented: bool,
    /// What `GetContainerEvents` does.
    pub tells: Tells,
}

/// Whether and how it tells of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tells {
    /// Every listener gets every event.
    #[default]
    Everybody,
    /// The call is not implemented.
    Unimplemented,
    /// The call succeeds and nothing comes, as where events are switched off.
    Nothing,
    /// The stream ends at once.
    Ends,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            version: ("containerd".into(), "2.0.0".into()),
            delay: Duration::ZERO,
            hang: false,
            garbage: false,
            unimplemented: false,
            tells: Tells::default(),
        }
    }
}
