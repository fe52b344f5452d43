//! What a probe is told of pods: `POD_METADATA` and `SETTINGS` of its object, kept current, so that
//! events which nobody wants are not even emitted.

use std::{collections::HashMap, io};

use orb8_common::pods::{PodMetadata, events, pod_flags};
use orb8_k8s::PodLookup;
use orb8_proto::MapStatus;

use super::cgroups::Cgroups;
use crate::{
    live::Interest,
    probe_loader::{LoadError, Object, RawMap},
};
use orb8_k8s::PodUid;

/// The agent's end of the two maps.
pub struct PodMetadataMap {
    pods: RawMap,
    settings: RawMap,
    written: HashMap<u64, PodMetadata>,
    /// A cgroup of every pod that is in the map: the pod's own where that is known.
    cgroups: HashMap<PodUid, u64>,
    events: u32,
    /// Whether the node's own cgroups are in the map, too.
    has_units: bool,
}

impl PodMetadataMap {
    /// The maps of `object`. Until the first [`Self::update`] nothing is emitted.
    pub fn of(object: &mut Object) -> Result<Self, LoadError> {
        let (pods, settings) = (object.map("POD_METADATA")?, object.map("SETTINGS")?);
        let (written, cgroups) = (HashMap::new(), HashMap::new());
        let map = Self { pods, settings, written, cgroups, events: events::NONE, has_units: false };
        let failed = |error| LoadError::MapIo { name: "SETTINGS".into(), error };
        map.settings.set(&0_u32, &map.events).map_err(failed)?;
        Ok(map)
    }

    /// Has the node's own cgroups in the map, too: for probes that know an event by its cgroup only.
    #[must_use]
    pub fn with_units(self) -> Self {
        Self { has_units: true, ..self }
    }

    /// Writes what changed: which cgroups are pods', and whose events somebody wants. A pod whose
    /// name is not known (yet) is wanted, since a filter may turn out to mean it.
    pub fn update(
        &mut self,
        cgroups: &Cgroups,
        pods: &dyn PodLookup,
        interest: &Interest,
    ) -> io::Result<()> {
        let wanted = self.of_cgroups(cgroups, pods, interest);
        self.cgroups.clear();
        let room = self.pods.max_entries() as usize;
        let mut now = HashMap::with_capacity(wanted.len().min(room));
        for (id, (uid, is_pods_own, metadata)) in wanted.into_iter().take(room) {
            now.insert(id, metadata);
            let Some(uid) = uid else { continue };
            let cgroup = self.cgroups.entry(uid).or_insert(id);
            if is_pods_own {
                *cgroup = id;
            }
        }
        // First what makes room.
        for id in self.written.keys().filter(|id| !now.contains_key(id)) {
            self.pods.remove(id)?;
        }
        for (id, metadata) in &now {
            if self.written.get(id) != Some(metadata) {
                self.pods.set(id, metadata)?;
            }
        }
        self.written = now;
        let events = match interest {
            Interest::Nothing => events::NONE,
            Interest::Everything => events::ALL,
            Interest::Pods(_) => events::WANTED,
        };
        if events != self.events {
            self.settings.set(&0_u32, &events)?;
            self.events = events;
        }
        Ok(())
    }

    fn of_cgroups(
        &self,
        cgroups: &Cgroups,
        pods: &dyn PodLookup,
        interest: &Interest,
    ) -> HashMap<u64, (Option<PodUid>, bool, PodMetadata)> {
        let mut flags_of = HashMap::new();
        let mut all = HashMap::new();
        cgroups.for_each(|id, cgroup| {
            let Some(identity) = cgroup.identity else {
                if self.has_units && matches!(interest, Interest::Pods(_)) {
                    let metadata =
                        PodMetadata { pod_uid: [0; 16], flags: pod_flags::UNWANTED, reserved: 0 };
                    all.insert(id, (None, false, metadata));
                }
                return;
            };
            let Some(uid) = identity.pod_uid else { return };
            let flags = *flags_of.entry(uid).or_insert_with(|| {
                let unwanted = pods
                    .by_uid(&uid)
                    .is_some_and(|pod| !interest.may_want(&pod.namespace, &pod.name));
                if unwanted { pod_flags::UNWANTED } else { 0 }
            });
            let metadata = PodMetadata { pod_uid: uid.bytes(), flags, reserved: 0 };
            all.insert(id, (Some(uid), identity.container_id.is_none(), metadata));
        });
        all
    }

    /// The cgroup by which the probe knows a pod.
    #[must_use]
    pub fn cgroup_of(&self, pod: &PodUid) -> Option<u64> {
        self.cgroups.get(pod).copied()
    }

    /// Whether the probe knows this cgroup as a pod's.
    #[must_use]
    pub fn knows(&self, cgroup: u64) -> bool {
        self.written.contains_key(&cgroup)
    }

    /// How full the map is.
    #[must_use]
    pub fn status(&self) -> MapStatus {
        MapStatus {
            name: "POD_METADATA".into(),
            r#type: "hash".into(),
            entries: self.written.len() as u64,
            max_entries: u64::from(self.pods.max_entries()),
        }
    }

    /// Kernel memory of the maps, in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.pods.memory() + self.settings.memory()
    }
}
