//! Following a runtime: list, listen where it tells of changes, list again, and look for it anew
//! when it is gone. What is known stays known meanwhile.

use std::{path::PathBuf, time::Duration};

use futures_util::{StreamExt, future::OptionFuture};
use orb8_k8s::backoff::Backoff;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{RuntimeSource, client::Client, client::List, detect};

/// How often what is gone for long enough is forgotten.
const SWEEP: Duration = Duration::from_secs(5);

/// The runtime that had containers, and when it last had.
struct Loyal {
    socket: PathBuf,
    heard: Instant,
}

/// Why a runtime is not followed any more.
enum Ended {
    Failed(String),
    /// Nothing runs there, and there is another one.
    Idle,
}

impl RuntimeSource {
    /// Follows the runtime until `token` says stop.
    pub async fn run(self, token: CancellationToken) {
        tokio::select! {
            () = token.cancelled() => {}
            () = self.follow_for_ever() => {}
            () = self.sweep_for_ever() => {}
        }
    }

    async fn sweep_for_ever(&self) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            self.pods.sweep();
        }
    }

    async fn follow_for_ever(&self) {
        let mut backoff = Backoff::new(self.timing.first_wait, self.timing.last_wait);
        let (mut loyal, mut told) = (None, String::new());
        let mut tell = |news: String| {
            // Once, and not again every ten seconds while it stays so.
            if news != told {
                tracing::info!("container runtime: {news}");
                told = news;
            }
        };
        loop {
            let began = Instant::now();
            let ended = match self.find(&mut loyal).await {
                Ok((client, list)) => {
                    tell(format!("{} {}", list.about.kind, list.about.detail));
                    self.follow(client, list, &mut loyal).await
                }
                Err(failure) => Ended::Failed(failure),
            };
            if let Ended::Failed(failure) = ended {
                self.pods.away(&failure);
                tell(failure);
                tokio::time::sleep(backoff.after(began.elapsed(), None)).await;
            }
        }
    }

    /// The runtime that is to be asked, with what it has: the first that has containers, else the
    /// first that answers.
    async fn find(&self, loyal: &mut Option<Loyal>) -> Result<(Client, List), String> {
        if loyal.as_ref().is_some_and(|loyal| loyal.heard.elapsed() > self.timing.loyalty) {
            *loyal = None;
        }
        let sockets = match (&self.socket, &*loyal) {
            (Some(socket), _) => vec![socket.clone()],
            (None, Some(loyal)) => vec![loyal.socket.clone()],
            (None, None) => detect::sockets(&self.root),
        };
        if sockets.is_empty() {
            return Err("no socket of a container runtime in any of the usual places".into());
        }
        let (mut first, mut failures) = (None, Vec::new());
        for socket in sockets {
            match Client::open(&socket, self.timing.answer).await {
                Ok((client, list)) if list.pods.is_empty() => {
                    first.get_or_insert((client, list));
                }
                Ok(found) => return Ok(found),
                Err(failure) => failures.push(failure),
            }
        }
        first.ok_or_else(|| failures.join("; "))
    }

    /// Takes in what happens, until the runtime does not answer any more.
    async fn follow(&self, mut client: Client, list: List, loyal: &mut Option<Loyal>) -> Ended {
        let timing = self.timing;
        self.pods.wanted.forget();
        let mut is_idle = self.take(&client, list, loyal);
        let (mut listed, mut is_stale) = (Instant::now(), false);
        let (mut events, mut asked_for_events) = (client.events(), Instant::now());
        // A runtime may be configured to tell of nothing, and does not say so.
        let mut tells = false;
        loop {
            let pause = match (is_stale, tells) {
                (true, _) => timing.gap,
                (false, false) => timing.poll,
                (false, true) => timing.resync,
            };
            let event = OptionFuture::from(events.as_mut().map(StreamExt::next));
            tokio::select! {
                () = sleep_until(listed + pause) => {
                    if is_idle && self.socket.is_none() && detect::sockets(&self.root).len() > 1 {
                        return Ended::Idle;
                    }
                    match client.list().await {
                        Ok(list) => is_idle = self.take(&client, list, loyal),
                        Err(failure) => return Ended::Failed(failure),
                    }
                    (listed, is_stale) = (Instant::now(), false);
                    if events.is_none() && asked_for_events.elapsed() > timing.resync {
                        (events, asked_for_events) = (client.events(), Instant::now());
                    }
                }
                () = self.pods.wanted.news() => is_stale = true,
                Some(event) = event => {
                    // Be it a change or the end of the runtime: a list will show.
                    is_stale = true;
                    tells = event.is_some();
                    self.pods.set_live(tells);
                    match event {
                        Some(event) => {
                            if let Some(pod) = client.take(event) {
                                self.pods.apply(pod);
                            }
                        }
                        None => events = None,
                    }
                }
            }
        }
    }

    /// True where there is nothing in `list`.
    fn take(&self, client: &Client, list: List, loyal: &mut Option<Loyal>) -> bool {
        let is_empty = list.pods.is_empty();
        if !is_empty {
            *loyal = Some(Loyal { socket: client.socket().to_owned(), heard: Instant::now() });
        }
        self.pods.replace(&list.about, list.pods, list.at);
        is_empty
    }
}
