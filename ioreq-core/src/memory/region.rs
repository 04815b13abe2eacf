// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: turns a raw mapping of guest memory into `vm-memory` volatile slices.
//!
//! Needs neither vm-memory's `backend-mmap` nor its exclusive `xen` feature, and works whether or not another crate of the
//! build turns that on.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::guest_memory::{Error as MemError, Result as MemResult};
use vm_memory::{
    GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize, MemoryRegionAddress,
    VolatileSlice,
};

use crate::range::GfnRange;

/// Guest frames mapped at consecutive host addresses; a region for [`vm_memory::GuestRegionCollection`].
///
/// ```
/// use std::{ptr::NonNull, sync::{Arc, atomic::AtomicU8}};
/// use ioreq_core::{GfnRange, memory::MappedRegion};
/// use vm_memory::{Bytes, GuestAddress, GuestRegionCollection};
///
/// let ram: Arc<Vec<AtomicU8>> = Arc::new((0..8192).map(|_| AtomicU8::new(0)).collect());
/// let host = NonNull::from(&ram[0]).cast();
/// // SAFETY: two pages of atomics, which live as long as `ram`, which the region keeps.
/// let region = unsafe { MappedRegion::new(GfnRange::sized(0x100, 2)?, host, ram) };
/// let memory = GuestRegionCollection::from_regions(vec![region])?;
/// memory.write_obj(0x1234_5678_u32, GuestAddress(0x10_0ffe))?;
/// assert_eq!(memory.read_obj::<u16>(GuestAddress(0x10_1000))?, 0x1234);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MappedRegion {
    frames: GfnRange,
    host: NonNull<u8>,
    len: usize,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl MappedRegion {
    /// The region of `frames`, whose first byte is mapped at `host`; `owner` keeps the mapping (its drop unmaps).
    ///
    /// # Panics
    /// If the region has more bytes than this process has addresses.
    ///
    /// # Safety
    /// `frames.pages() * 4096` bytes at `host` must be readable and writable until `owner` is dropped, and be accessed by
    /// everybody in this process only by volatile or atomic operations.
    pub unsafe fn new(
        frames: GfnRange,
        host: NonNull<u8>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let bytes = frames.pages().checked_mul(crate::ids::PAGE_SIZE);
        let len = bytes
            .and_then(|b| usize::try_from(b).ok())
            .filter(|&b| isize::try_from(b).is_ok())
            .expect("a mapped region fits the address space");
        MappedRegion {
            frames,
            host,
            len,
            _owner: owner,
        }
    }

    /// The frames of the region.
    #[must_use]
    pub fn frames(&self) -> GfnRange {
        self.frames
    }
}

impl fmt::Debug for MappedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedRegion")
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

// SAFETY: the mapping may be used from any thread while the owner lives (`new`'s contract), and all access goes through
// volatile slices.
unsafe impl Send for MappedRegion {}
// SAFETY: as for Send.
unsafe impl Sync for MappedRegion {}

impl GuestMemoryRegion for MappedRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.frames.start()
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> MemResult<VolatileSlice<'_, ()>> {
        let at = usize::try_from(offset.0).map_err(|_| MemError::InvalidBackendAddress)?;
        let end = at
            .checked_add(count)
            .ok_or(MemError::InvalidBackendAddress)?;
        if end > self.len {
            return Err(MemError::InvalidBackendAddress);
        }
        // SAFETY: `at <= end <= len`, and `new`'s caller vouched for `len` bytes at `host`.
        let addr = unsafe { self.host.as_ptr().add(at) };
        // SAFETY: `count` bytes from `addr` on are inside the mapping, which lives as long as `self` (it keeps the owner),
        // and everybody accesses them volatile or atomic (`new`'s contract).
        Ok(unsafe { VolatileSlice::with_bitmap(addr, count, (), None) })
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> MemResult<*mut u8> {
        let at = usize::try_from(addr.0).ok().filter(|&at| at < self.len);
        let at = at.ok_or(MemError::InvalidBackendAddress)?;
        // SAFETY: `at < len`, and `new`'s caller vouched for `len` bytes at `host`.
        Ok(unsafe { self.host.as_ptr().add(at) })
    }
}

impl GuestMemoryRegionBytes for MappedRegion {}
