// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest RAM as handlers and the framework see it: object-safe, with single-copy-atomic stores.

use std::sync::atomic::Ordering;

use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
};

/// Bytes of one access: 1, 2, 4 or 8.
///
/// ```
/// use ioreq_core::memory::Width;
/// assert_eq!(Width::from_bytes(4), Some(Width::B4));
/// assert_eq!(Width::from_bytes(3), None);
/// assert_eq!(Width::B2.all_ones(), 0xffff);
/// assert_eq!(Width::B1.cut(0x1234), 0x34);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// 1 byte
    B1 = 1,
    /// 2 bytes
    B2 = 2,
    /// 4 bytes
    B4 = 4,
    /// 8 bytes
    B8 = 8,
}

impl Width {
    /// By their number of bytes. A table, as a look-up is fewer instructions than a `match`.
    const BY_BYTES: [Option<Width>; 9] = {
        let mut widths = [None; 9];
        widths[1] = Some(Width::B1);
        widths[2] = Some(Width::B2);
        widths[4] = Some(Width::B4);
        widths[8] = Some(Width::B8);
        widths
    };

    /// From a number of bytes; `None` unless 1, 2, 4 or 8.
    #[inline]
    #[must_use]
    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        if bytes > 8 {
            return None;
        }
        Self::BY_BYTES[bytes as usize]
    }

    /// The number of bytes.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// The number of bytes, as a length.
    #[inline]
    #[must_use]
    pub const fn size(self) -> usize {
        self as usize
    }

    /// The value with every bit of the width set: what a read gives that nobody answers.
    #[inline]
    #[must_use]
    pub const fn all_ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// `value` cut to the width.
    #[inline]
    #[must_use]
    pub const fn cut(self, value: u64) -> u64 {
        value & self.all_ones()
    }
}

/// An access that is not wholly inside guest memory.
///
/// ```
/// use ioreq_core::memory::RamError;
/// let err = RamError { addr: vm_memory::GuestAddress(0x1000), len: 8 };
/// assert_eq!(err.to_string(), "8 bytes at 0x1000 are not all guest memory");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {:#x} are not all guest memory", addr.0)]
pub struct RamError {
    /// First byte of the access.
    pub addr: GuestAddress,
    /// Its length in bytes.
    pub len: usize,
}

/// Guest RAM, object-safe. Every [`GuestMemory`] is one.
///
/// These accesses do not reach handlers of tracked pages: that is the framework's part (see
/// [`Dma`](crate::server::Dma)).
///
/// ```
/// use ioreq_core::memory::{GuestRam, Width};
/// use ioreq_core::GuestMap;
/// use ioreq_sim::{DomainConfig, Machine};
/// use vm_memory::GuestAddress;
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let memory = domain.hypervisor().memory();
/// let ram: &dyn GuestRam = &*memory;
/// ram.write(GuestAddress(0x1000), &[1, 2, 3, 4])?;
/// assert_eq!(ram.load(GuestAddress(0x1000), Width::B2)?, 0x0201);
/// assert!(ram.load(GuestAddress(1 << 40), Width::B2).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait GuestRam: Send + Sync {
    /// Fills `buf` from `addr` on, not atomically.
    ///
    /// # Errors
    /// [`RamError`] unless all bytes are guest memory; `buf` may be partly filled then.
    fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), RamError>;

    /// Writes `buf` from `addr` on, not atomically.
    ///
    /// # Errors
    /// [`RamError`] unless all bytes are guest memory; some may be written then.
    fn write(&self, addr: GuestAddress, buf: &[u8]) -> Result<(), RamError>;

    /// Loads `width` bytes, zero-extended: one single-copy-atomic load where the address is aligned.
    ///
    /// # Errors
    /// [`RamError`] unless all bytes are guest memory.
    fn load(&self, addr: GuestAddress, width: Width) -> Result<u64, RamError>;

    /// Stores the low `width` bytes of `value`: one single-copy-atomic store where the address is aligned.
    ///
    /// # Errors
    /// [`RamError`] unless all bytes are guest memory.
    fn store(&self, addr: GuestAddress, width: Width, value: u64) -> Result<(), RamError>;
}

/// Regions that are looked through one by one.
const FEW: usize = 4;

/// Where an address lies. A guest's memory is a region or a few, which are sooner looked through than searched.
#[inline(always)]
fn locate<M: GuestMemory>(
    memory: &M,
    addr: GuestAddress,
) -> Option<(
    &<M::PhysicalMemory as GuestMemoryBackend>::R,
    MemoryRegionAddress,
)> {
    let plain = memory.physical_memory()?;
    if plain.num_regions() > FEW {
        return plain.to_region_addr(addr);
    }
    plain.iter().find_map(|region| {
        let at = addr.0.wrapping_sub(region.start_addr().0);
        (at < region.len()).then_some((region, MemoryRegionAddress(at)))
    })
}

/// Where memory is plain and the access aligned: straight from its region, without the walk over the parts of an access.
#[inline]
fn load_plain<M: GuestMemory>(memory: &M, addr: GuestAddress, width: Width) -> Option<u64> {
    let (region, at) = locate(memory, addr)?;
    match width {
        Width::B1 => region.load::<u8>(at, ACQUIRE).map(u64::from),
        Width::B2 => region.load::<u16>(at, ACQUIRE).map(u64::from),
        Width::B4 => region.load::<u32>(at, ACQUIRE).map(u64::from),
        Width::B8 => region.load::<u64>(at, ACQUIRE),
    }
    .ok()
}

/// As [`load_plain`]; whether it is done.
#[allow(
    clippy::cast_possible_truncation,
    reason = "each arm cuts the value to its width"
)]
#[inline(always)]
fn store_plain<M: GuestMemory>(memory: &M, addr: GuestAddress, width: Width, value: u64) -> bool {
    let Some((region, at)) = locate(memory, addr) else {
        return false;
    };
    match width {
        Width::B1 => region.store(value as u8, at, RELEASE),
        Width::B2 => region.store(value as u16, at, RELEASE),
        Width::B4 => region.store(value as u32, at, RELEASE),
        Width::B8 => region.store(value, at, RELEASE),
    }
    .is_ok()
}

/// Pairs with the guest's own release of what it wrote before the word (x86 stores are).
const ACQUIRE: Ordering = Ordering::Acquire;
/// Pairs with the acquiring load of a vCPU that sees the word (x86 loads are).
const RELEASE: Ordering = Ordering::Release;

/// Every other load.
#[cold]
fn load_any<M: GuestMemory>(memory: &M, addr: GuestAddress, width: Width) -> Result<u64, RamError> {
    let fail = |_| RamError {
        addr,
        len: width.size(),
    };
    if addr.0 & (width.bytes() - 1) != 0 {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..width.size()).unwrap_or_default();
        memory.read_slice(part, addr).map_err(fail)?;
        return Ok(u64::from_le_bytes(bytes));
    }
    match width {
        Width::B1 => Bytes::load::<u8>(memory, addr, ACQUIRE).map(u64::from),
        Width::B2 => Bytes::load::<u16>(memory, addr, ACQUIRE).map(u64::from),
        Width::B4 => Bytes::load::<u32>(memory, addr, ACQUIRE).map(u64::from),
        Width::B8 => Bytes::load::<u64>(memory, addr, ACQUIRE),
    }
    .map_err(fail)
}

/// Every other store.
#[allow(
    clippy::cast_possible_truncation,
    reason = "each arm cuts the value to its width"
)]
#[cold]
fn store_any<M: GuestMemory>(
    memory: &M,
    addr: GuestAddress,
    width: Width,
    value: u64,
) -> Result<(), RamError> {
    let fail = |_| RamError {
        addr,
        len: width.size(),
    };
    if addr.0 & (width.bytes() - 1) != 0 {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..width.size()).unwrap_or_default();
        return memory.write_slice(part, addr).map_err(fail);
    }
    match width {
        Width::B1 => Bytes::store(memory, value as u8, addr, RELEASE),
        Width::B2 => Bytes::store(memory, value as u16, addr, RELEASE),
        Width::B4 => Bytes::store(memory, value as u32, addr, RELEASE),
        Width::B8 => Bytes::store(memory, value, addr, RELEASE),
    }
    .map_err(fail)
}

impl<M: GuestMemory + Send + Sync> GuestRam for M {
    fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), RamError> {
        self.read_slice(buf, addr).map_err(|_| RamError {
            addr,
            len: buf.len(),
        })
    }

    fn write(&self, addr: GuestAddress, buf: &[u8]) -> Result<(), RamError> {
        self.write_slice(buf, addr).map_err(|_| RamError {
            addr,
            len: buf.len(),
        })
    }

    #[inline]
    fn load(&self, addr: GuestAddress, width: Width) -> Result<u64, RamError> {
        match load_plain(self, addr, width) {
            Some(value) => Ok(value),
            None => load_any(self, addr, width),
        }
    }

    #[inline(always)]
    fn store(&self, addr: GuestAddress, width: Width, value: u64) -> Result<(), RamError> {
        if store_plain(self, addr, width, value) {
            Ok(())
        } else {
            store_any(self, addr, width, value)
        }
    }
}
