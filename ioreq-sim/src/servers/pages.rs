// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The two pages that a server shares with Xen, as Xen's side sees them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use ioreq_core::abi::{BufIoreqEntry, IOREQ_BUFFER_SLOT_NUM, IOREQ_SLOTS, IOREQ_STATE_MASK, Ioreq};

use crate::memory::{self, PointerPair};

/// One vCPU's slot of the ioreq page (`struct ioreq`), field by field.
///
/// A device model gets at it through the page's address; this is the raw access for tests that play a hostile or broken
/// device model (see [`Hostile`](crate::Hostile)).
///
/// ```
/// use std::sync::atomic::{AtomicU8, Ordering};
/// let slot = ioreq_sim::RawSlot::default();
/// slot.flags.store(0xff, Ordering::Relaxed);
/// assert_eq!(slot.flags.load(Ordering::Relaxed), 0xff);
/// ```
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub struct RawSlot {
    /// Port, guest-physical address, or packed PCI address.
    pub addr: AtomicU64,
    /// Inline data, or its guest-physical address.
    pub data: AtomicU64,
    /// Repeat count.
    pub count: AtomicU32,
    /// Bytes of one access.
    pub size: AtomicU32,
    /// Event-channel port of the vCPU.
    pub vp_eport: AtomicU32,
    /// Padding.
    pub pad: AtomicU16,
    /// State (bits 3:0), data_is_ptr, direction, df.
    pub flags: AtomicU8,
    /// `IOREQ_TYPE_*`.
    pub kind: AtomicU8,
}

impl RawSlot {
    /// Fills the slot, all but its state, which stays NONE.
    pub(crate) fn fill(&self, req: &Ioreq, port: u32) {
        // Relaxed, all of them: `ready` publishes them.
        self.addr.store(req.addr, Ordering::Relaxed);
        self.data.store(req.data, Ordering::Relaxed);
        self.count.store(req.count, Ordering::Relaxed);
        self.size.store(req.size, Ordering::Relaxed);
        self.vp_eport.store(port, Ordering::Relaxed);
        self.pad.store(0, Ordering::Relaxed);
        self.kind.store(req.kind, Ordering::Relaxed);
        let flags = req.flags & !IOREQ_STATE_MASK;
        self.flags.store(flags, Ordering::Relaxed);
    }

    /// Sets the state, as Xen's bit-field assignment does: a load and a store of the byte.
    pub(crate) fn set_state(&self, state: u8) {
        let flags = self.flags.load(Ordering::Relaxed) & !IOREQ_STATE_MASK;
        // Release: pairs with the device model's acquiring load of the state (READY publishes `fill`).
        self.flags
            .store(flags | (state & IOREQ_STATE_MASK), Ordering::Release);
    }

    /// The state.
    pub(crate) fn state(&self) -> u8 {
        // Acquire: `wait_for_io`'s smp_rmb; pairs with the device model's release of RESP_READY, so that `data` is its answer.
        self.flags.load(Ordering::Acquire) & IOREQ_STATE_MASK
    }
}

/// The ioreq page: a slot for each of 128 vCPUs.
#[repr(C, align(4096))]
#[derive(Debug)]
pub(crate) struct IoreqPage {
    pub(crate) slots: [RawSlot; IOREQ_SLOTS],
}

/// The buffered page: two pointers, 511 entries.
#[repr(C, align(4096))]
#[derive(Debug)]
pub(crate) struct BufferedPage {
    pointers: PointerPair,
    entries: [AtomicU64; IOREQ_BUFFER_SLOT_NUM as usize],
}

const _: () = {
    assert!(size_of::<RawSlot>() == 32);
    assert!(size_of::<IoreqPage>() == 4096 && align_of::<IoreqPage>() == 4096);
    assert!(size_of::<BufferedPage>() == 4096 && align_of::<BufferedPage>() == 4096);
};

impl IoreqPage {
    pub(crate) fn new() -> Arc<Self> {
        let slots = std::array::from_fn(|_| RawSlot::default());
        Arc::new(IoreqPage { slots })
    }
}

impl BufferedPage {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(BufferedPage {
            pointers: PointerPair::default(),
            entries: [const { AtomicU64::new(0) }; IOREQ_BUFFER_SLOT_NUM as usize],
        })
    }

    pub(crate) fn read_pointer(&self) -> &AtomicU32 {
        &self.pointers.read
    }

    pub(crate) fn write_pointer(&self) -> &AtomicU32 {
        &self.pointers.write
    }

    pub(crate) fn entry(&self, index: u32) -> &AtomicU64 {
        let at = index % IOREQ_BUFFER_SLOT_NUM;
        // The remainder is below the array's length.
        &self.entries[at as usize]
    }

    /// Xen's `ioreq_send_buffered`: puts one entry, or two for `second`, under the caller's lock. False if full.
    ///
    /// The pointers are the device model's to write as well: whatever they hold, this stays inside the page and ends.
    pub(crate) fn push(
        &self,
        first: BufIoreqEntry,
        second: Option<BufIoreqEntry>,
        atomic: bool,
    ) -> bool {
        let extra = u32::from(second.is_some());
        // Acquire: pairs with the consumer's release of its read pointer, so that an entry is reused after it was read.
        let read = self.pointers.read.load(Ordering::Acquire);
        let write = self.pointers.write.load(Ordering::Relaxed);
        if write.wrapping_sub(read) >= IOREQ_BUFFER_SLOT_NUM - extra {
            return false;
        }
        // Relaxed: the store of the write pointer publishes the entries.
        self.entry(write).store(first.bits(), Ordering::Relaxed);
        if let Some(second) = second {
            let next = self.entry(write.wrapping_add(1));
            next.store(second.bits(), Ordering::Relaxed);
        }
        let write = write.wrapping_add(1 + extra);
        // Release: Xen's smp_wmb before write_pointer; pairs with the consumer's acquiring load of it.
        self.pointers.write.store(write, Ordering::Release);
        if atomic {
            self.rewind(extra);
        }
        true
    }

    /// Keeps the pointers from overflowing: takes whole turns off both at once, as Xen does in the ATOMIC mode.
    fn rewind(&self, extra: u32) {
        for _ in extra..IOREQ_BUFFER_SLOT_NUM {
            let read = self.pointers.read.load(Ordering::Relaxed);
            if read < IOREQ_BUFFER_SLOT_NUM {
                break;
            }
            let write = self.pointers.write.load(Ordering::Relaxed);
            let turns = read / IOREQ_BUFFER_SLOT_NUM * IOREQ_BUFFER_SLOT_NUM;
            let new = (read - turns, write.wrapping_sub(turns));
            // A consumer that moved its pointer meanwhile makes it fail: look again.
            let _ = memory::compare_exchange_pair(&self.pointers, (read, write), new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u32) -> BufIoreqEntry {
        BufIoreqEntry::new(1, false, 2, n, n)
    }

    #[test]
    fn the_ring_holds_511_entries_and_then_refuses() {
        let page = BufferedPage::new();
        for n in 0..511 {
            assert!(page.push(entry(n), None, true), "entry {n}");
        }
        assert!(!page.push(entry(511), None, true));
        // One free slot is not enough for a pair.
        page.read_pointer().store(1, Ordering::Relaxed);
        assert!(!page.push(entry(0), Some(entry(1)), true));
        assert!(page.push(entry(600), None, true));
        assert_eq!(page.entry(0).load(Ordering::Relaxed), entry(600).bits());
    }

    #[test]
    fn both_pointers_are_rewound_by_whole_turns_in_atomic_mode_only() {
        for atomic in [true, false] {
            let page = BufferedPage::new();
            page.read_pointer().store(1024, Ordering::Relaxed);
            page.write_pointer().store(1030, Ordering::Relaxed);
            assert!(page.push(entry(1), None, atomic));
            let pointers = (
                page.read_pointer().load(Ordering::Relaxed),
                page.write_pointer().load(Ordering::Relaxed),
            );
            assert_eq!(pointers, if atomic { (2, 9) } else { (1024, 1031) });
        }
    }

    #[test]
    fn absurd_pointers_neither_hang_nor_leave_the_page() {
        for (read, write) in [
            (u32::MAX, 0),
            (u32::MAX, u32::MAX),
            (7, 3),
            (u32::MAX - 510, 5),
        ] {
            let page = BufferedPage::new();
            page.read_pointer().store(read, Ordering::Relaxed);
            page.write_pointer().store(write, Ordering::Relaxed);
            let _ = page.push(entry(1), Some(entry(2)), true);
        }
    }
}
