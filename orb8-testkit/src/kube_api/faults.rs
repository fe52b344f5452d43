//! How the API fails, changed at run time.

use std::time::Duration;

/// What goes wrong. The default: nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Every answer and every event is this old when it arrives.
    pub delay: Duration,
    /// Bodies flow no faster than this.
    pub trickle: Option<Trickle>,
    /// Bytes of `managedFields` in every object that is sent: what makes real lists large.
    pub padding: usize,
    /// What happens to the next list, or event of a watch. It happens once.
    pub break_next: Option<Break>,
    /// Tokens that are let in; others get 401. `None`: no token is needed.
    pub tokens: Option<Vec<String>>,
    /// Everything is answered 403.
    pub forbidden: bool,
    /// Every request is answered with this status.
    pub status: Option<u16>,
    /// How a watch learns that its version is gone.
    pub gone: Gone,
    /// A bookmark for every watch that allows them, this often. `None`: only when told to.
    pub bookmark_interval: Option<Duration>,
}

/// A slow body.
#[derive(Clone, Copy, Debug)]
pub struct Trickle {
    /// Bytes at a time.
    pub bytes: usize,
    /// The time between.
    pub pause: Duration,
}

/// How a body breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Half of it is sent, then the connection is reset.
    Reset,
    /// It is sent with a zero byte in the middle, so that it is no JSON.
    Malformed,
}

/// How the API says that a version is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gone {
    /// The answer has status 410.
    #[default]
    Status,
    /// The answer is a stream of one `ERROR` event with code 410.
    Event,
}
