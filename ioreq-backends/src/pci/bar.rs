// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Base address registers: how they are sized, and what they decode.

use std::fmt;
use std::sync::Arc;

use ioreq_core::handler::Handler;
use ioreq_core::{IoRange, MmioRange, PortRange, Result, Width};

use super::config::{ConfigSpace, bad};
use super::header::{BARS, COMMAND, COMMAND_IO, COMMAND_MEMORY};

/// Number of BARs in a type 0 header.
pub(super) const COUNT: u8 = 6;
const IO: u64 = 1 << 0;
const MEMORY_64: u64 = 2 << 1;
const PREFETCHABLE: u64 = 1 << 3;

/// The address space of a BAR.
///
/// ```
/// use ioreq_backends::pci::{Bar, BarKind};
/// assert_eq!(Bar::mem64(0x1000).kind(), BarKind::Mem64);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Mem32,
    /// Memory anywhere; takes two registers.
    Mem64,
    /// I/O ports.
    Io,
}

/// A region of a function, which the guest places.
///
/// ```
/// use ioreq_backends::pci::Bar;
/// let vram = Bar::mem64(256 << 20).prefetchable();
/// assert_eq!(vram.size(), 0x1000_0000);
/// ```
#[derive(Clone)]
#[must_use]
pub struct Bar {
    kind: BarKind,
    size: u64,
    prefetchable: bool,
    pub(super) handler: Option<Arc<dyn Handler>>,
}

impl Bar {
    const fn new(kind: BarKind, size: u64) -> Self {
        Bar {
            kind,
            size,
            prefetchable: false,
            handler: None,
        }
    }

    /// `size` bytes of memory below 4 GiB: a power of two, 16 bytes to 2 GiB.
    pub const fn mem32(size: u64) -> Self {
        Self::new(BarKind::Mem32, size)
    }

    /// `size` bytes of memory anywhere: a power of two, 16 bytes to 2^62. Takes this BAR and the next.
    pub const fn mem64(size: u64) -> Self {
        Self::new(BarKind::Mem64, size)
    }

    /// `size` ports: a power of two, 4 to 256.
    pub const fn io(size: u64) -> Self {
        Self::new(BarKind::Io, size)
    }

    /// Reading has no side effects, so the guest may map the region cached. For memory.
    pub const fn prefetchable(mut self) -> Self {
        self.prefetchable = true;
        self
    }

    /// Who serves the accesses; their offsets count from the region's start. Without a handler, accesses are refused, those to
    /// MSI-X structures in it excepted.
    pub fn served_by(mut self, handler: impl Handler + 'static) -> Self {
        self.handler = Some(Arc::new(handler));
        self
    }

    /// The address space.
    #[must_use]
    pub const fn kind(&self) -> BarKind {
        self.kind
    }

    /// Size in bytes, or ports.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The command register's bit that has it decoded.
    pub(super) fn decode_bit(&self) -> u16 {
        match self.kind {
            BarKind::Io => COMMAND_IO,
            BarKind::Mem32 | BarKind::Mem64 => COMMAND_MEMORY,
        }
    }

    /// The width of its register, or pair of registers.
    fn width(&self) -> Width {
        match self.kind {
            BarKind::Mem64 => Width::B8,
            BarKind::Mem32 | BarKind::Io => Width::B4,
        }
    }

    /// Whether it takes the register after its own.
    pub(super) fn is_pair(&self) -> bool {
        self.kind == BarKind::Mem64
    }

    pub(super) fn check(&self, index: u8) -> Result<()> {
        let (least, most) = match self.kind {
            BarKind::Mem32 => (16, 1 << 31),
            BarKind::Mem64 => (16, 1 << 62),
            BarKind::Io => (4, 256),
        };
        if index >= COUNT || (self.is_pair() && index + 1 >= COUNT) {
            return Err(bad(format!(
                "BAR {index} of kind {:?}: a function has registers 0 to 5, and a 64-bit BAR takes two",
                self.kind
            )));
        }
        if !self.size.is_power_of_two() || self.size < least || self.size > most {
            return Err(bad(format!(
                "BAR {index} of {:#x}: a {:?} BAR's size is a power of two, {least:#x} to {most:#x}",
                self.size, self.kind
            )));
        }
        if self.prefetchable && self.kind == BarKind::Io {
            return Err(bad(format!("BAR {index}: ports cannot be prefetchable")));
        }
        Ok(())
    }

    fn register(index: u8) -> usize {
        BARS + 4 * usize::from(index)
    }

    /// The bits of the register that are an address; the guest can write those, and learns the size from the others.
    fn address_bits(&self) -> u64 {
        self.width().cut(!(self.size - 1))
    }

    /// Defines its register. The BAR must have passed [`check`](Self::check).
    pub(super) fn define(&self, config: &mut ConfigSpace, index: u8) {
        let prefetchable = if self.prefetchable { PREFETCHABLE } else { 0 };
        let kind = match self.kind {
            BarKind::Mem32 => prefetchable,
            BarKind::Mem64 => MEMORY_64 | prefetchable,
            BarKind::Io => IO,
        };
        let (reset, writable) = (kind.to_le_bytes(), self.address_bits().to_le_bytes());
        let size = self.width().size();
        let cut = |bytes: &[u8; 8]| bytes.get(..size).unwrap_or_default().to_vec();
        config.define(Self::register(index), &cut(&reset), &cut(&writable), &[]);
    }

    /// The range that it decodes as the registers stand now.
    ///
    /// None while decoding is off; at address 0, where it has not been placed; and where it ends with the last byte of the
    /// 32-bit or 64-bit space, which is what a register holds while the guest sizes it.
    pub(super) fn decoded(&self, config: &ConfigSpace, index: u8) -> Option<IoRange> {
        if config.get16(COMMAND) & self.decode_bit() == 0 {
            return None;
        }
        let address = config.get(Self::register(index), self.width()) & self.address_bits();
        let last = address.checked_add(self.size - 1)?;
        if address == 0 || last == u64::from(u32::MAX) || last == u64::MAX {
            return None;
        }
        match self.kind {
            BarKind::Io => {
                let first = u16::try_from(address).ok()?;
                PortRange::sized(first, self.size).ok().map(IoRange::from)
            }
            BarKind::Mem32 | BarKind::Mem64 => {
                MmioRange::new(address, last).ok().map(IoRange::from)
            }
        }
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bar")
            .field("kind", &self.kind)
            .field("size", &format_args!("{:#x}", self.size))
            .field("prefetchable", &self.prefetchable)
            .field("served", &self.handler.is_some())
            .finish()
    }
}
