//! What a caller was given: what it may see, and for how long that stays so.

use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::{Access, Caller, Sight, Want};

/// A caller that was let in.
pub(crate) struct Pass {
    pub(super) access: Access,
    pub(super) caller: Caller,
    pub(super) want: Want,
    /// What it may see.
    pub(crate) sight: Sight,
}

impl Pass {
    /// Looks again and again whether the caller may still see what it was let in for, and ends with
    /// the reason when it may not: a token or a certificate that has ended, a right that was taken
    /// away, or nobody who could say for too long. Counted and logged as a refusal.
    pub(crate) async fn ended(self) -> Status {
        let timing = self.access.timing;
        let mut good = Instant::now();
        loop {
            sleep(timing.recheck).await;
            let status = match self.access.decide(&self.caller, &self.want).await {
                // More is no reason to end; less is, as what is sent was made for what it had.
                Ok(sight) if sight == self.sight || sight == Sight::All => {
                    good = Instant::now();
                    continue;
                }
                Ok(_) => Status::permission_denied("what may be seen has changed; ask again"),
                Err(status)
                    if status.code() == Code::Unavailable && good.elapsed() < timing.grace =>
                {
                    continue;
                }
                Err(status) => status,
            };
            let why = format!("the stream ends: {}", status.message());
            let status = Status::new(status.code(), why);
            return self.access.refused(&self.caller.from(), &self.want, status);
        }
    }
}
