// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory: dirty logging, relocation, cache attributes.

use ioreq_core::abi::dm_op::{
    ModifiedMemory, ModifiedMemoryExtent, PinMemoryCacheattr, RelocateMemory, TrackDirtyVram,
};
use ioreq_core::{Gfn, GfnRange, Op, Result};

use super::DeviceModel;
use crate::abi::DM_OP_BUF_MAX_SIZE;

/// Most extents of one `modified_memory`: what fits the kernel's limit of a buffer.
const EXTENTS: usize = DM_OP_BUF_MAX_SIZE / size_of::<ModifiedMemoryExtent>();

/// Most pages of one `track_dirty_vram`: a bit each in the kernel's limit of a buffer.
const VRAM_PAGES: u64 = DM_OP_BUF_MAX_SIZE as u64 * 8;

/// Cache attribute of guest memory (`XEN_DMOP_MEM_CACHEATTR_*`).
///
/// ```
/// use ioreq_xen::CacheAttr;
/// assert_eq!(CacheAttr::WriteCombining as u32, 1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CacheAttr {
    /// `UC`
    Uncacheable = 0,
    /// `WC`
    WriteCombining = 1,
    /// `WT`
    WriteThrough = 4,
    /// `WP`
    WriteProtected = 5,
    /// `WB`
    WriteBack = 6,
    /// `UC-`
    UncacheableMinus = 7,
}

/// `XEN_DMOP_DELETE_MEM_CACHEATTR`
const DELETE_MEM_CACHEATTR: u32 = !0;

/// Which pages of a range were written since the last look.
///
/// ```
/// use ioreq_core::{Gfn, GfnRange};
/// use ioreq_xen::DirtyPages;
/// let dirty = DirtyPages::new(GfnRange::sized(0x100, 10)?, vec![0b10, 0b10]);
/// assert_eq!(dirty.iter().collect::<Vec<_>>(), [Gfn(0x101), Gfn(0x109)]);
/// assert!(!dirty.is_dirty(Gfn(0x99)));
/// # Ok::<(), ioreq_core::RangeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyPages {
    pages: GfnRange,
    bits: Vec<u8>,
}

impl DirtyPages {
    /// From a bitmap, the first page in bit 0 of its first byte.
    #[must_use]
    pub fn new(pages: GfnRange, bits: Vec<u8>) -> Self {
        DirtyPages { pages, bits }
    }

    /// The range.
    #[must_use]
    pub fn pages(&self) -> GfnRange {
        self.pages
    }

    /// Whether `gfn` is in the range and was written.
    #[must_use]
    pub fn is_dirty(&self, gfn: Gfn) -> bool {
        let Some(at) = gfn
            .0
            .checked_sub(self.pages.first())
            .filter(|_| self.pages.contains(gfn))
        else {
            return false;
        };
        usize::try_from(at / 8)
            .ok()
            .and_then(|byte| self.bits.get(byte))
            .is_some_and(|byte| byte >> (at % 8) & 1 != 0)
    }

    /// The pages that were written.
    pub fn iter(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.pages.iter().filter(|gfn| self.is_dirty(*gfn))
    }
}

impl DeviceModel {
    /// `XEN_DMOP_track_dirty_vram`: the pages written since the last call for the same range. The first call for a range
    /// starts the tracking, and says that all pages are dirty; Xen tracks one range a domain.
    ///
    /// # Errors
    /// `InvalidArgument` beyond 32768 pages, which is the kernel's limit; Xen's `NotSupported`, `OutOfMemory`.
    pub fn track_dirty_vram(&self, pages: GfnRange) -> Result<DirtyPages> {
        if pages.pages() > VRAM_PAGES {
            let why = format!("{pages}: at most {VRAM_PAGES} pages can be tracked");
            return Err(self.refuse(Op::TrackDirtyVram, why));
        }
        let bytes = usize::try_from(pages.pages().div_ceil(8)).unwrap_or(DM_OP_BUF_MAX_SIZE);
        let mut bits = vec![0; bytes];
        let op = TrackDirtyVram {
            nr: u32::try_from(pages.pages()).unwrap_or(u32::MAX),
            pad: 0,
            first_pfn: pages.first(),
        };
        self.call_with(Op::TrackDirtyVram, &op, &mut bits)
            .map_err(|err| err.about(pages))?;
        Ok(DirtyPages { pages, bits })
    }

    /// `XEN_DMOP_track_dirty_vram` of no page: ends the tracking.
    ///
    /// # Errors
    /// As the hypervisor says.
    pub fn stop_dirty_vram(&self) -> Result<()> {
        // Xen wants the buffer to be there, and leaves it alone.
        self.call_with(Op::TrackDirtyVram, &TrackDirtyVram::default(), &mut [0])
            .map(drop)
    }

    /// `XEN_DMOP_modified_memory`: this process wrote these pages. In batches that the kernel takes. Does nothing while
    /// log-dirty mode is off.
    ///
    /// # Errors
    /// `InvalidArgument` for frames that the domain does not have, and, with log-dirty mode on, for its very last one: Xen
    /// (4.17) takes its number for the end. Some extents are done then, some are not.
    pub fn modified_memory(&self, extents: &[GfnRange]) -> Result<()> {
        let parts: Vec<GfnRange> = extents
            .iter()
            .flat_map(|pages| pages.batches(u32::MAX.into()))
            .collect();
        parts
            .chunks(EXTENTS)
            .try_for_each(|batch| self.modified(batch))
    }

    /// At most [`EXTENTS`] extents of at most `u32::MAX` pages.
    fn modified(&self, batch: &[GfnRange]) -> Result<()> {
        let mut buffer: Vec<u8> = batch
            .iter()
            .flat_map(|pages| {
                let extent = ModifiedMemoryExtent {
                    nr: u32::try_from(pages.pages()).unwrap_or(u32::MAX),
                    pad: 0,
                    first_pfn: pages.first(),
                };
                extent.to_bytes()
            })
            .collect();
        let op = ModifiedMemory {
            nr_extents: u32::try_from(batch.len()).unwrap_or(u32::MAX),
            opaque: 0,
        };
        // Xen does not copy the operation back when it fails, so which extent it was stays unknown.
        self.call_with(Op::ModifiedMemory, &op, &mut buffer)
            .map(drop)
            .map_err(|err| match batch {
                [pages] => err.about(*pages),
                [first, .., last] => {
                    err.about(format!("one of {} extents, {first} … {last}", batch.len()))
                }
                [] => err,
            })
    }

    /// `XEN_DMOP_relocate_memory`: moves frames `from…` of the guest to `to…`.
    ///
    /// # Errors
    /// As the hypervisor says; frames before the bad one have moved.
    pub fn relocate_memory(&self, from: GfnRange, to: Gfn) -> Result<()> {
        from.batches(u32::MAX.into()).try_for_each(|part| {
            let op = RelocateMemory {
                size: u32::try_from(part.pages()).unwrap_or(u32::MAX),
                pad: 0,
                src_gfn: part.first(),
                dst_gfn: to.0.wrapping_add(part.first() - from.first()),
            };
            self.call(Op::RelocateMemory, &op)
                .map(drop)
                .map_err(|err| err.about(part))
        })
    }

    /// `XEN_DMOP_pin_memory_cacheattr`: a cache attribute that the guest cannot change.
    ///
    /// # Errors
    /// As the hypervisor says.
    pub fn pin_cacheattr(&self, pages: GfnRange, attr: CacheAttr) -> Result<()> {
        self.cacheattr(pages, attr as u32)
    }

    /// Ends what [`pin_cacheattr`](Self::pin_cacheattr) did for exactly these pages.
    ///
    /// # Errors
    /// As the hypervisor says.
    pub fn unpin_cacheattr(&self, pages: GfnRange) -> Result<()> {
        self.cacheattr(pages, DELETE_MEM_CACHEATTR)
    }

    fn cacheattr(&self, pages: GfnRange, kind: u32) -> Result<()> {
        let op = PinMemoryCacheattr {
            start: pages.first(),
            end: pages.last(),
            kind,
            pad: 0,
        };
        self.call(Op::PinCacheAttr, &op)
            .map(drop)
            .map_err(|err| err.about(pages))
    }
}
