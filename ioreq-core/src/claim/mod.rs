// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ownership of the write-tracking p2m type (`p2m_ioreq_server`), and what it allows: tracking guest pages.
//!
//! One server of a domain can own the type. [`MemTypeClaim`] is that ownership as a value: only through it can pages be
//! marked, and dropping it unmarks what it marked and gives the type up. Pages are marked through a [`Tracker`], with a
//! handler for each; they are unmarked by a protocol that a guest in the middle of a write survives, in the background.
//!
//! # What tracking does not see, and what it costs a guest
//! * Writes by others than the guest's vCPUs: the device model's own (use [`Dma`](crate::server::Dma)), back ends and
//!   grants, Xen itself. A passed-through device cannot reach a tracked page at all.
//! * A repeated instruction (`rep stos`, `rep movs`, which kernels clear and copy pages with) traps once for each element.
//! * **Executing** from a tracked page never ends, and no request tells of it: the vCPU faults until the page is unmarked. Whoever
//!   may look at its registers can find the page while nothing else comes, and untrack it; `examples/linux/src/rescue.rs` does.
//! * **Delivering an event** onto a tracked kernel stack kills the guest. A stack of user mode, which no event is delivered onto,
//!   can be tracked.
//! * **Accessed and dirty bits** of tracked page tables are set by the processor and by Xen without a trap; what the guest itself
//!   writes to its page tables does trap.
//! * A locked read-modify-write reads RAM, computes, and traps with the final value: with two vCPUs an update can be lost.
//! * A copy by `rep movs` over its own source (`memmove`), downward from a tracked page into an untracked one below it, goes wrong: Xen
//!   copies the untracked part first and then begins anew, element by element, with what is left of the source. Track the page below as
//!   well, or none of the pages that a guest moves memory about in.
//! * A store over the end of an untracked page into a tracked one, while the first of the two comes to be tracked, costs the guest
//!   its life: Xen finds another access when it executes the store again, and marking cannot wait for it.
//! * Live migration (log-dirty) and tracking exclude each other.

mod error;
mod ledger;
mod mem_type;
mod parts;
mod suspended;
mod tracker;
mod unmark;

pub use error::MarkError;
pub use mem_type::{MemTypeClaim, UnmarkReport};
pub use tracker::{PageState, PageTracker, Tracker};

pub(crate) use ledger::Ledger;
pub(crate) use unmark::{Look, Step};
