// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: reads and writes single fields of a page shared with the hypervisor, by byte offset.
//!
//! The suite needs it beside the framework's accessors: to see the layout byte by byte, and to do what a device model must
//! never do to a slot.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use ioreq_core::abi::{BufIoreqEntry, IOREQ_BUFFER_SLOT_NUM, IOREQ_STATE_MASK};
use ioreq_core::hypervisor::SharedPage;

/// A shared page, by byte offsets.
#[derive(Debug, Clone)]
pub(crate) struct Page(SharedPage);

impl Page {
    pub(crate) fn new(page: SharedPage) -> Self {
        Page(page)
    }

    fn word8(&self, at: usize) -> &AtomicU8 {
        assert!(at < 4096);
        // SAFETY: the page is valid for 4096 bytes while `self` lives (`SharedPage::new`'s contract) and `at` is below that.
        let addr = unsafe { self.0.as_ptr().add(at) };
        // SAFETY: a mapped byte, which everybody accesses atomically (`SharedPage::new`'s contract), for as long as `self`.
        unsafe { AtomicU8::from_ptr(addr.as_ptr()) }
    }

    fn word32(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at < 4096);
        // SAFETY: as in `word8`; the page is aligned to 4096 and `at` to 4, so four bytes fit.
        let addr = unsafe { self.0.as_ptr().add(at) }.cast::<u32>();
        // SAFETY: as in `word8`, and aligned.
        unsafe { AtomicU32::from_ptr(addr.as_ptr()) }
    }

    fn word64(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < 4096);
        // SAFETY: as in `word8`; the page is aligned to 4096 and `at` to 8, so eight bytes fit.
        let addr = unsafe { self.0.as_ptr().add(at) }.cast::<u64>();
        // SAFETY: as in `word8`, and aligned.
        unsafe { AtomicU64::from_ptr(addr.as_ptr()) }
    }

    // Acquire throughout: pairs with Xen's barrier before READY and before write_pointer. Release throughout: pairs with
    // the smp_rmb after Xen's load of the state. The suite is no place to save a fence.

    pub(crate) fn u8(&self, at: usize) -> u8 {
        self.word8(at).load(Ordering::Acquire)
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        self.word32(at).load(Ordering::Acquire)
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        self.word64(at).load(Ordering::Acquire)
    }

    pub(crate) fn set_u8(&self, at: usize, value: u8) {
        self.word8(at).store(value, Ordering::Release);
    }

    pub(crate) fn set_u32(&self, at: usize, value: u32) {
        self.word32(at).store(value, Ordering::Release);
    }

    pub(crate) fn set_u64(&self, at: usize, value: u64) {
        self.word64(at).store(value, Ordering::Release);
    }

    /// State of a vCPU's slot.
    pub(crate) fn state(&self, vcpu: usize) -> u8 {
        self.u8(32 * vcpu + 30) & IOREQ_STATE_MASK
    }

    /// Sets the state of a vCPU's slot, whatever it is now.
    pub(crate) fn set_state(&self, vcpu: usize, state: u8) {
        let flags = self.u8(32 * vcpu + 30);
        self.set_u8(32 * vcpu + 30, flags & !IOREQ_STATE_MASK | state);
    }

    /// `vp_eport` of a vCPU's slot.
    pub(crate) fn vp_eport(&self, vcpu: usize) -> u32 {
        self.u32(32 * vcpu + 24)
    }

    /// Sets the data of a vCPU's slot.
    pub(crate) fn set_data(&self, vcpu: usize, data: u64) {
        self.set_u64(32 * vcpu + 8, data);
    }

    /// `read_pointer` and `write_pointer` of a buffered page.
    pub(crate) fn pointers(&self) -> (u32, u32) {
        // Both at once: Xen may rewind them between two loads.
        let both = self.u64(0);
        let half = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or_default();
        (half(both), half(both >> 32))
    }

    /// The entry that a pointer stands for.
    pub(crate) fn entry(&self, pointer: u32) -> BufIoreqEntry {
        let index = pointer % IOREQ_BUFFER_SLOT_NUM;
        BufIoreqEntry::from_bits(self.u64(8 + 8 * index as usize))
    }

    /// Entries waiting in a buffered page.
    pub(crate) fn waiting(&self) -> u32 {
        let (read, write) = self.pointers();
        write.wrapping_sub(read)
    }

    /// Takes all waiting entries, as a consumer of mode ATOMIC has to: `read_pointer` moves by a read-modify-write.
    pub(crate) fn drain(&self) -> Vec<BufIoreqEntry> {
        let mut taken = Vec::new();
        while self.waiting() != 0 {
            taken.push(self.entry(self.pointers().0));
            // AcqRel: releases the entry to Xen, which reads the pointer before it overwrites one.
            self.word32(0).fetch_add(1, Ordering::AcqRel);
        }
        taken
    }
}
