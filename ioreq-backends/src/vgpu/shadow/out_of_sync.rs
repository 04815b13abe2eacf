// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Out-of-sync tables: a last-level table that is written again and again is not tracked for a while.
//!
//! Its writes then cost the guest nothing. Before the GPU next looks (at submission) the table is tracked again *first*, and
//! then read and made right in one pass. If the page could not be unmarked meanwhile (its writers never rested), nothing was
//! gained and the table simply goes on being tracked.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ioreq_core::claim::PageState;
use ioreq_core::handler::PageHandler;

use super::Inner;
use super::structure::Structure;
use super::table::{State, Table};

/// What to do with hot last-level tables.
///
/// ```
/// use ioreq_backends::vgpu::OutOfSync;
/// assert_ne!(OutOfSync::default(), OutOfSync::off());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfSync {
    threshold: Option<NonZeroU32>,
}

impl OutOfSync {
    /// Every table stays tracked.
    #[must_use]
    pub const fn off() -> Self {
        OutOfSync { threshold: None }
    }

    /// A last-level table goes out of sync at its `writes`-th write since the last submission.
    #[must_use]
    pub const fn after(writes: NonZeroU32) -> Self {
        OutOfSync {
            threshold: Some(writes),
        }
    }

    pub(super) const fn threshold(self) -> Option<NonZeroU32> {
        self.threshold
    }
}

impl Default for OutOfSync {
    /// After 64 writes: unmarking, marking and reading a table cost about as much as so many traps.
    fn default() -> Self {
        OutOfSync {
            threshold: NonZeroU32::new(64),
        }
    }
}

impl Inner {
    /// Whether the table has been written often since the last submission.
    pub(super) fn wants_out(&self, table: &Table) -> bool {
        let Some(threshold) = self.common.policy.threshold() else {
            return false;
        };
        // Relaxed: see `Table::is_hot`.
        let recent = table.heat_since.load(Ordering::Relaxed)
            == self.common.submissions.load(Ordering::Relaxed);
        recent && table.heat.load(Ordering::Relaxed) >= threshold.get()
    }

    /// Lets the guest write the table without trapping, as soon as its page can be unmarked.
    pub(super) fn leave_sync(&self, structure: &mut Structure, table: &Arc<Table>) {
        table.set_state(State::OutOfSync);
        // Relaxed: see `Table::is_hot`.
        table.heat.store(0, Ordering::Relaxed);
        structure.stats.out_of_sync += 1;
        structure.pending.entry(table.id).or_default().out_of_sync = true;
        if self.tracker.untrack(table.gfn.into()).is_err() {
            // The claim is going, and the shadow with it.
            structure.stats.untracked_failed += 1;
        }
    }

    /// Brings a table that is out of sync back: tracked first, then read.
    pub(super) fn resync(&self, structure: &mut Structure, table: &Arc<Table>) {
        let gained = self.tracker.state(table.gfn) == PageState::Untracked;
        table.set_state(State::Filling);
        let handler: Arc<dyn PageHandler> = Arc::<Table>::clone(table);
        let tracked = self.tracker.track(table.gfn.into(), handler).is_ok();
        if !tracked {
            structure.stats.track_failed += 1;
            structure.pending.entry(table.id).or_default().out_of_sync = true;
        }
        // SeqCst: the state and the mark, then the reading; pairs with the fence in `Table::write`.
        fence(Ordering::SeqCst);
        let changed = self.read_table(structure, table);
        table.set_state(if tracked {
            State::Live
        } else {
            State::OutOfSync
        });
        if gained {
            structure.stats.traps_avoided += changed;
        } else {
            structure.stats.out_of_sync_in_vain += 1;
        }
    }
}
