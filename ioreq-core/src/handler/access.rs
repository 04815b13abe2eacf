// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Single accesses and batches of them, as handlers see them.

use crate::memory::Width;

/// The address space of an access.
///
/// ```
/// use ioreq_core::handler::Space;
/// assert_ne!(Space::Port, Space::Mmio);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// I/O ports (`IOREQ_TYPE_PIO`).
    Port,
    /// Guest-physical addresses (`IOREQ_TYPE_COPY`).
    Mmio,
    /// PCI configuration space (`IOREQ_TYPE_PCI_CONFIG`).
    Pci,
}

/// One access, wholly inside the range of the handler it goes to.
///
/// ```
/// use ioreq_core::{Width, handler::{Access, Space}};
/// let access = Access { space: Space::Port, addr: 0x3fd, offset: 5, width: Width::B1 };
/// assert_eq!(access.addr - access.offset, 0x3f8); // where the range starts
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    /// The address space.
    pub space: Space,
    /// The port, the guest-physical address, or the register (byte offset) in configuration space.
    pub addr: u64,
    /// Bytes from the start of the handler's range; in configuration space the register again.
    pub offset: u64,
    /// Bytes accessed.
    pub width: Width,
}

/// Up to [`Batch::MAX`] elements of one repeated instruction (`rep stos`, `rep ins`, …), in the order of execution.
///
/// ```
/// use ioreq_core::{Width, handler::{Access, Batch, Space}};
/// let first = Access { space: Space::Mmio, addr: 0xe000_0008, offset: 8, width: Width::B4 };
/// let batch = Batch { first, stride: -4, len: 3 };
/// let offsets: Vec<u64> = batch.iter().map(|access| access.offset).collect();
/// assert_eq!(offsets, [8, 4, 0]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Batch {
    /// The first element. All others are inside the handler's range too.
    pub first: Access,
    /// Bytes from one element's address to the next: 0 for a port, the width or minus the width for MMIO.
    pub stride: i64,
    /// Number of elements.
    pub len: usize,
}

impl Batch {
    /// The most elements a handler is given at once.
    pub const MAX: usize = 64;

    /// Element `index`. Addresses of elements beyond the batch wrap and mean nothing.
    #[must_use]
    pub const fn get(&self, index: usize) -> Access {
        let step = (index as i64).wrapping_mul(self.stride);
        Access {
            addr: self.first.addr.wrapping_add_signed(step),
            offset: self.first.offset.wrapping_add_signed(step),
            ..self.first
        }
    }

    /// The elements in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Access> + use<> {
        let batch = *self;
        (0..self.len).map(move |index| batch.get(index))
    }
}
