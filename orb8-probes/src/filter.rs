//! Which events somebody wants. Asked before an event is emitted, never before a count.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap},
};
use orb8_common::{
    drops::Drop,
    pods::{POD_METADATA_SIZE, PodMetadata, events, pod_flags::UNWANTED},
};

use crate::emit;

/// By cgroup: written by the agent.
#[map]
static POD_METADATA: HashMap<u64, PodMetadata> = HashMap::with_max_entries(POD_METADATA_SIZE, 0);
/// One word, see [`events`]: written by the agent.
#[map]
static SETTINGS: Array<u32> = Array::with_max_entries(1, 0);

/// Whom an event is about.
pub(crate) enum Whose {
    /// Whoever owns this cgroup.
    Cgroup(u64),
    /// The node itself, which is no pod.
    Node,
    /// Nobody knows (yet): it may be anybody's.
    Unknown,
}

/// Whether to emit an event; counts one that is not.
#[inline(always)]
pub(crate) fn wants(whose: impl FnOnce() -> Whose) -> bool {
    let wanted = match SETTINGS.get(0) {
        Some(&events::NONE) => false,
        Some(&events::WANTED) => is_wanted(whose()),
        _ => true,
    };
    if !wanted {
        emit::count(Drop::EventsUnwanted, 1);
    }
    wanted
}

#[inline(always)]
fn is_wanted(whose: Whose) -> bool {
    match whose {
        Whose::Cgroup(id) => {
            // SAFETY: the agent replaces values and does not change them.
            let pod = unsafe { POD_METADATA.get(id) };
            pod.is_none_or(|pod| pod.flags & UNWANTED == 0)
        }
        Whose::Node => false,
        Whose::Unknown => true,
    }
}
