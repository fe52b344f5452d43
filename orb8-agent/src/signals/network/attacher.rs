//! A thread that attaches and detaches. Each TCX link costs the kernel a grace period, ten
//! milliseconds and more, during which nobody else may change an interface; who counts must not wait
//! for that.
//!
//! Interfaces that are made faster than that are attached to by clsact, which is some twenty times as
//! fast: whoever makes the interfaces waits, too. On interfaces that are in use this is not done, since
//! there adding a qdisc costs packets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use super::{NetworkError, interfaces::Serial};
use crate::{
    config::TcAttach,
    netlink::{
        links::{Link, LinkCounters, Links},
        tc::Leftovers,
    },
    probe_loader::{Attachment, Hook, LoadError, Object},
    tasks::on_thread,
};

enum Job {
    Attach {
        serial: Serial,
        link: Link,
        how: TcAttach,
        asked: Instant,
    },
    Detach([Attachment; 2]),
    /// Detach from what is there, and tell.
    Leave {
        serial: Serial,
        index: u32,
        attachments: [Attachment; 2],
    },
    /// Answer when all before it is done.
    Fence(oneshot::Sender<()>),
}

/// What became of an interface that was to be attached to.
pub(super) enum Outcome {
    /// Attached, with the kernel's counters before and after.
    Attached {
        attachments: [Attachment; 2],
        before: LinkCounters,
        after: LinkCounters,
    },
    /// Nothing has that name any more: it went away, or has another name. Either is announced, or was.
    Gone {
        tried: String,
    },
    Refused(LoadError),
    /// It was detached from, as was asked.
    Left,
}

/// Speaks to the thread, which ends with this.
pub(super) struct Attacher {
    jobs: mpsc::UnboundedSender<Job>,
    outcomes: mpsc::UnboundedReceiver<(Serial, Outcome)>,
    /// Interfaces that are being attached to. There are never more than interfaces.
    pub(super) pending: usize,
    how: TcAttach,
    /// Nothing is attached to any more.
    ends: Arc<AtomicBool>,
    /// The last new interface that was attached to by a TCX link.
    linked: Option<Instant>,
}

/// New interfaces are attached to by TCX link if the last one was this long ago.
const BETWEEN_LINKS: Duration = Duration::from_secs(5);
/// Adding a qdisc makes the kernel drop what is sent to the interface for some milliseconds: that is
/// not done to one that is older than this, and by then in use.
const STILL_NEW: Duration = Duration::from_secs(1);

impl Attacher {
    /// Starts the thread in the network namespace of the caller's.
    pub(super) fn start(object: Object, how: TcAttach) -> Result<Self, NetworkError> {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (outbox, outcomes) = mpsc::unbounded_channel();
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let work = async move || {
            let opened = Links::open().and_then(|links| Ok((links, Leftovers::open()?)));
            match opened {
                Ok((links, leftovers)) => {
                    let only_clsact = how == TcAttach::Clsact;
                    let worker = Worker { object, links, leftovers, ends: told, only_clsact };
                    worker.work(inbox, outbox).await;
                }
                Err(error) => tracing::error!("nothing is attached: {error}"),
            }
        };
        let thread = on_thread("orb8-attach", work);
        thread.map_err(|error| NetworkError::Io { what: "thread", error })?;
        Ok(Self { jobs, outcomes, pending: 0, how, ends, linked: None })
    }

    /// `new`: the interface has just been made.
    pub(super) fn attach(&mut self, serial: Serial, link: &Link, new: bool) {
        let now = Instant::now();
        let recent = |at: Instant| now.saturating_duration_since(at) < BETWEEN_LINKS;
        let how = match self.how {
            TcAttach::Auto if new && (self.pending > 0 || self.linked.is_some_and(recent)) => {
                TcAttach::Clsact
            }
            how => {
                self.linked = Some(now);
                how
            }
        };
        self.pending += 1;
        self.send(Job::Attach { serial, link: link.clone(), how, asked: now });
    }

    pub(super) fn detach(&self, attachments: [Attachment; 2]) {
        self.send(Job::Detach(attachments));
    }

    /// From here on, whatever is attached is detached again.
    pub(super) fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }

    /// Detaches from an interface that is there, and answers.
    pub(super) fn leave(&mut self, serial: Serial, index: u32, attachments: [Attachment; 2]) {
        self.pending += 1;
        self.send(Job::Leave { serial, index, attachments });
    }

    /// Waits until everything asked so far is done.
    pub(super) async fn settled(&self) {
        let (done, all) = oneshot::channel();
        self.send(Job::Fence(done));
        // An error is the end of the thread, with which everything is detached.
        let _ended = all.await;
    }

    /// The next outcome. Cancelling it loses nothing.
    pub(super) async fn outcome(&mut self) -> (Serial, Outcome) {
        match self.outcomes.recv().await {
            Some(outcome) => {
                self.pending = self.pending.saturating_sub(1);
                outcome
            }
            None => std::future::pending().await,
        }
    }

    /// An outcome that is there by now.
    pub(super) fn outcome_by_now(&mut self) -> Option<(Serial, Outcome)> {
        let outcome = self.outcomes.try_recv().ok()?;
        self.pending = self.pending.saturating_sub(1);
        Some(outcome)
    }

    fn send(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            tracing::error!("the thread that attaches has ended");
        }
    }
}

struct Worker {
    object: Object,
    links: Links,
    leftovers: Leftovers,
    ends: Arc<AtomicBool>,
    /// Told so: whatever it costs.
    only_clsact: bool,
}

impl Worker {
    async fn work(
        mut self,
        mut jobs: mpsc::UnboundedReceiver<Job>,
        outcomes: mpsc::UnboundedSender<(Serial, Outcome)>,
    ) {
        while let Some(job) = jobs.recv().await {
            match job {
                Job::Attach { .. } if self.ends() => {}
                Job::Attach { serial, link, mut how, asked } => {
                    if how == TcAttach::Clsact && !self.only_clsact && asked.elapsed() > STILL_NEW {
                        how = TcAttach::Auto;
                    }
                    let outcome = self.attach(&link, how).await;
                    if self.ends() {
                        if let Outcome::Attached { attachments, .. } = outcome {
                            self.leave(link.index, attachments).await;
                        }
                        continue;
                    }
                    if outcomes.send((serial, outcome)).is_err() {
                        return;
                    }
                }
                Job::Detach(attachments) => drop(attachments),
                Job::Leave { serial, index, attachments } => {
                    self.leave(index, attachments).await;
                    if outcomes.send((serial, Outcome::Left)).is_err() {
                        return;
                    }
                }
                Job::Fence(done) => {
                    let _nobody_waits = done.send(());
                }
            }
        }
    }

    fn ends(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    async fn attach(&mut self, link: &Link, how: TcAttach) -> Outcome {
        // As they were announced with the interface: to ask would be to wait for others, again.
        let before = link.counters;
        match self.attach_both(link, how) {
            Ok(attachments) => match self.counters(link).await {
                Some(after) => Outcome::Attached { attachments, before, after },
                // Attaching goes by the name, and by now the name may be another interface's.
                None => Outcome::Gone { tried: link.name.clone() },
            },
            Err(error) => match self.counters(link).await {
                Some(_there) => Outcome::Refused(error),
                None => Outcome::Gone { tried: link.name.clone() },
            },
        }
    }

    async fn leave(&mut self, index: u32, attachments: [Attachment; 2]) {
        let qdisc_is_ours = attachments.iter().any(Attachment::made_the_qdisc);
        drop(attachments);
        if qdisc_is_ours && let Err(error) = self.leftovers.remove_clsact_if_empty(index).await {
            tracing::warn!("{error}");
        }
    }

    fn attach_both(&mut self, link: &Link, how: TcAttach) -> Result<[Attachment; 2], LoadError> {
        const ARPHRD_ETHER: u16 = 1;
        // Or else packets begin with the network header.
        let ethernet = link.arphrd == ARPHRD_ETHER || link.arphrd == libc::ARPHRD_LOOPBACK;
        let (ingress, egress) = if ethernet {
            ("orb8_ingress", "orb8_egress")
        } else {
            ("orb8_ingress_l3", "orb8_egress_l3")
        };
        Ok([
            self.object.attach(ingress, &link.name, Hook::Ingress, how)?,
            self.object.attach(egress, &link.name, Hook::Egress, how)?,
        ])
    }

    /// The kernel's counters of an interface, if it is still there under its name.
    async fn counters(&mut self, link: &Link) -> Option<LinkCounters> {
        let now = self.links.get(link.index).await.ok()??;
        (now.name == link.name).then_some(now.counters)
    }
}
