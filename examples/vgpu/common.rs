// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a driver's contexts share: a page table that all of them link.

use ioreq::sim::CpuFault;

use crate::context::{Buffer, Kind, PRESENT, Pen};
use crate::driver::Driver;
use crate::frames::Arena;

/// GPU address of what a driver's contexts share: beyond the places of their own buffers.
pub(crate) const COMMON_AT: u64 = 500 << 21;

/// What a driver's contexts share: a page table and what it maps. The GPU reads it only.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) table: u64,
    pub(crate) buffer: Buffer,
}

impl Common {
    /// The table for `frames`, which hold `bytes`.
    pub(crate) fn new(
        pen: &mut Pen<'_>,
        arena: &mut Arena,
        frames: Vec<u64>,
        bytes: Vec<u8>,
    ) -> Result<Self, CpuFault> {
        let table = arena.table();
        pen.clear(table)?;
        let buffer = Buffer {
            kind: Kind::Common,
            at: COMMON_AT,
            frames,
            bytes,
        };
        let mut common = Common { table, buffer };
        common.turn(pen, 0)?;
        Ok(common)
    }

    /// Writes the table; its pages move on by `by`.
    pub(crate) fn turn(&mut self, pen: &mut Pen<'_>, by: usize) -> Result<(), CpuFault> {
        self.buffer.frames.rotate_left(by);
        self.buffer.bytes.rotate_left(by * 4096);
        for (index, frame) in (0..).zip(&self.buffer.frames) {
            pen.entry(self.table, index, frame << 12 | PRESENT)?;
        }
        Ok(())
    }
}

impl Driver<'_> {
    pub(crate) fn make_common(&mut self) -> Result<Common, CpuFault> {
        let frames: Vec<u64> = (0..16).map(|_| self.task.arena.data()).collect();
        let bytes = self.scribble(&frames)?;
        let mut pen = Pen {
            cpu: self.cpu,
            random: &mut self.random,
        };
        Common::new(&mut pen, &mut self.task.arena, frames, bytes)
    }

    /// Leads the shared table elsewhere, for every context.
    pub(crate) fn turn_common(&mut self) -> Result<(), CpuFault> {
        let by = self.random.usize(1..16);
        let mut pen = Pen {
            cpu: self.cpu,
            random: &mut self.random,
        };
        let Some(common) = &mut self.common else {
            return Ok(());
        };
        common.turn(&mut pen, by)?;
        let buffers = self.contexts.iter_mut().flat_map(|c| &mut c.buffers);
        for buffer in buffers.filter(|buffer| buffer.kind == Kind::Common) {
            buffer.clone_from(&common.buffer);
        }
        self.done.common_turns += 1;
        Ok(())
    }
}
