// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tracking the pages of new tables, and ending it for those of dead ones, many at a time: a hypercall costs as much for a
//! thousand neighbours as for one.

use std::collections::BTreeSet;
use std::sync::Arc;

use ioreq_core::handler::PageHandler;
use ioreq_core::{Gfn, GfnRange};

use super::Inner;
use super::build::Unlinkable;
use super::structure::Structure;
use super::table::{State, Table, TableId};
use crate::vgpu::entry::Entry;

/// Tables that are tracked in one go.
const BATCH: usize = 1024;
/// Entries that may lead to tables that are not tracked yet: what is kept of them is bounded, whatever a guest links.
const MOST_LINKS: usize = 8 * BATCH;

/// An entry that leads to a table that is not tracked yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewLink {
    pub(super) child: TableId,
    pub(super) parent: TableId,
    pub(super) index: usize,
}

impl Structure {
    /// Whether new tables should be tracked before more are read.
    pub(super) fn is_batch_full(&self) -> bool {
        self.to_track.len() >= BATCH || self.new_links.len() >= MOST_LINKS
    }
}

impl Inner {
    /// Tracks new tables. They are read after that; entries that lead to those that cannot be tracked show the scratch page.
    pub(super) fn track_new(&self, structure: &mut Structure) {
        // A page may be about to be untracked as a table that just died.
        self.untrack_dead(structure);
        let rest = structure.to_track.len().saturating_sub(BATCH);
        let mut new = structure.to_track.split_off(rest);
        // One may have died before it was tracked.
        new.retain(|table| table.state() == State::New);
        let failed = self.track_tables(&new);
        for table in new {
            if failed.contains(&table.gfn.0) {
                table.set_state(State::Dead);
                continue;
            }
            table.set_state(State::Filling);
            structure.to_fill.push(table);
        }
        if !failed.is_empty() {
            self.unlink_failed(structure);
        }
        if structure.to_track.is_empty() {
            structure.new_links.clear();
        }
    }

    /// Returns the frames of those that could not be tracked.
    fn track_tables(&self, tables: &[Arc<Table>]) -> BTreeSet<u64> {
        let handler = |table: &Arc<Table>| -> (Gfn, Arc<dyn PageHandler>) {
            (table.gfn, Arc::<Table>::clone(table))
        };
        let Err(err) = self
            .tracker
            .track_each(tables.iter().map(handler).collect())
        else {
            return BTreeSet::new();
        };
        let done: BTreeSet<Gfn> = err.done.iter().flat_map(GfnRange::iter).collect();
        // Whatever is wrong with one page is not the others' fault.
        let left = tables.iter().filter(|table| !done.contains(&table.gfn));
        let failed = left.filter(|table| {
            let (gfn, handler) = handler(table);
            self.tracker.track(gfn.into(), handler).is_err()
        });
        failed.map(|table| table.gfn.0).collect()
    }

    /// Nothing may lead to tables that could not be tracked: their entries are tried again at the next submission.
    fn unlink_failed(&self, structure: &mut Structure) {
        for link in std::mem::take(&mut structure.new_links) {
            let failed = |id| {
                structure
                    .table(id)
                    .is_some_and(|t| t.state() == State::Dead)
            };
            if !failed(link.child) {
                structure.new_links.push(link);
                continue;
            }
            let Some(parent) = structure.table(link.parent).cloned() else {
                continue;
            };
            let shown = parent.get(link.index);
            if parent.child_of(shown) == Some(link.child) {
                self.unlinkable(structure, &parent, link.index, Unlinkable::Untrackable);
                let scratch = Entry(shown.0).with_address(super::SCRATCH.0);
                self.show(structure, &parent, link.index, scratch);
            }
        }
    }

    /// Ends the tracking of pages that are no tables any more, in ranges.
    pub(super) fn untrack_dead(&self, structure: &mut Structure) {
        let mut gfns = std::mem::take(&mut structure.to_untrack);
        gfns.sort_unstable();
        let mut rest = gfns.as_slice();
        while let Some(first) = rest.first() {
            let run = rest
                .iter()
                .zip(*first..)
                .take_while(|(gfn, expected)| *gfn == expected)
                .count();
            if let Ok(pages) = GfnRange::sized(*first, run as u64)
                && self.tracker.untrack(pages).is_err()
            {
                structure.stats.untracked_failed += run as u64;
            }
            rest = rest.get(run..).unwrap_or_default();
        }
    }
}
