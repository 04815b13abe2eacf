// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An access to a port, an MMIO address or a PCI register, single or repeated.

use std::fmt;

use vm_memory::GuestAddress;

use super::element::{Element, Elements};
use crate::handler::Space;
use crate::ids::Sbdf;
use crate::memory::Width;

/// Read or write, from the guest's point of view.
///
/// ```
/// use ioreq_core::request::Direction;
/// assert_ne!(Direction::Read, Direction::Write);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The guest reads (`IOREQ_READ`).
    Read,
    /// The guest writes (`IOREQ_WRITE`).
    Write,
}

/// What is accessed. For a repeated access: by its first element.
///
/// ```
/// use ioreq_core::{handler::Space, request::Target};
/// assert_eq!(Target::Port(0x70).space(), Space::Port);
/// assert_eq!(Target::Port(0x70).addr(), 0x70);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `IOREQ_TYPE_PIO`: a port.
    Port(u16),
    /// `IOREQ_TYPE_COPY`: a guest-physical address.
    Mmio(GuestAddress),
    /// `IOREQ_TYPE_PCI_CONFIG`: a register of a PCI function.
    Pci {
        /// The function.
        sbdf: Sbdf,
        /// The register: a byte offset below 4096.
        register: u16,
    },
}

impl Target {
    /// The address space.
    #[must_use]
    pub const fn space(self) -> Space {
        match self {
            Target::Port(_) => Space::Port,
            Target::Mmio(_) => Space::Mmio,
            Target::Pci { .. } => Space::Pci,
        }
    }

    /// The port, the guest-physical address, or the register.
    #[must_use]
    pub const fn addr(self) -> u64 {
        match self {
            Target::Port(port) => port as u64,
            Target::Mmio(addr) => addr.0,
            Target::Pci { register, .. } => register as u64,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Port(port) => write!(f, "port {port:#x}"),
            Target::Mmio(addr) => write!(f, "mmio {:#x}", addr.0),
            Target::Pci { sbdf, register } => write!(f, "pci {sbdf} register {register:#x}"),
        }
    }
}

/// Where the data is.
///
/// ```
/// use ioreq_core::request::Data;
/// assert_eq!(Data::Inline(5), Data::Inline(5));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// In the slot. For a write: the value, cut to the width; the same for every element. For a read: nothing yet (0).
    Inline(u64),
    /// In guest memory, from this guest-physical address on, element by element (`data_is_ptr`).
    Pointer(GuestAddress),
}

/// A validated access.
///
/// All its addresses exist: a port access lies within the 65536 ports, a register access within the 4096 bytes of
/// configuration space, and no element of MMIO or of data in guest memory wraps around.
///
/// ```
/// use ioreq_core::{VcpuId, Width, abi::*, request::{Data, Direction, Kind, Target, decode}};
/// use vm_memory::GuestAddress;
///
/// // std; rep stosd, three elements: addr is the highest one.
/// let raw = Ioreq {
///     kind: IOREQ_TYPE_COPY, flags: IOREQ_DF, addr: 0xe000_0008, size: 4, count: 3, data: 7, ..Ioreq::default()
/// };
/// let Kind::Io(io) = *decode(&raw, VcpuId(0))?.kind() else { unreachable!() };
/// assert_eq!(io.target(), Target::Mmio(GuestAddress(0xe000_0008)));
/// assert_eq!((io.direction(), io.width(), io.data()), (Direction::Write, Width::B4, Data::Inline(7)));
/// assert_eq!((io.count(), io.stride()), (3, -4));
/// let addrs: Vec<u64> = io.elements().map(|element| element.addr).collect();
/// assert_eq!(addrs, [0xe000_0008, 0xe000_0004, 0xe000_0000]);
/// # Ok::<(), ioreq_core::request::Malformed>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    // Only `decode` builds it, after its checks: `elements` relies on them.
    pub(super) target: Target,
    pub(super) direction: Direction,
    pub(super) width: Width,
    pub(super) data: Data,
    pub(super) count: u32,
    pub(super) backward: bool,
}

impl Io {
    /// What is accessed, by the first element.
    #[inline]
    #[must_use]
    pub const fn target(&self) -> Target {
        self.target
    }

    /// Read or write.
    #[inline]
    #[must_use]
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether the guest reads.
    #[inline]
    #[must_use]
    pub const fn is_read(&self) -> bool {
        matches!(self.direction, Direction::Read)
    }

    /// Bytes of one element.
    #[inline]
    #[must_use]
    pub const fn width(&self) -> Width {
        self.width
    }

    /// Where the data is.
    #[inline]
    #[must_use]
    pub const fn data(&self) -> Data {
        self.data
    }

    /// Number of elements, 1 to [`MAX_COUNT`](super::MAX_COUNT).
    #[inline]
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether addresses step downward (`df`).
    #[inline]
    #[must_use]
    pub const fn backward(&self) -> bool {
        self.backward
    }

    /// Bytes from one element's address to the next: the width for MMIO (minus the width if backward), 0 for ports and
    /// registers, which stay.
    #[must_use]
    pub const fn stride(&self) -> i64 {
        match self.target {
            Target::Mmio(_) => self.step(),
            Target::Port(_) | Target::Pci { .. } => 0,
        }
    }

    /// Bytes from one element's data in guest memory to the next: the width, or minus the width if backward.
    #[must_use]
    pub const fn data_stride(&self) -> i64 {
        self.step()
    }

    const fn step(&self) -> i64 {
        let width = self.width as u8 as i64;
        if self.backward { -width } else { width }
    }

    /// Element `index`, in the order of execution; `None` from [`count`](Self::count) on.
    #[inline]
    #[must_use]
    pub const fn element(&self, index: u32) -> Option<Element> {
        if index >= self.count {
            return None;
        }
        // `decode` checked the last element, and those before it lie between it and the first: none of these wraps.
        let index64 = index as i64;
        let addr = self
            .target
            .addr()
            .wrapping_add_signed(index64 * self.stride());
        let data = match self.data {
            Data::Inline(_) => None,
            Data::Pointer(first) => Some(GuestAddress(
                first.0.wrapping_add_signed(index64 * self.data_stride()),
            )),
        };
        Some(Element { index, addr, data })
    }

    /// All elements, in the order of execution.
    #[must_use]
    pub const fn elements(&self) -> Elements {
        Elements::new(*self)
    }
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, preposition) = match self.direction {
            Direction::Read => ("read", "from"),
            Direction::Write => ("write", "to"),
        };
        let bytes = self.width.bytes();
        let unit = if bytes == 1 { "byte" } else { "bytes" };
        write!(f, "{verb} of {bytes} {unit} {preposition} {}", self.target)?;
        if self.count > 1 {
            let way = if self.backward { "downward" } else { "upward" };
            write!(f, ", {} times {way}", self.count)?;
        }
        if let Data::Pointer(addr) = self.data {
            write!(f, ", data at {:#x}", addr.0)?;
        }
        Ok(())
    }
}
