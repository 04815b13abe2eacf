// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Stands in for `page.rs` in loom models: one slot, in atomics that loom sees, so that a whole server can be run in a model.

use std::sync::Arc;

use super::memory::{SlotIndex, SlotMemory};
use crate::hypervisor::SharedPage;
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The one slot. Its owner hands it out as the owner of a [`SharedPage`].
#[derive(Debug, Default)]
#[repr(align(4096))]
pub(crate) struct LoomSlot {
    pub(crate) addr: AtomicU64,
    pub(crate) data: AtomicU64,
    pub(crate) count: AtomicU32,
    pub(crate) size: AtomicU32,
    pub(crate) flags: AtomicU8,
    pub(crate) kind: AtomicU8,
}

/// The ioreq page of a domain with one vCPU.
#[derive(Debug, Clone)]
pub struct IoreqPage(Arc<LoomSlot>);

impl IoreqPage {
    /// The slot that owns `page`.
    ///
    /// # Panics
    /// If it is a page of another kind.
    #[must_use]
    pub fn new(page: SharedPage) -> Self {
        let owner = page.owner();
        IoreqPage(owner.downcast().expect("made of a slot of the model"))
    }
}

impl SlotMemory for IoreqPage {
    fn flags(&self, _: SlotIndex, order: Ordering) -> u8 {
        self.0.flags.load(order)
    }
    fn set_flags(&self, _: SlotIndex, flags: u8, order: Ordering) {
        self.0.flags.store(flags, order);
    }
    fn addr(&self, _: SlotIndex) -> u64 {
        self.0.addr.load(Ordering::Relaxed)
    }
    fn data(&self, _: SlotIndex) -> u64 {
        self.0.data.load(Ordering::Relaxed)
    }
    fn set_data(&self, _: SlotIndex, data: u64) {
        self.0.data.store(data, Ordering::Relaxed);
    }
    fn count(&self, _: SlotIndex) -> u32 {
        self.0.count.load(Ordering::Relaxed)
    }
    fn size(&self, _: SlotIndex) -> u32 {
        self.0.size.load(Ordering::Relaxed)
    }
    fn vp_eport(&self, slot: SlotIndex) -> u32 {
        slot.vcpu().0 + 1
    }
    fn kind(&self, _: SlotIndex) -> u8 {
        self.0.kind.load(Ordering::Relaxed)
    }
}
