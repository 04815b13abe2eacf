// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a driver's contexts share: a page table that all of them link.

use alloc::vec::Vec;

use crate::arena::Arena;
use crate::context::{Buffer, Kind};
use crate::driver::Driver;
use crate::pen::{PRESENT, Pen};
use crate::vcpu::Vcpu;

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
    pub(crate) fn new<V: Vcpu>(
        pen: &mut Pen<'_, V>,
        arena: &mut Arena,
        frames: Vec<u64>,
        bytes: Vec<u8>,
    ) -> Result<Self, V::Fault> {
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
    pub(crate) fn turn<V: Vcpu>(
        &mut self,
        pen: &mut Pen<'_, V>,
        by: usize,
    ) -> Result<(), V::Fault> {
        self.buffer.frames.rotate_left(by);
        self.buffer.bytes.rotate_left(by * 4096);
        for (index, frame) in (0..).zip(&self.buffer.frames) {
            pen.entry(self.table, index, frame << 12 | PRESENT)?;
        }
        Ok(())
    }
}

impl<V: Vcpu> Driver<'_, V> {
    pub(crate) fn make_common(&mut self) -> Result<Common, V::Fault> {
        let frames: Vec<u64> = (0..16).map(|_| self.arena.data()).collect();
        let bytes = self.scribble(&frames)?;
        let mut pen = Pen::new(self.cpu, &mut self.random);
        Common::new(&mut pen, &mut self.arena, frames, bytes)
    }

    /// Leads the shared table elsewhere, for every context.
    pub(crate) fn turn_common(&mut self) -> Result<(), V::Fault> {
        let by = self.random.usize(1..16);
        let mut pen = Pen::new(self.cpu, &mut self.random);
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
