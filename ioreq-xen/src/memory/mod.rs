// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory by foreign mapping, as a cache of chunks.
//!
//! A [`ForeignRegion`] reserves address space for a range of guest frames. Chunks of 2 MiB of it are mapped when they are
//! first used, each a mapping of its own ([`foreign`]). Looking a page up takes no lock: one load of its chunk's state, and
//! for a chunk with holes one load of a bitmap. A page that did not map is never handed out; it is tried again when it is
//! asked for again, because the guest may have been given memory since.
//!
//! A chunk, once mapped, stays as long as its region: addresses in it may be anywhere. What is thrown away is the whole
//! memory ([`cache`]): when the guest changed its layout, when more chunks are mapped than the limit says, and when the domain
//! is gone. Then the next [`memory()`](ioreq_core::GuestMap::memory) is a new one, and the old one goes with its last user.

mod cache;
mod chunks;
mod foreign;
mod region;

pub(crate) use cache::Cache;
pub(crate) use foreign::Foreign;
pub use region::ForeignRegion;

/// A domain's memory in this process.
pub type XenMemory = vm_memory::GuestRegionCollection<ForeignRegion>;

/// Pages of a chunk: 2 MiB.
const CHUNK_PAGES: usize = 512;

#[cfg(test)]
mod fake;
