// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A trapped write to a table.

use std::sync::atomic::{Ordering, fence};

use ioreq_core::Width;
use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite};

use super::Inner;
use super::table::{State, Table};
use crate::vgpu::entry::Entry;

impl PageHandler for Table {
    fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        let stored = write.apply();
        // SeqCst: our store, then our look at the state; pairs with the fence between a change of state and the reading of
        // the page in `Inner::fill`, `Inner::leave_sync` and `Inner::come_back` (see the module).
        fence(Ordering::SeqCst);
        let applied = self.apply_whole(write);
        if (!applied || self.is_warm())
            && let Some(inner) = self.inner.upgrade()
        {
            if applied {
                inner.warmed(self);
            } else {
                inner.written(self.gfn, write.offset(), write.width());
            }
        }
        stored
    }
}

impl Table {
    /// The way of most writes: a whole entry of a last-level table. No lock; no allocation but for a table's first entry.
    fn apply_whole(&self, write: &PageWrite<'_>) -> bool {
        let whole = write.width() == Width::B8 && write.offset().is_multiple_of(8);
        // A half was written in the page's order before us, so that it is known here.
        let plain = self.level.is_last() && !self.is_half_written();
        if !whole || !plain || self.state() != State::Live {
            return false;
        }
        let index = usize::from(write.offset() / 8);
        let Some(entry) = self.leaf(index, Entry(write.value())) else {
            return false;
        };
        self.set(index, entry);
        // Relaxed, and no read-modify-write: the page's order makes us the only writer.
        self.writes
            .store(self.writes.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        true
    }

    /// Whether the writes so far have just passed a multiple of the threshold.
    fn is_warm(&self) -> bool {
        // Relaxed: in the page's order.
        let writes = self.writes.load(Ordering::Relaxed);
        let threshold = self.common.policy.threshold();
        threshold.is_some_and(|threshold| writes.is_multiple_of(u64::from(threshold.get())))
    }
}

impl Inner {
    /// A write that needs the structure's lock; it is in guest memory already.
    fn written(&self, gfn: ioreq_core::Gfn, offset: u16, width: Width) {
        let mut structure = self.lock();
        // The table that the page is now: the one whose handler we were called as may be gone.
        let Some(table) = structure.table_of(gfn) else {
            return;
        };
        if table.state() == State::OutOfSync {
            return;
        }
        let (first, end) = (usize::from(offset), usize::from(offset) + width.size());
        for index in first / 8..=(end - 1) / 8 {
            // The bytes of this entry that were written.
            let from = first.saturating_sub(index * 8);
            let to = (end - index * 8).min(8);
            self.entry_written(&mut structure, &table, index, from, to);
        }
        self.finish(&mut structure);
    }
}
