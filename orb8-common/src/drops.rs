//! What the kernel side counts about itself: the slots of each probe's `DROPS` map.
//!
//! A BPF ring buffer does not say what it refused, and neither does a full hash map. So the probe
//! counts every refusal at the place where it happens, per CPU, and the agent's ledger sums it up.

/// One slot of a `DROPS` per-CPU array of `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Drop {
    /// Not a loss: event records that the probe wanted to emit. `seen = delivered + RingFull`.
    EventsSeen = 0,
    /// Event records refused by the ring buffer because it was full.
    RingFull = 1,
    /// Packets whose flow found no room in the flow table. Their packets and bytes are in the
    /// interface's overflow counter: the totals are whole, the detail is lost.
    FlowTableFull = 2,
    /// Packets on an interface that has no overflow counter, met with a full flow table: counted
    /// nowhere else. Cannot happen while the agent creates the counter before it attaches.
    Uncounted = 3,
    /// Not a loss: event records that were not emitted because no subscriber wants them. They are not
    /// among `EventsSeen`.
    EventsUnwanted = 4,
    /// Calls whose thread found no room where beginnings are kept: counted, but not how they end.
    BegunFull = 5,
    /// Ends of calls that found no room in their table: how those calls ended is known to nobody.
    OutcomesFull = 6,
    /// Errors that found no room in their table: they are among all errors, but not under their
    /// number.
    ErrorsFull = 7,
}

impl Drop {
    /// Number of slots, the `max_entries` of `DROPS`.
    pub const SLOTS: u32 = 8;
}
