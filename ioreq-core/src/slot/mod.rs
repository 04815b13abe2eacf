// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vCPUs' slots in the ioreq page: looked at, taken, answered.
//!
//! ```text
//!            Xen: ioreq_send           this side: take         this side: answer
//!   NONE ───────────────────▶ READY ─────────────────▶ INPROCESS ──────────▶ RESP_READY
//!     ▲                                                                          │
//!     └──────────────────────────────────────────────────────────────────────────┘
//!                                  Xen: wait_for_io
//! ```
//!
//! A state never goes backward: Xen crashes the domain over that. So this side writes a slot's state only through
//! [`Taken`], which exists for a request that was READY or INPROCESS, answers it once, and answers it when dropped.
//!
//! The page is hostile until copied: [`Slot::take`] reads each field once, and everything from there on, the flag bits of
//! the answer included, comes from that copy.
//!
//! | store | order | is read by | order |
//! | --- | --- | --- | --- |
//! | contents, READY | barrier of Xen's `ioreq_send` | [`Slot::take`], [`Slot::peek`] | Acquire |
//! | INPROCESS | Release | [`Slot::resume`], of a later process | Acquire |
//! | data, RESP_READY | Release | Xen's `wait_for_io` | its `smp_rmb` |
//! | NONE | plain, by Xen's `wait_for_io` | [`Slot::state`] | Acquire |
//!
//! The protocol is generic over [`SlotMemory`]: the loom models run this very source.

mod duty;
mod memory;
#[cfg(not(loom))]
mod page;
#[cfg(loom)]
#[path = "page_in_loom.rs"]
mod page;
mod slots;
mod taken;

pub(crate) use duty::Duty;
pub use memory::{SlotIndex, SlotMemory};
pub use page::IoreqPage;
#[cfg(all(test, loom))]
pub(crate) use page::LoomSlot;
pub use slots::{Slot, SlotView, Slots};
pub use taken::{Answered, Taken};
