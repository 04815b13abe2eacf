// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the ring's protocol asks of the memory that the ring is in.

use crate::abi::{BufIoreqEntry, IOREQ_BUFFER_SLOT_NUM};
use crate::sync::atomic::Ordering;

/// The place of an entry in the ring, below [`IOREQ_BUFFER_SLOT_NUM`] by construction.
///
/// ```
/// use ioreq_core::ring::EntryIndex;
/// assert_eq!(EntryIndex::of(510).get(), 510);
/// assert_eq!(EntryIndex::of(511).get(), 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryIndex(u32);

impl EntryIndex {
    /// The place that a pointer points to.
    #[must_use]
    pub const fn of(pointer: u32) -> Self {
        EntryIndex(pointer % IOREQ_BUFFER_SLOT_NUM)
    }

    /// The place, below [`IOREQ_BUFFER_SLOT_NUM`].
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Both pointers, at one moment.
///
/// ```
/// use ioreq_core::ring::Pointers;
/// let wrapped = Pointers { read: u32::MAX, write: 1 };
/// assert_eq!(wrapped.distance(), 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointers {
    /// Next entry to take.
    pub read: u32,
    /// Next entry that Xen fills.
    pub write: u32,
}

impl Pointers {
    /// Entries in the ring; more than [`IOREQ_BUFFER_SLOT_NUM`] is nonsense.
    #[must_use]
    pub const fn distance(self) -> u32 {
        self.write.wrapping_sub(self.read)
    }
}

/// A buffered page ([`BufferedIopage`](crate::abi::BufferedIopage)), each method one atomic access.
///
/// The protocol, and thus every ordering, is in [`Consumer`](super::Consumer); an implementation only passes them on.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use ioreq_core::{abi::BufIoreqEntry, ring::{BufferedRing, EntryIndex, Pointers, RingMemory}};
///
/// /// A ring that always has one more 1-byte write of 7.
/// #[derive(Default)]
/// struct Endless(AtomicU32);
///
/// impl RingMemory for Endless {
///     fn pointers(&self, order: Ordering) -> Pointers {
///         let read = self.0.load(order);
///         Pointers { read, write: read.wrapping_add(1) }
///     }
///     fn read_pointer(&self, order: Ordering) -> u32 { self.0.load(order) }
///     fn write_pointer(&self, order: Ordering) -> u32 { self.0.load(order).wrapping_add(1) }
///     fn advance(&self, by: u32, order: Ordering) -> u32 { self.0.fetch_add(by, order) }
///     fn entry(&self, _: EntryIndex) -> BufIoreqEntry { BufIoreqEntry::new(1, false, 0, 0xa0000, 7) }
/// }
///
/// let ring = BufferedRing::in_memory(Endless::default());
/// let drained = ring.consumer().unwrap().drain(3, |request| assert_eq!(request.unwrap().data(), 7));
/// assert_eq!((drained.taken, drained.more), (3, true));
/// ```
pub trait RingMemory {
    /// Loads both pointers, by one access.
    fn pointers(&self, order: Ordering) -> Pointers;
    /// Loads `read_pointer` alone.
    fn read_pointer(&self, order: Ordering) -> u32;
    /// Loads `write_pointer` alone.
    fn write_pointer(&self, order: Ordering) -> u32;
    /// Adds to `read_pointer` by a read-modify-write, wrapping, without a carry into `write_pointer`. Returns what it was.
    fn advance(&self, by: u32, order: Ordering) -> u32;
    /// Loads an entry. Relaxed: the pointers order it.
    fn entry(&self, at: EntryIndex) -> BufIoreqEntry;
}
