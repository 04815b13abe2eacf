// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: turns mapped foreign frames into `vm-memory` volatile slices.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioreq_core::{DomId, Error, Gfn, GfnRange, Op, Result};
use vm_memory::guest_memory::{Error as MemError, Result as MemResult};
use vm_memory::{
    AtomicAccess, Bytes, GuestAddress, GuestMemoryRegion, GuestUsize, MemoryRegionAddress,
    ReadVolatile, VolatileSlice, WriteVolatile,
};

use super::cache::Tally;
use super::chunks::Chunks;
use super::foreign::FrameMapper;

const PAGE: usize = 4096;

/// A range of a guest's frames, mapped as they are used; an element of [`XenMemory`](crate::XenMemory).
///
/// Accesses give an error where the guest has no memory. An access by `vm-memory`'s methods maps what it touches, no more.
///
/// ```no_run
/// use ioreq_core::{DomId, GuestMap};
/// use ioreq_xen::XenHypervisor;
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
///
/// let memory = XenHypervisor::open(DomId(1))?.memory();
/// let word: u32 = memory.read_obj(GuestAddress(0x10_0000)).expect("the guest has memory there");
/// println!("{word:#x}; {} bytes of guest addresses", memory.iter().map(|region| region.len()).sum::<u64>());
/// # Ok::<(), ioreq_core::Error>(())
/// ```
pub struct ForeignRegion {
    frames: GfnRange,
    chunks: Chunks,
}

impl ForeignRegion {
    pub(super) fn new(
        frames: GfnRange,
        mapper: Arc<dyn FrameMapper>,
        tally: Arc<Tally>,
    ) -> io::Result<Self> {
        let pages = usize::try_from(frames.pages()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let chunks = Chunks::new(frames.first(), pages, mapper, tally)?;
        Ok(ForeignRegion { frames, chunks })
    }

    /// The frames.
    #[must_use]
    pub fn frames(&self) -> GfnRange {
        self.frames
    }

    /// Maps everything now.
    pub(super) fn map_all(&self, domid: DomId) -> Result<()> {
        self.chunks
            .require(0, self.chunks.pages() - 1)
            .map_err(|unmapped| {
                Error::from_errno(Op::MapGuestMemory, unmapped.errno)
                    .domain(domid)
                    .about(Gfn(self.frames.first() + unmapped.page as u64).to_string())
            })
    }

    /// `count` bytes from `offset` on, mapped.
    #[inline]
    fn slice(&self, offset: MemoryRegionAddress, count: usize) -> MemResult<VolatileSlice<'_, ()>> {
        let at = usize::try_from(offset.0).map_err(|_| MemError::InvalidBackendAddress)?;
        let end = at
            .checked_add(count)
            .filter(|end| end.div_ceil(PAGE) <= self.chunks.pages())
            .ok_or(MemError::InvalidBackendAddress)?;
        if let Some(last) = end.checked_sub(1).filter(|_| count > 0) {
            self.chunks
                .require(at / PAGE, last / PAGE)
                .map_err(|unmapped| {
                    MemError::IOError(io::Error::from_raw_os_error(unmapped.errno))
                })?;
        }
        // SAFETY: `at <= end <= pages * PAGE`, the length of the reservation.
        let addr = unsafe { self.chunks.space().addr().as_ptr().add(at) };
        // SAFETY: `require` vouched for every page of the `count` bytes: mapped, readable and writable until the region is
        // dropped, which the slice's lifetime excludes. They are guest memory, which is accessed only volatile or atomic.
        Ok(unsafe { VolatileSlice::with_bitmap(addr, count, (), None) })
    }

    /// What is there from `offset` on, at most `count` bytes.
    fn rest(&self, offset: MemoryRegionAddress, count: usize) -> MemResult<VolatileSlice<'_, ()>> {
        let left = self
            .len()
            .checked_sub(offset.0)
            .filter(|left| *left > 0)
            .ok_or(MemError::InvalidBackendAddress)?;
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(count);
        self.slice(offset, count)
    }
}

impl fmt::Debug for ForeignRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignRegion")
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl GuestMemoryRegion for ForeignRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.chunks.pages() as GuestUsize * PAGE as GuestUsize
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
        self.slice(offset, count)
    }

    /// The address of one byte: good for what is in its page only.
    fn get_host_address(&self, addr: MemoryRegionAddress) -> MemResult<*mut u8> {
        Ok(self.slice(addr, 1)?.ptr_guard_mut().as_ptr())
    }
}

/// Not by `GuestMemoryRegionBytes`: that would map the whole region for each access.
impl Bytes<MemoryRegionAddress> for ForeignRegion {
    type E = MemError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> MemResult<usize> {
        Ok(self.rest(addr, buf.len())?.write(buf, 0)?)
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> MemResult<usize> {
        Ok(self.rest(addr, buf.len())?.read(buf, 0)?)
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> MemResult<()> {
        Ok(self.slice(addr, buf.len())?.write_slice(buf, 0)?)
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> MemResult<()> {
        Ok(self.slice(addr, buf.len())?.read_slice(buf, 0)?)
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> MemResult<usize> {
        let slice = self.rest(addr, count)?;
        Ok(slice.read_volatile_from(0, src, slice.len())?)
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> MemResult<()> {
        Ok(self
            .slice(addr, count)?
            .read_exact_volatile_from(0, src, count)?)
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> MemResult<usize> {
        let slice = self.rest(addr, count)?;
        Ok(slice.write_volatile_to(0, dst, slice.len())?)
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> MemResult<()> {
        Ok(self
            .slice(addr, count)?
            .write_all_volatile_to(0, dst, count)?)
    }

    fn store<T: AtomicAccess>(
        &self,
        val: T,
        addr: MemoryRegionAddress,
        order: Ordering,
    ) -> MemResult<()> {
        Ok(self.slice(addr, size_of::<T>())?.store(val, 0, order)?)
    }

    fn load<T: AtomicAccess>(&self, addr: MemoryRegionAddress, order: Ordering) -> MemResult<T> {
        Ok(self.slice(addr, size_of::<T>())?.load(0, order)?)
    }
}

#[cfg(test)]
mod tests;
