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

/// Whether to emit an event; counts one that is not. `cgroup` finds the cgroup of the pod that it is
/// about, if one is known: what nobody is known to own is wanted.
#[inline(always)]
pub(crate) fn wants(cgroup: impl FnOnce() -> Option<u64>) -> bool {
    let wanted = match SETTINGS.get(0) {
        Some(&events::NONE) => false,
        Some(&events::WANTED) => cgroup().is_none_or(is_wanted),
        _ => true,
    };
    if !wanted {
        emit::count(Drop::EventsUnwanted, 1);
    }
    wanted
}

#[inline(always)]
fn is_wanted(cgroup: u64) -> bool {
    // SAFETY: the agent replaces values and does not change them.
    let pod = unsafe { POD_METADATA.get(cgroup) };
    pod.is_none_or(|pod| pod.flags & UNWANTED == 0)
}
