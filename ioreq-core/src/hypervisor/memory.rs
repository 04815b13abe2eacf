// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The domain's memory in this process.

use std::sync::Arc;

use vm_memory::GuestMemory;

use crate::Result;
use crate::range::GfnRange;

/// Maps guest memory into this process and hands it out as `vm-memory` memory, so that rust-vmm crates work on it.
///
/// ```
/// use ioreq_core::GuestMap;
/// use ioreq_sim::{DomainConfig, Machine};
/// use vm_memory::{Bytes, GuestAddress};
///
/// fn first_word(guest: &impl GuestMap) -> Result<u32, vm_memory::GuestMemoryError> {
///     guest.memory().read_obj(GuestAddress(0))
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// assert_eq!(first_word(&domain.hypervisor())?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait GuestMap: Send + Sync + 'static {
    /// The memory: usually a [`GuestRegionCollection`](vm_memory::GuestRegionCollection) of
    /// [`MappedRegion`](crate::memory::MappedRegion)s.
    type Memory: GuestMemory + Send + Sync + 'static;

    /// The domain's memory. The same value for every call until [`memory_generation`](Self::memory_generation) changes.
    ///
    /// Mappings live as long as the value: whoever waits for long lets go of it first, or a domain that is gone stays behind
    /// as a zombie.
    fn memory(&self) -> Arc<Self::Memory>;

    /// A number that changes when [`memory`](Self::memory) gives another value: after [`invalidate`](Self::invalidate), when a
    /// bounded cache of mappings is turned over, when the domain is gone. Asked at every look at the slots, so no more
    /// than a load. Constant where mappings are made once.
    fn memory_generation(&self) -> u64 {
        0
    }

    /// The guest changed its memory layout (an INVALIDATE request): drop cached mappings. Called *before* the request is
    /// answered. Nothing to do where mappings are made once.
    ///
    /// # Errors
    /// When mappings that must go cannot be dropped.
    fn invalidate(&self) -> Result<()> {
        Ok(())
    }

    /// The framework stored into these frames (`XEN_DMOP_modified_memory`): called while
    /// [dirty logging](crate::server::IoreqServer::set_dirty_logging) is on, by any thread.
    ///
    /// # Errors
    /// When the hypervisor refuses one; it may know some of the others then. The stores have been made all the same.
    fn modified(&self, _pages: &[GfnRange]) -> Result<()> {
        Ok(())
    }
}
