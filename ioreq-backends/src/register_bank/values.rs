// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The values of a bank's registers, as the device sees them: whole registers, no masks.

use ioreq_core::Width;

/// One register's place and value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub(super) offset: u64,
    pub(super) width: Width,
    pub(super) value: u64,
}

/// The registers' values, as the device's own side sees them: by the register's offset, whole, regardless of what the guest
/// may read or write.
///
/// ```
/// use ioreq_backends::register_bank::{Register, RegisterBank};
/// use ioreq_core::Width;
/// let mut bank = RegisterBank::new(4, [Register::new("id", 0, Width::B2).read_only().reset(0x1af4)])?;
/// let values = bank.values_mut();
/// assert_eq!(values.get(0), Some(0x1af4));
/// assert_eq!(values.get(1), None); // no register starts there
/// assert!(values.set(0, 0x1_8086)); // cut to the register's width
/// assert_eq!(values.get(0), Some(0x8086));
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Values {
    /// In ascending order of offset, without overlap.
    cells: Vec<Cell>,
}

impl Values {
    /// From cells in ascending order, without overlap.
    pub(super) fn new(cells: Vec<Cell>) -> Self {
        Values { cells }
    }

    /// The value of the register at `offset`; `None` if none starts there.
    #[must_use]
    pub fn get(&self, offset: u64) -> Option<u64> {
        let index = self.position(offset)?;
        self.cells.get(index).map(|cell| cell.value)
    }

    /// Gives the register at `offset` a value, cut to its width, and runs no hook. False if none starts there.
    pub fn set(&mut self, offset: u64, value: u64) -> bool {
        let cell = self
            .position(offset)
            .and_then(|index| self.cells.get_mut(index));
        match cell {
            Some(cell) => {
                cell.value = cell.width.cut(value);
                true
            }
            None => false,
        }
    }

    pub(super) fn position(&self, offset: u64) -> Option<usize> {
        self.cells
            .binary_search_by_key(&offset, |cell| cell.offset)
            .ok()
    }

    /// The first register that ends after `offset`.
    pub(super) fn first_touching(&self, offset: u64) -> usize {
        self.cells
            .partition_point(|cell| cell.offset + cell.width.bytes() <= offset)
    }

    pub(super) fn cell(&self, index: usize) -> Option<Cell> {
        self.cells.get(index).copied()
    }

    pub(super) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    pub(super) fn cell_mut(&mut self, index: usize) -> Option<&mut Cell> {
        self.cells.get_mut(index)
    }
}
