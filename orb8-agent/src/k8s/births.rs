//! Cgroups as the kernel makes and removes them: the agent's end of `cgroup_probe`.

use std::{io, os::fd::OwnedFd};

use orb8_common::{
    cgroup::{CgroupEvent, what},
    drops::Drop,
};

use tokio::io::unix::AsyncFd;

use crate::{
    collector::Collector,
    ledger::{Amount, Ledger, LossPoint, Stage},
    probe_loader::{LoadError, Object, RawMap},
};

/// Whose losses they are.
const NAME: &str = "cgroups";
/// What became of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was made; its path, from the root of the hierarchy, where that could be read.
    Made(Option<String>),
    /// It was removed.
    Removed,
}

/// Why cgroups are not told of as they come.
#[derive(Debug, thiserror::Error)]
pub enum BirthsError {
    /// The kernel's type information is missing or lacks what is needed.
    #[error("kernel type information (BTF): {0}")]
    Btf(io::Error),
    /// The probe could not be loaded or attached.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The attached probe; dropping it detaches.
pub struct Births {
    _object: Object,
    events: Collector,
    drops: RawMap,
    ledger: Ledger,
    lost: u64,
}

impl Births {
    /// Loads and attaches the probe.
    pub fn attach(ledger: Ledger) -> Result<Self, BirthsError> {
        let globals =
            orb8_probes::btf::offsets(&orb8_probes::CGROUP_MEMBERS).map_err(BirthsError::Btf)?;
        let probe = orb8_probes::CGROUP_PROBE.map_err(LoadError::from)?;
        let mut object = Object::load(probe, &[], &globals)?;
        let events = Collector::new(object.ring("CGROUP_EVENTS")?, ledger.clone(), NAME);
        let drops = object.map("DROPS")?;
        object.attach_raw_tracepoint("orb8_cgroup_mkdir", "cgroup_mkdir")?;
        object.attach_raw_tracepoint("orb8_cgroup_rmdir", "cgroup_rmdir")?;
        Ok(Self { _object: object, events, drops, ledger, lost: 0 })
    }

    /// Readable when there is something to take. Needs a tokio runtime.
    pub fn readable(&self) -> io::Result<AsyncFd<OwnedFd>> {
        self.events.readable()
    }

    /// Hands on what happened since the last call, in order; answers whether all of it is there.
    pub fn take(&mut self, mut visit: impl FnMut(u64, Change)) -> bool {
        self.events.drain(usize::MAX, |event: CgroupEvent| {
            let path = || event.path().map(|path| String::from_utf8_lossy(path).into_owned());
            let change =
                if event.what == what::MADE { Change::Made(path()) } else { Change::Removed };
            visit(event.id, change);
        });
        let lost = match self.drops.get_per_cpu::<u64>(Drop::RingFull as u32) {
            Ok(counts) => counts.iter().sum(),
            Err(_) => self.lost,
        };
        if lost == self.lost {
            return true;
        }
        self.lost = lost;
        let point = LossPoint { signal: NAME, stage: Stage::Kernel, reason: "ring_full" };
        self.ledger.stands_at(point, Amount::records(lost));
        false
    }
}
