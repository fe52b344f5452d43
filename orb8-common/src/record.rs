//! The contract of a value that is written on one side of the kernel border and read on the other.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Plain bytes: no `bool`, no enum with data, no pointer, no padding that nobody wrote.
///
/// Implemented for every type that derives the four `zerocopy` traits; never by hand.
pub trait Record: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static {
    /// Reads a record from the front of `bytes`, whatever their alignment; `None` when they are short.
    ///
    /// Ring buffer items are only 8-byte aligned and map batches not at all, so this copies.
    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(record, _rest)| record)
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static> Record for T {}
