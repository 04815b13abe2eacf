// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The domain's memory in this process.

use std::sync::Arc;

use vm_memory::GuestMemory;

use crate::Result;
use crate::range::GfnRange;

/// Maps guest memory into this process and hands it out as `vm-memory` memory, so that rust-vmm crates work on it.
pub trait GuestMap: Send + Sync + 'static {
    /// The memory: usually a [`GuestRegionCollection`](vm_memory::GuestRegionCollection) of
    /// [`MappedRegion`](crate::memory::MappedRegion)s.
    type Memory: GuestMemory + Send + Sync + 'static;

    /// The domain's memory. The same value for every call until [`invalidate`](Self::invalidate).
    fn memory(&self) -> Arc<Self::Memory>;

    /// The guest changed its memory layout (an INVALIDATE request): drop cached mappings. Called *before* the request is
    /// answered. Nothing to do where mappings are made once.
    ///
    /// # Errors
    /// When mappings that must go cannot be dropped.
    fn invalidate(&self) -> Result<()> {
        Ok(())
    }

    /// The framework stored into these frames (`XEN_DMOP_modified_memory`): needed while log-dirty mode is on.
    ///
    /// # Errors
    /// When the hypervisor refuses; the stores have been made all the same.
    fn modified(&self, _pages: GfnRange) -> Result<()> {
        Ok(())
    }
}
