// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Entries of GPU page tables, and how a driver writes them.

use crate::vcpu::Vcpu;

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITABLE: u64 = 2;
pub(crate) const LARGE: u64 = 0x80;
pub(crate) const WIDE: u64 = 0x800;

/// Writes entries as drivers do: mostly whole, sometimes in halves, low or high one first.
pub(crate) struct Pen<'a, V> {
    pub(crate) cpu: &'a mut V,
    pub(crate) random: &'a mut fastrand::Rng,
}

impl<'a, V: Vcpu> Pen<'a, V> {
    pub(crate) fn new(cpu: &'a mut V, random: &'a mut fastrand::Rng) -> Self {
        Pen { cpu, random }
    }

    pub(crate) fn entry(&mut self, table: u64, index: u64, entry: u64) -> Result<(), V::Fault> {
        let at = (table << 12) + index * 8;
        if self.random.u8(..100) >= 3 {
            return self.cpu.store64(at, entry);
        }
        #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
        let (low, high) = (entry as u32, (entry >> 32) as u32);
        if self.random.bool() {
            self.cpu.store32(at, low)?;
            self.cpu.store32(at + 4, high)
        } else {
            self.cpu.store32(at + 4, high)?;
            self.cpu.store32(at, low)
        }
    }

    /// Clears a page that is to be a table.
    pub(crate) fn clear(&mut self, frame: u64) -> Result<(), V::Fault> {
        (0..512).try_for_each(|index| self.cpu.store64((frame << 12) + index * 8, 0))
    }
}
