// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A split virtqueue, from its driver's side, in the guest's memory.

use ioreq::sim::{Cpu, CpuFault};

/// Descriptors, available ring and used ring, each at a page of its own.
pub(crate) const DESCRIPTORS: u64 = 0x20_0000;
pub(crate) const AVAILABLE: u64 = 0x20_1000;
pub(crate) const USED: u64 = 0x20_2000;
pub(crate) const SIZE: u16 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A part of a request: address, length, and whether the device writes it.
pub(crate) type Part = (u64, u32, bool);

/// What the driver knows of the queue.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    made: u16,
    seen: u16,
}

impl Ring {
    /// Offers a request, which begins at descriptor 0.
    pub(crate) fn offer(&mut self, cpu: &mut Cpu, parts: &[Part]) -> Result<(), CpuFault> {
        for (number, (addr, len, write)) in (0_u16..).zip(parts) {
            let at = DESCRIPTORS + 16 * u64::from(number);
            let last = usize::from(number) + 1 == parts.len();
            let flags = if last { 0 } else { NEXT } | if *write { WRITE } else { 0 };
            cpu.store64(at, *addr)?;
            cpu.store32(at + 8, *len)?;
            cpu.store16(at + 12, flags)?;
            cpu.store16(at + 14, number + 1)?;
        }
        cpu.store16(AVAILABLE + 4 + 2 * u64::from(self.made % SIZE), 0)?;
        self.made = self.made.wrapping_add(1);
        cpu.store16(AVAILABLE + 2, self.made)
    }

    /// Waits until a request is used; how many bytes the device says it wrote.
    pub(crate) fn wait(&mut self, cpu: &mut Cpu) -> Result<u32, CpuFault> {
        while cpu.load16(USED + 2)? == self.seen {
            cpu.relax()?;
        }
        let at = USED + 4 + 8 * u64::from(self.seen % SIZE);
        self.seen = self.seen.wrapping_add(1);
        assert_eq!(cpu.load32(at)?, 0, "the request that was offered");
        cpu.load32(at + 4)
    }
}
