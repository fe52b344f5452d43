//! What the server's tasks and the test share.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use orb8_proto::cri::{ContainerEventResponse, ContainerEventType};
use tokio::sync::broadcast;

use super::faults::Faults;
use super::sandbox::{Sandbox, unix_ns};

/// Events that a listener may lag behind.
const LAG: usize = 4_096;

/// Sandboxes by id, and all else.
#[derive(Debug)]
pub(crate) struct State {
    sandboxes: Mutex<BTreeMap<String, Sandbox>>,
    faults: Mutex<Faults>,
    calls: Mutex<BTreeMap<&'static str, usize>>,
    events: broadcast::Sender<ContainerEventResponse>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            sandboxes: Mutex::default(),
            faults: Mutex::default(),
            calls: Mutex::default(),
            events: broadcast::Sender::new(LAG),
        }
    }
}

impl State {
    pub(crate) fn put(&self, sandbox: Sandbox) {
        use ContainerEventType::{ContainerStartedEvent, ContainerStoppedEvent};
        let before = lock(&self.sandboxes).insert(sandbox.id.clone(), sandbox.clone());
        let was = |id: &str| {
            let containers = before.iter().flat_map(|before| &before.containers);
            containers.filter(|container| container.id == id).any(|container| container.running)
        };
        let event = |is: bool| if is { ContainerStartedEvent } else { ContainerStoppedEvent };
        if before.as_ref().is_some_and(|before| before.ready) != sandbox.ready {
            self.tell(&sandbox, &sandbox.id, event(sandbox.ready));
        }
        for container in &sandbox.containers {
            if was(&container.id) != container.running {
                self.tell(&sandbox, &container.id, event(container.running));
            }
        }
    }

    pub(crate) fn remove(&self, id: &str) {
        if let Some(sandbox) = lock(&self.sandboxes).remove(id) {
            self.tell(&sandbox, id, ContainerEventType::ContainerDeletedEvent);
        }
    }

    pub(super) fn change_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.faults));
    }

    pub(super) fn faults(&self) -> Faults {
        lock(&self.faults).clone()
    }

    pub(super) fn sandboxes(&self) -> Vec<Sandbox> {
        lock(&self.sandboxes).values().cloned().collect()
    }

    pub(super) fn log(&self, call: &'static str) {
        *lock(&self.calls).entry(call).or_default() += 1;
    }

    pub(super) fn calls(&self) -> BTreeMap<&'static str, usize> {
        lock(&self.calls).clone()
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.events.subscribe()
    }

    fn tell(&self, sandbox: &Sandbox, id: &str, event: ContainerEventType) {
        // Fails when nobody listens.
        let _heard = self.events.send(ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: event.into(),
            created_at: unix_ns(SystemTime::now()),
            pod_sandbox_status: Some(sandbox.status()),
            containers_statuses: sandbox.containers.iter().map(|c| c.status()).collect(),
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
