// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can be wrong with the ring.

use crate::abi::{BufIoreqEntry, IOREQ_BUFFER_SLOT_NUM};

/// Something that Xen never does to the ring: a guest reached the page, or someone else consumes it.
///
/// ```
/// use ioreq_core::ring::RingAnomaly;
/// let why = RingAnomaly::Overrun { read: 600, write: 10 };
/// assert_eq!(why.to_string(), "ring pointers read 600, write 10: not 0 to 511 entries; emptied");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RingAnomaly {
    /// `write_pointer` is behind `read_pointer`, or more than the ring's length ahead. The ring was emptied: `read_pointer` was
    /// moved to `write_pointer`.
    #[error(
        "ring pointers read {read}, write {write}: not 0 to {IOREQ_BUFFER_SLOT_NUM} entries; emptied"
    )]
    Overrun {
        /// `read_pointer` as found.
        read: u32,
        /// `write_pointer` as found.
        write: u32,
    },
    /// An 8-byte request of which only the first entry is there (Xen publishes both at once). The entry was dropped.
    #[error("entry {:#018x} starts a pair, and the second is missing; dropped", entry.bits())]
    Torn {
        /// The first entry.
        entry: BufIoreqEntry,
    },
    /// Someone moved `read_pointer` while an entry was handled, and it was neither a rewind nor an advance that Xen lost.
    #[error("read pointer went from {expected} to {found} by itself")]
    Moved {
        /// As it was when the entry was taken.
        expected: u32,
        /// As found when it was given up.
        found: u32,
    },
}
