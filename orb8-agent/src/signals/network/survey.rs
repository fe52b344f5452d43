//! Who is behind the veths. A thread finds out: it reads the processes of the node, and asks the
//! kernel about interfaces, which may take as long as others change them.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{NetworkError, interfaces::Serial, task::Task};
use crate::{
    k8s::cgroup::CgroupIdentity,
    netlink::{links::Links, netns::NetnsResolver},
    tasks::on_thread,
};

/// Surveys of the node's processes are this far apart at least: each reads a link per process.
const BETWEEN_SURVEYS: Duration = Duration::from_millis(250);

/// How long a question waits for a survey. It takes tens of milliseconds, unless others keep the
/// kernel busy.
const WAIT_FOR_SURVEY: Duration = Duration::from_millis(500);

impl Task {
    /// Has the pods behind veths looked for that have no owner yet.
    pub(super) fn seek_owners(&mut self) {
        let now = Instant::now();
        let recent = |at: Instant| now.saturating_duration_since(at) < BETWEEN_SURVEYS;
        if self.surveyor.busy || self.surveyed.is_some_and(recent) {
            return;
        }
        let unowned = self.interfaces.all().filter(|(_, interface)| interface.wants_owner(now));
        let sought: Vec<Sought> = unowned
            .filter_map(|(serial, i)| Some(Sought { serial, index: i.index, nsid: i.nsid? }))
            .collect();
        if !sought.is_empty() {
            self.surveyed = Some(now);
            self.surveyor.ask(sought);
        }
    }

    /// Looks for owners now, and waits a moment for what is found: somebody asks.
    pub(super) async fn await_owners(&mut self) {
        self.seek_owners();
        let mut late = std::pin::pin!(tokio::time::sleep(WAIT_FOR_SURVEY));
        while self.surveyor.busy {
            tokio::select! {
                biased;
                change = self.link_watch.next() => self.links_changed(change).await,
                (serial, outcome) = self.attacher.outcome() => self.attached(serial, outcome),
                found = self.surveyor.found() => self.owners_found(found).await,
                () = &mut late => return,
            }
        }
    }

    /// Takes what a survey found.
    pub(super) async fn owners_found(&mut self, found: Found) {
        // The end of every interface whose index was used again by then is announced by now.
        while let Some(change) = self.link_watch.next_queued() {
            self.links_changed(change).await;
        }
        if self.link_watch.is_broken() {
            return;
        }
        let now = Instant::now();
        for (serial, identity) in found {
            if self.retiring.contains(&serial) {
                continue;
            }
            if let Some(interface) = self.interfaces.get_mut(serial) {
                interface.looked_for_owner(identity, now);
                self.epoch += u32::from(identity.is_some());
            }
        }
    }
}

/// An interface whose owner is looked for.
pub(super) struct Sought {
    pub(super) serial: Serial,
    pub(super) index: u32,
    /// The number of the namespace behind it.
    pub(super) nsid: i32,
}

/// What a survey found: each interface that was asked for, with its owner if there is one.
pub(super) type Found = Vec<(Serial, Option<CgroupIdentity>)>;

/// Speaks to the thread, which ends with this.
pub(super) struct Surveyor {
    asked: mpsc::UnboundedSender<Vec<Sought>>,
    found: mpsc::UnboundedReceiver<Found>,
    /// One survey at a time.
    pub(super) busy: bool,
}

impl Surveyor {
    /// Starts the thread in the network namespace of the caller's.
    pub(super) fn start() -> Result<Self, NetworkError> {
        let (asked, inbox) = mpsc::unbounded_channel();
        let (outbox, found) = mpsc::unbounded_channel();
        let work = async move || {
            let opened = NetnsResolver::open().and_then(|netns| Ok((netns, Links::open()?)));
            match opened {
                Ok((netns, links)) => Worker { netns, links }.work(inbox, outbox).await,
                Err(error) => tracing::error!("nobody is found behind interfaces: {error}"),
            }
        };
        let thread = on_thread("orb8-survey", work);
        thread.map_err(|error| NetworkError::Io { what: "thread", error })?;
        Ok(Self { asked, found, busy: false })
    }

    /// Asks for a survey. Nothing is lost if the thread has ended: nobody is found then.
    pub(super) fn ask(&mut self, sought: Vec<Sought>) {
        self.busy = self.asked.send(sought).is_ok();
    }

    /// What the survey found. Cancelling it loses nothing.
    pub(super) async fn found(&mut self) -> Found {
        match self.found.recv().await {
            Some(found) => {
                self.busy = false;
                found
            }
            None => std::future::pending().await,
        }
    }
}

struct Worker {
    netns: NetnsResolver,
    links: Links,
}

impl Worker {
    async fn work(
        mut self,
        mut asked: mpsc::UnboundedReceiver<Vec<Sought>>,
        found: mpsc::UnboundedSender<Found>,
    ) {
        while let Some(sought) = asked.recv().await {
            let answer = self.survey(&sought).await;
            if found.send(answer).is_err() {
                return;
            }
        }
    }

    async fn survey(&mut self, sought: &[Sought]) -> Found {
        let wanted: Vec<i32> = sought.iter().map(|sought| sought.nsid).collect();
        let owners = match self.netns.resolve(&wanted).await {
            Ok(owners) => owners,
            Err(error) => {
                tracing::warn!("{error}");
                return sought.iter().map(|sought| (sought.serial, None)).collect();
            }
        };
        let mut found = Vec::new();
        for sought in sought {
            let mut owner = owners.get(&sought.nsid).and_then(|owner| owner.identity);
            if owner.is_some() && !self.still_leads_to(sought.index, sought.nsid).await {
                owner = None;
            }
            found.push((sought.serial, owner));
        }
        found
    }

    /// Whether the interface is there and leads to the namespace with this number: both a namespace's
    /// number and an interface's index are used again as soon as they are free, and while it was
    /// found out who lives in that namespace, another one may have come.
    async fn still_leads_to(&mut self, index: u32, nsid: i32) -> bool {
        let link = self.links.get(index).await.ok().flatten();
        link.is_some_and(|link| link.peer_nsid == Some(nsid))
    }
}
