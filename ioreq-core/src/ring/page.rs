// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: atomic access to the pointers and entries of a page that Xen (and with legacy frames a guest) writes at any time.

use std::mem::offset_of;

use super::memory::{EntryIndex, Pointers, RingMemory};
use crate::abi::{BufIoreqEntry, BufferedIopage};
use crate::hypervisor::SharedPage;
use crate::sync::foreign::{AtomicU32, AtomicU64, Ordering};

/// The buffered page (`struct buffered_iopage`) as [`RingMemory`].
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU8, Ordering}};
/// use ioreq_core::{hypervisor::SharedPage, ring::{BufferedPage, RingMemory}};
/// # #[repr(align(4096))]
/// # struct Page([AtomicU8; 4096]);
/// # let owner = Arc::new(Page([const { AtomicU8::new(0) }; 4096]));
/// # let addr = std::ptr::NonNull::from(&*owner).cast();
/// # // SAFETY: 4096 bytes of atomics, alive as long as `owner`, which the page keeps.
/// # let shared = unsafe { SharedPage::new(addr, owner.clone()) }?;
/// let page = BufferedPage::new(shared);
/// assert_eq!(page.advance(2, Ordering::Release), 0);
/// assert_eq!(page.pointers(Ordering::Acquire).read, 2);
/// # Ok::<(), ioreq_core::hypervisor::PageError>(())
/// ```
#[derive(Debug)]
pub struct BufferedPage(SharedPage);

const _: () = {
    // `pointers` takes the two for one little-endian word.
    assert!(offset_of!(BufferedIopage, read_pointer) == 0);
    assert!(offset_of!(BufferedIopage, write_pointer) == 4);
    assert!(size_of::<BufferedIopage>() <= 4096);
};

impl BufferedPage {
    /// The ring in `page`.
    #[must_use]
    pub fn new(page: SharedPage) -> Self {
        BufferedPage(page)
    }

    /// The address at `offset`, which all callers keep within the page.
    #[inline]
    fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: `add` needs the result inside the page: offsets are those of the two pointers, or of entry `i` with `i`
        // below 511 (`EntryIndex`), so below 4096, the bytes that `SharedPage` vouches for.
        unsafe { self.0.as_ptr().as_ptr().add(offset) }
    }

    #[inline]
    fn atomic32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `from_ptr` needs a valid, aligned address that is only accessed atomically while the reference lives: it is
        // inside the page (see `at`) at a multiple of 4; the page lives as long as `self`; `SharedPage::new`'s caller vouched
        // for atomic access by everybody in this process. Accesses of different widths never race within this process:
        // `pointers` and `advance` are for the one consumer, everybody else only loads.
        unsafe { AtomicU32::from_ptr(self.at(offset).cast()) }
    }

    #[inline]
    fn atomic64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `atomic32`; the pointers are at offset 0, entries at multiples of 8.
        unsafe { AtomicU64::from_ptr(self.at(offset).cast()) }
    }
}

impl RingMemory for BufferedPage {
    #[inline]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the two halves of the word are taken apart"
    )]
    fn pointers(&self, order: Ordering) -> Pointers {
        let both = u64::from_le(self.atomic64(0).load(order));
        Pointers {
            read: both as u32,
            write: (both >> 32) as u32,
        }
    }

    #[inline]
    fn read_pointer(&self, order: Ordering) -> u32 {
        self.atomic32(offset_of!(BufferedIopage, read_pointer))
            .load(order)
    }

    #[inline]
    fn write_pointer(&self, order: Ordering) -> u32 {
        self.atomic32(offset_of!(BufferedIopage, write_pointer))
            .load(order)
    }

    #[inline]
    fn advance(&self, by: u32, order: Ordering) -> u32 {
        self.atomic32(offset_of!(BufferedIopage, read_pointer))
            .fetch_add(by, order)
    }

    #[inline]
    fn entry(&self, at: EntryIndex) -> BufIoreqEntry {
        let offset = offset_of!(BufferedIopage, slots) + at.get() * size_of::<BufIoreqEntry>();
        // Relaxed: see the trait.
        BufIoreqEntry::from_bits(u64::from_le(self.atomic64(offset).load(Ordering::Relaxed)))
    }
}
