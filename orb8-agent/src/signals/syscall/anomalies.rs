//! Feeding the detector, telling of what it finds, and keeping what it has learnt.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use orb8_proto::{Event, SyscallEvent, event};
use tokio::task::JoinHandle;

use super::{
    NAME,
    anomaly::{Detector, Finding, Moment, Names, Saved, Settings, StateFile, Told, Who},
    ends::Figure,
    execs::Call,
    names, record,
    table::Owner,
    task::Task,
    telling::Listener,
};
use crate::{clock::boot_ns, config::Config, enricher::Attribution};

/// What was learnt is written this often, and at the end.
const BETWEEN_SAVES: Duration = Duration::from_secs(300);
/// Characters of a call's arguments that are kept as evidence.
const TEXT: usize = 160;

/// The detector, and its file.
pub(super) struct Anomalies {
    pub(super) detector: Detector,
    file: Option<StateFile>,
    saved: Instant,
    /// Writing takes as long as a disk takes, for which the task does not wait.
    saving: Option<JoinHandle<()>>,
}

impl Anomalies {
    /// Goes on from what was learnt before, if that is kept and can be read.
    pub(super) fn of(config: &Config) -> Self {
        let settings = Settings {
            learn: config.learn,
            window: config.anomaly_window,
            quiet: config.anomaly_quiet,
            sensitive: config.sensitive.clone(),
        };
        let names = Names::new(|number| names::name(number).into());
        let mut detector = Detector::new(settings, names);
        let file = config.state_dir.as_deref().map(StateFile::in_dir);
        match file.as_ref().map(StateFile::read) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(saved))) => {
                let path = file.as_ref().map_or(Path::new(""), StateFile::path).display();
                tracing::info!("{path}: {} workloads are known from before", saved.len());
                detector.restore(saved);
            }
            Some(Err(error)) => tracing::warn!("workloads are learnt anew: {error}"),
        }
        Self { detector, file, saved: Instant::now(), saving: None }
    }

    /// Writes what was learnt, and waits for it.
    pub(super) fn save(&self) {
        if let Some(file) = &self.file {
            write(file, &self.detector.save());
        }
    }
}

fn write(file: &StateFile, learnt: &Saved) {
    if let Err(error) = file.write(learnt) {
        tracing::warn!("what was learnt cannot be kept: {error}");
    }
}

impl Task {
    /// Who that is to the detector. What is nobody's, or a runtime's own in a pod, is not judged.
    fn who(&self, owner: &Owner) -> Option<Who> {
        let account = self.accounts.get(owner)?;
        let identity = Arc::clone(account.identity()?);
        let (image, ending) = match owner {
            Owner::Nobody | Owner::Pod(_) => return None,
            Owner::Unit(_) => (None, false),
            Owner::Container(id) => match self.context.pods.by_container(id) {
                None => (None, false),
                Some((pod, _)) => {
                    let found = pod.containers.iter().find(|container| container.id == *id);
                    (found.map(|container| Arc::clone(&container.image)), pod.ending)
                }
            },
        };
        let born_ns = account.since_start.then_some(account.first_ns);
        Some(Who { identity, image: image.unwrap_or_default(), born_ns, ending })
    }

    /// Calls that were booked.
    pub(super) fn judge_calls(&mut self, owner: &Owner, calls: &[(u16, u64)]) {
        if let Some(who) = self.who(owner) {
            let calls = calls.iter().map(|(number, calls)| (u32::from(*number), *calls));
            let errors = self.ends.is_some().then_some(&[][..]);
            self.anomalies.detector.calls(owner, &who, calls, errors);
        }
    }

    /// How calls ended, where that is watched.
    pub(super) fn judge_ends(&mut self, owner: &Owner, figures: &[((u16, Figure), u64)]) {
        let mut errors: BTreeMap<u32, u64> = BTreeMap::new();
        for ((_, figure), calls) in figures {
            if let Figure::Error(errno) = figure {
                *errors.entry(u32::from(*errno)).or_default() += calls;
            }
        }
        if !errors.is_empty()
            && let Some(who) = self.who(owner)
        {
            let errors: Vec<(u32, u64)> = errors.into_iter().collect();
            self.anomalies.detector.calls(owner, &who, [], Some(&errors));
        }
    }

    /// A call that was told of, by whom is known by now.
    pub(super) fn judge_told(&mut self, call: &Call, attribution: &Attribution) {
        let number = call.head.number;
        if !self.telling.always.contains(&number) || call.head.pid == std::process::id() {
            return;
        }
        let Some(owner) = self.owners.get(&call.head.cgroup_id).cloned() else { return };
        let Some(who) = self.who(&owner) else { return };
        let event = record::event(call, attribution, "", &self.wall);
        let is_program = ["execve", "execveat"].contains(&&*event.syscall);
        let told = Told {
            number,
            pid: event.pid,
            comm: event.comm.clone(),
            text: text(&event),
            program: is_program.then(|| event.path.clone()),
        };
        let of_runtime = self.anomalies.detector.told(&owner, &who, told);
        if of_runtime
            && let Some(account) = self.accounts.get_mut(&owner)
            && let Ok(number) = u16::try_from(number)
        {
            account.leave_to_runtime(number);
        }
    }

    /// Judges what was heard, and tells of what is found.
    pub(super) fn judge(&mut self) {
        let there: HashSet<&Owner> = self
            .owners
            .iter()
            .filter(|(cgroup, _)| self.alive.contains(cgroup))
            .map(|(_, owner)| owner)
            .collect();
        let detector = &mut self.anomalies.detector;
        detector.ended_unless(|owner| there.contains(owner));
        let now = boot_ns();
        let now = Moment { boot_ns: now, unix_ns: self.wall.unix_ns(now) };
        for finding in detector.tick(now) {
            self.tell_finding(&finding, now.unix_ns);
        }
    }

    fn tell_finding(&self, finding: &Finding, at_ns: i64) {
        let over = finding.cleared_ns.is_some();
        let workload = &*finding.workload;
        tracing::info!(
            kind = finding.kind.as_str(),
            namespace = workload.namespace,
            workload = workload.owner,
            unit = workload.unit,
            pod = &*finding.pod_name,
            container = workload.container,
            over,
            "{}",
            finding.summary()
        );
        let node = self.context.config.node_name.clone();
        let anomaly = event::Event::Anomaly(finding.record(&node));
        let event = Event { node, timestamp_ns: at_ns, event: Some(anomaly) };
        let number = names::number(&finding.what);
        self.context.live.publish(NAME, &event, |subscriber, _| {
            let named = self.listeners.get(&subscriber).and_then(Listener::named);
            named.is_none_or(|calls| number.is_some_and(|n| calls.contains(&n)))
        });
    }

    /// Keeps what was learnt, now and then.
    pub(super) fn keep_learnt(&mut self) {
        let Anomalies { detector, file, saved, saving } = &mut self.anomalies;
        let Some(file) = file else { return };
        let is_writing = saving.as_ref().is_some_and(|saving| !saving.is_finished());
        if saved.elapsed() < BETWEEN_SAVES || is_writing {
            return;
        }
        *saved = Instant::now();
        let (file, learnt) = (file.clone(), detector.save());
        *saving = Some(tokio::task::spawn_blocking(move || write(&file, &learnt)));
    }
}

/// A call for people: what it is about where that is known, else its first arguments.
fn text(event: &SyscallEvent) -> String {
    let SyscallEvent { syscall, path, args, arguments, .. } = event;
    let text = match (path.as_str(), arguments.as_slice()) {
        ("", [first, second, ..]) => format!("{syscall}({}, {}, …)", plain(*first), plain(*second)),
        ("", _) => syscall.clone(),
        (path, _) => {
            let args = args.iter().skip(1).map(|arg| format!(" {arg}"));
            format!("{syscall} {path}{}", args.collect::<String>())
        }
    };
    match text.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Small numbers as they are written, others as addresses or flags are.
fn plain(argument: u64) -> String {
    if argument < 1 << 20 { argument.to_string() } else { format!("{argument:#x}") }
}
