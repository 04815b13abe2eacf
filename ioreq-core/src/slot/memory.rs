// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the slot protocol asks of the memory that the slots are in.

use crate::abi::IOREQ_SLOTS;
use crate::ids::VcpuId;
use crate::sync::atomic::Ordering;

/// The number of a slot in the ioreq page, below [`IOREQ_SLOTS`] by construction.
///
/// ```
/// use ioreq_core::{VcpuId, slot::SlotIndex};
/// assert_eq!(SlotIndex::new(VcpuId(127)).unwrap().get(), 127);
/// assert_eq!(SlotIndex::new(VcpuId(128)), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotIndex(u8);

const _: () = assert!(IOREQ_SLOTS <= u8::MAX as usize);

impl SlotIndex {
    /// The slot of a vCPU; `None` beyond the page.
    #[must_use]
    pub const fn new(vcpu: VcpuId) -> Option<Self> {
        if (vcpu.0 as usize) < IOREQ_SLOTS {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "below 128, as just checked"
            )]
            Some(SlotIndex(vcpu.0 as u8))
        } else {
            None
        }
    }

    /// The number, below [`IOREQ_SLOTS`].
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// The vCPU whose slot it is.
    #[must_use]
    pub const fn vcpu(self) -> VcpuId {
        VcpuId(self.0 as u32)
    }
}

/// The fields of the slots of one ioreq page ([`Ioreq`](crate::abi::Ioreq)), each loaded or stored by one atomic access.
///
/// The protocol, and thus every ordering, is in [`Slot`](super::Slot) and [`Taken`](super::Taken); an implementation only
/// passes them on. Fields without an ordering are relaxed: the flag byte orders them.
///
/// ```
/// use std::sync::atomic::{AtomicU8, Ordering};
/// use ioreq_core::slot::{SlotIndex, SlotMemory};
///
/// /// Slots that always hold the same read of four bytes.
/// #[derive(Clone, Default)]
/// struct Fixed;
///
/// impl SlotMemory for Fixed {
///     fn flags(&self, _: SlotIndex, _: Ordering) -> u8 { 0x21 }
///     fn set_flags(&self, _: SlotIndex, _: u8, _: Ordering) {}
///     fn addr(&self, _: SlotIndex) -> u64 { 0xe000_0000 }
///     fn data(&self, _: SlotIndex) -> u64 { 0 }
///     fn set_data(&self, _: SlotIndex, _: u64) {}
///     fn count(&self, _: SlotIndex) -> u32 { 1 }
///     fn size(&self, _: SlotIndex) -> u32 { 4 }
///     fn vp_eport(&self, _: SlotIndex) -> u32 { 1 }
///     fn kind(&self, _: SlotIndex) -> u8 { 1 }
/// }
/// ```
pub trait SlotMemory {
    /// Loads the flag byte: state, data_is_ptr, direction, df.
    fn flags(&self, slot: SlotIndex, order: Ordering) -> u8;
    /// Stores the flag byte.
    fn set_flags(&self, slot: SlotIndex, flags: u8, order: Ordering);
    /// Loads `addr`.
    fn addr(&self, slot: SlotIndex) -> u64;
    /// Loads `data`.
    fn data(&self, slot: SlotIndex) -> u64;
    /// Stores `data`.
    fn set_data(&self, slot: SlotIndex, data: u64);
    /// Loads `count`.
    fn count(&self, slot: SlotIndex) -> u32;
    /// Loads `size`.
    fn size(&self, slot: SlotIndex) -> u32;
    /// Loads `vp_eport`.
    fn vp_eport(&self, slot: SlotIndex) -> u32;
    /// Loads `type`.
    fn kind(&self, slot: SlotIndex) -> u8;
}
