// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Host addresses: what the GPU uses, and what becomes of guest frames.

use std::fmt;
use std::sync::Arc;

use ioreq_core::memory::RamError;
use ioreq_core::{Gfn, GuestRam, Width};
use vm_memory::GuestAddress;

/// An address as the device uses it (DMA address), 46 bits wide.
///
/// ```
/// use ioreq_backends::vgpu::HostAddr;
/// assert_eq!(format!("{:?}", HostAddr(0x1000)), "host 0x1000");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddr(pub u64);

impl fmt::Debug for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {:#x}", self.0)
    }
}

/// Translates guest frames to host addresses. Called for each entry that is shadowed, also on a trapped write's way: it should
/// neither lock nor allocate.
///
/// ```
/// use ioreq_backends::vgpu::{FrameMap, HostAddr};
/// use ioreq_core::Gfn;
///
/// /// A guest whose memory lies in one piece at 4 GiB of the device's address space.
/// struct OnePiece { frames: u64 }
/// impl FrameMap for OnePiece {
///     fn translate(&self, first: Gfn, frames: u64) -> Option<HostAddr> {
///         let end = first.0.checked_add(frames)?;
///         (end <= self.frames).then_some(HostAddr((1 << 32) + (first.0 << 12)))
///     }
/// }
/// let map = OnePiece { frames: 512 };
/// assert_eq!(map.translate(Gfn(0), 512), Some(HostAddr(1 << 32)));
/// assert_eq!(map.translate(Gfn(1), 512), None);
/// assert_eq!(map.translate(Gfn(u64::MAX), 1), None);
/// ```
pub trait FrameMap: Send + Sync {
    /// The host address of `frames` guest frames from `first` on, if they are guest memory and contiguous on the host.
    fn translate(&self, first: Gfn, frames: u64) -> Option<HostAddr>;
}

/// What is behind host addresses, for a device that runs in this process.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_backends::vgpu::{HostAddr, HostMemory, LinearMap};
/// use ioreq_core::GuestMap;
/// use ioreq_sim::{DomainConfig, Machine};
///
/// /// A device copies by host addresses.
/// fn copy(memory: &dyn HostMemory, from: HostAddr, to: HostAddr) -> Result<(), ioreq_core::memory::RamError> {
///     let mut bytes = [0; 64];
///     memory.read(from, &mut bytes)?;
///     memory.write(to, &bytes)
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let memory = LinearMap::new(domain.hypervisor().memory(), 0x10_0000_0000);
/// memory.write(HostAddr(0x10_0000_0000), &[7; 64])?;
/// copy(&memory, HostAddr(0x10_0000_0000), HostAddr(0x10_0000_1000))?;
/// let mut byte = [0];
/// memory.read(HostAddr(0x10_0000_103f), &mut byte)?;
/// assert_eq!(byte, [7]);
/// assert!(copy(&memory, HostAddr(0), HostAddr(0x10_0000_0000)).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait HostMemory: Send + Sync {
    /// Fills `buf` from `addr` on.
    ///
    /// # Errors
    /// Unless all bytes are memory.
    fn read(&self, addr: HostAddr, buf: &mut [u8]) -> Result<(), RamError>;

    /// Writes `buf` from `addr` on.
    ///
    /// # Errors
    /// Unless all bytes are memory.
    fn write(&self, addr: HostAddr, buf: &[u8]) -> Result<(), RamError>;
}

/// Frames of the smallest hole that guest memory has: 2 MiB.
const HOLE: usize = 512;

/// Guest memory at a fixed distance on the host, as the model has it and a guest with contiguous memory. Holes
/// in guest memory are at least 2 MiB, and aligned to that.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_backends::vgpu::{FrameMap, HostAddr, LinearMap};
/// use ioreq_core::Gfn;
/// # use ioreq_core::{GfnRange, memory::MappedRegion};
/// # use std::{ptr::NonNull, sync::atomic::AtomicU8};
/// # let ram: Arc<Vec<AtomicU8>> = Arc::new((0..8192).map(|_| AtomicU8::new(0)).collect());
/// # let host = NonNull::from(&ram[0]).cast();
/// # // SAFETY: two pages of atomics, which live as long as `ram`, which the region keeps.
/// # let region = unsafe { MappedRegion::new(GfnRange::sized(0, 2)?, host, ram) };
/// # let memory = vm_memory::GuestRegionCollection::from_regions(vec![region])?;
/// let map = LinearMap::new(Arc::new(memory), 0x10_0000_0000); // two pages of guest memory
/// assert_eq!(map.translate(Gfn(1), 1), Some(HostAddr(0x10_0000_1000)));
/// assert_eq!(map.translate(Gfn(1), 2), None); // the second is not memory
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct LinearMap {
    ram: Arc<dyn GuestRam>,
    distance: u64,
}

impl LinearMap {
    /// Guest memory `ram`, at guest-physical address + `distance`.
    #[must_use]
    pub fn new(ram: Arc<dyn GuestRam>, distance: u64) -> Self {
        LinearMap { ram, distance }
    }

    fn guest(&self, addr: HostAddr, len: usize) -> Result<GuestAddress, RamError> {
        let outside = RamError {
            addr: GuestAddress(addr.0),
            len,
        };
        addr.0
            .checked_sub(self.distance)
            .map(GuestAddress)
            .ok_or(outside)
    }
}

impl FrameMap for LinearMap {
    fn translate(&self, first: Gfn, frames: u64) -> Option<HostAddr> {
        let last = first.0.checked_add(frames.checked_sub(1)?)?;
        for gfn in (first.0..last).step_by(HOLE).chain([last]) {
            self.ram.load(Gfn(gfn).start()?, Width::B1).ok()?;
        }
        first.start()?.0.checked_add(self.distance).map(HostAddr)
    }
}

impl HostMemory for LinearMap {
    fn read(&self, addr: HostAddr, buf: &mut [u8]) -> Result<(), RamError> {
        self.ram.read(self.guest(addr, buf.len())?, buf)
    }

    fn write(&self, addr: HostAddr, buf: &[u8]) -> Result<(), RamError> {
        self.ram.write(self.guest(addr, buf.len())?, buf)
    }
}

impl fmt::Debug for LinearMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinearMap")
            .field("distance", &self.distance)
            .finish_non_exhaustive()
    }
}
