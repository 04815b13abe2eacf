// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: atomic access, field by field, to a page that Xen (and with legacy frames a guest) writes at any time.

use std::mem::{offset_of, size_of};

use super::memory::{SlotIndex, SlotMemory};
use crate::abi::{IOREQ_SLOTS, Ioreq};
use crate::hypervisor::SharedPage;
use crate::sync::foreign::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The ioreq page (`struct shared_iopage`) as [`SlotMemory`]. Loads and stores only: no read-modify-write.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU8, Ordering}};
/// use ioreq_core::{VcpuId, hypervisor::SharedPage, slot::{IoreqPage, SlotIndex, SlotMemory}};
/// # #[repr(align(4096))]
/// # struct Page([AtomicU8; 4096]);
/// # let owner = Arc::new(Page([const { AtomicU8::new(0) }; 4096]));
/// # let addr = std::ptr::NonNull::from(&*owner).cast();
/// # // SAFETY: 4096 bytes of atomics, alive as long as `owner`, which the page keeps.
/// # let shared = unsafe { SharedPage::new(addr, owner.clone()) }?;
/// let page = IoreqPage::new(shared);
/// let slot = SlotIndex::new(VcpuId(2)).unwrap();
/// page.set_data(slot, 7);
/// assert_eq!(page.data(slot), 7);
/// # assert_eq!(owner.0[2 * 32 + 8].load(Ordering::Relaxed), 7);
/// # Ok::<(), ioreq_core::hypervisor::PageError>(())
/// ```
#[derive(Debug, Clone)]
pub struct IoreqPage(SharedPage);

const _: () = assert!(IOREQ_SLOTS * size_of::<Ioreq>() <= 4096);

impl IoreqPage {
    /// The slots in `page`.
    #[must_use]
    pub fn new(page: SharedPage) -> Self {
        IoreqPage(page)
    }

    /// The address of the field at `offset` of a slot. `offset` must be a field's: all callers pass `offset_of!`.
    #[inline]
    fn field(&self, slot: SlotIndex, offset: usize) -> *mut u8 {
        let at = slot.get() * size_of::<Ioreq>() + offset;
        // SAFETY: `add` needs the result inside the page: a `SlotIndex` is below 128 by construction, and `offset` is a
        // field's within a slot, so `at` is below 4096, the bytes that `SharedPage` vouches for.
        unsafe { self.0.as_ptr().as_ptr().add(at) }
    }

    #[inline]
    fn atomic8(&self, slot: SlotIndex, offset: usize) -> &AtomicU8 {
        // SAFETY: `from_ptr` needs a valid, aligned address that is only accessed atomically while the reference lives: it is
        // inside the page (see `field`); the page lives as long as `self`; `SharedPage::new`'s caller vouched for atomic
        // access by everybody in this process. The reference is to the atomic, never to the struct.
        unsafe { AtomicU8::from_ptr(self.field(slot, offset)) }
    }

    #[inline]
    fn atomic32(&self, slot: SlotIndex, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `atomic8`; aligned to 4, because the page is aligned to 4096, a slot is 32 bytes, and `Ioreq` is
        // `repr(C)` with its `u32` fields aligned.
        unsafe { AtomicU32::from_ptr(self.field(slot, offset).cast()) }
    }

    #[inline]
    fn atomic64(&self, slot: SlotIndex, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `atomic32`, for 8: `Ioreq`'s `u64` fields are aligned to 8.
        unsafe { AtomicU64::from_ptr(self.field(slot, offset).cast()) }
    }
}

impl SlotMemory for IoreqPage {
    #[inline]
    fn flags(&self, slot: SlotIndex, order: Ordering) -> u8 {
        self.atomic8(slot, offset_of!(Ioreq, flags)).load(order)
    }

    #[inline]
    fn set_flags(&self, slot: SlotIndex, flags: u8, order: Ordering) {
        self.atomic8(slot, offset_of!(Ioreq, flags))
            .store(flags, order);
    }

    // Relaxed, here and below: the flag byte's accesses order the other fields (see the trait).
    #[inline]
    fn addr(&self, slot: SlotIndex) -> u64 {
        self.atomic64(slot, offset_of!(Ioreq, addr))
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn data(&self, slot: SlotIndex) -> u64 {
        self.atomic64(slot, offset_of!(Ioreq, data))
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn set_data(&self, slot: SlotIndex, data: u64) {
        self.atomic64(slot, offset_of!(Ioreq, data))
            .store(data, Ordering::Relaxed);
    }

    #[inline]
    fn count(&self, slot: SlotIndex) -> u32 {
        self.atomic32(slot, offset_of!(Ioreq, count))
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn size(&self, slot: SlotIndex) -> u32 {
        self.atomic32(slot, offset_of!(Ioreq, size))
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn vp_eport(&self, slot: SlotIndex) -> u32 {
        self.atomic32(slot, offset_of!(Ioreq, vp_eport))
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn kind(&self, slot: SlotIndex) -> u8 {
        self.atomic8(slot, offset_of!(Ioreq, kind))
            .load(Ordering::Relaxed)
    }
}
