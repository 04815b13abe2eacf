// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's page allocator: every driver has an arena of its own, and gives pages new uses as soon as it can.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// 2 MiB in frames.
const BIG: u64 = 512;

/// Frames of one driver.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Single frames, the longest free ones first; `true` for one that was a table.
    free: VecDeque<(u64, bool)>,
    /// Free runs of 512 aligned frames.
    big: Vec<u64>,
    /// Table pages that came back.
    pub(crate) tables_freed: u64,
    /// Table pages that became data.
    pub(crate) tables_reused: u64,
}

impl Arena {
    /// Frames `first..first + frames`, of which the upper half is kept in runs of 2 MiB.
    pub(crate) fn new(first: u64, frames: u64) -> Self {
        let middle = (first + frames / 2).next_multiple_of(BIG);
        let end = first + frames;
        let big = (middle..end)
            .step_by(512)
            .filter(|run| run + BIG <= end)
            .collect();
        Arena {
            free: (first..middle).map(|frame| (frame, false)).collect(),
            big,
            tables_freed: 0,
            tables_reused: 0,
        }
    }

    /// A page for data. One that was a table a moment ago is preferred: that is where a stale mark would hurt.
    pub(crate) fn data(&mut self) -> u64 {
        let was_table = self
            .free
            .iter()
            .rev()
            .take(64)
            .position(|(_, table)| *table);
        let at = was_table.map_or(0, |from_back| self.free.len() - 1 - from_back);
        let (frame, table) = self
            .free
            .remove(at)
            .expect("the arena is large enough for what the driver maps");
        self.tables_reused += u64::from(table);
        frame
    }

    /// A page for a table. The caller clears it.
    pub(crate) fn table(&mut self) -> u64 {
        self.free
            .pop_front()
            .expect("the arena is large enough for what the driver maps")
            .0
    }

    /// Data that is not needed any more.
    pub(crate) fn free_data(&mut self, frame: u64) {
        self.free.push_back((frame, false));
    }

    /// A table that is not needed any more.
    pub(crate) fn free_table(&mut self, frame: u64) {
        self.tables_freed += 1;
        self.free.push_back((frame, true));
    }

    /// 512 frames, aligned.
    pub(crate) fn big(&mut self) -> Option<u64> {
        self.big.pop()
    }

    pub(crate) fn free_big(&mut self, frame: u64) {
        self.big.push(frame);
    }
}
