// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest RAM as handlers and the framework see it: object-safe, with single-copy-atomic stores.

use std::sync::atomic::Ordering;

use vm_memory::{
    AtomicAccess, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryResult,
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
    /// From a number of bytes; `None` unless 1, 2, 4 or 8.
    #[must_use]
    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            1 => Some(Width::B1),
            2 => Some(Width::B2),
            4 => Some(Width::B4),
            8 => Some(Width::B8),
            _ => None,
        }
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// The number of bytes, as a length.
    #[must_use]
    pub const fn size(self) -> usize {
        self as usize
    }

    /// The value with every bit of the width set: what a read gives that nobody answers.
    #[must_use]
    pub const fn all_ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }

    /// `value` cut to the width.
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

/// An aligned load; straight from its region where memory is plain, without the walk over the parts of an access.
#[inline]
fn load_as<T: AtomicAccess, M: GuestMemory>(
    memory: &M,
    addr: GuestAddress,
    order: Ordering,
) -> GuestMemoryResult<T> {
    let plain = memory.physical_memory();
    if let Some((region, at)) = plain.and_then(|plain| plain.to_region_addr(addr))
        && let Ok(value) = region.load(at, order)
    {
        return Ok(value);
    }
    Bytes::load(memory, addr, order)
}

/// An aligned store, as [`load_as`].
#[inline]
fn store_as<T: AtomicAccess, M: GuestMemory>(
    memory: &M,
    value: T,
    addr: GuestAddress,
    order: Ordering,
) -> GuestMemoryResult<()> {
    let plain = memory.physical_memory();
    if let Some((region, at)) = plain.and_then(|plain| plain.to_region_addr(addr))
        && region.store(value, at, order).is_ok()
    {
        return Ok(());
    }
    Bytes::store(memory, value, addr, order)
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

    fn load(&self, addr: GuestAddress, width: Width) -> Result<u64, RamError> {
        let fail = |_| RamError {
            addr,
            len: width.size(),
        };
        if !addr.0.is_multiple_of(width.bytes()) {
            let mut bytes = [0; 8];
            let part = bytes.get_mut(..width.size()).unwrap_or_default();
            self.read_slice(part, addr).map_err(fail)?;
            return Ok(u64::from_le_bytes(bytes));
        }
        // Acquire: pairs with the guest's own release of what it wrote before this word (x86 stores are).
        let order = Ordering::Acquire;
        match width {
            Width::B1 => load_as::<u8, _>(self, addr, order).map(u64::from),
            Width::B2 => load_as::<u16, _>(self, addr, order).map(u64::from),
            Width::B4 => load_as::<u32, _>(self, addr, order).map(u64::from),
            Width::B8 => load_as::<u64, _>(self, addr, order),
        }
        .map_err(fail)
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "each arm cuts the value to its width"
    )]
    fn store(&self, addr: GuestAddress, width: Width, value: u64) -> Result<(), RamError> {
        let fail = |_| RamError {
            addr,
            len: width.size(),
        };
        if !addr.0.is_multiple_of(width.bytes()) {
            let bytes = value.to_le_bytes();
            let part = bytes.get(..width.size()).unwrap_or_default();
            return self.write_slice(part, addr).map_err(fail);
        }
        // Release: pairs with the acquiring load of a vCPU that sees this word (x86 loads are).
        let order = Ordering::Release;
        match width {
            Width::B1 => store_as(self, value as u8, addr, order),
            Width::B2 => store_as(self, value as u16, addr, order),
            Width::B4 => store_as(self, value as u32, addr, order),
            Width::B8 => store_as(self, value, addr, order),
        }
        .map_err(fail)
    }
}
