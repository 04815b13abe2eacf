// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a shadow has done.

use std::sync::atomic::Ordering;

use super::Inner;

/// Counters of a [`Shadow`](super::Shadow).
///
/// ```
/// assert_eq!(ioreq_backends::vgpu::ShadowStats::default().tables, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShadowStats {
    /// Tables now.
    pub tables: u64,
    /// The most tables there were at a time.
    pub tables_peak: u64,
    /// Tables that no root reaches any more: their pages went back to the guest.
    pub tables_freed: u64,
    /// Address spaces now.
    pub roots: u64,
    /// Shadow entries changed.
    pub updates: u64,
    /// Writes of less than an entry.
    pub split_writes: u64,
    /// Entries that lead to what is not guest memory: they show the scratch page.
    pub bad_frames: u64,
    /// Entries that lead to a table of another level.
    pub clashes: u64,
    /// Entries that would have needed one table more than the bound.
    pub over_bound: u64,
    /// Pages that could not be tracked.
    pub track_failed: u64,
    /// Pages whose tracking could not be ended.
    pub untracked_failed: u64,
    /// Times a table went out of sync.
    pub out_of_sync: u64,
    /// Tables out of sync now.
    pub out_of_sync_now: u64,
    /// Times a table out of sync was read at a submission.
    pub rereads: u64,
    /// Times a table out of sync came to be tracked again.
    pub protected_again: u64,
    /// Of those, times that it had avoided fewer traps than it takes to go out of sync.
    pub out_of_sync_in_vain: u64,
    /// Entries of tables whose pages were not marked that were found changed: at least so many writes did not trap.
    pub traps_avoided: u64,
}

impl Inner {
    pub(super) fn stats(&self) -> ShadowStats {
        let structure = self.lock();
        let mut stats = structure.stats;
        stats.tables = structure.table_count() as u64;
        stats.roots = structure.root_count() as u64;
        stats.out_of_sync_now = structure.out.len() as u64;
        // Relaxed: counters.
        stats.updates += structure
            .all_tables()
            .map(|t| t.writes.load(Ordering::Relaxed))
            .sum::<u64>();
        stats
    }
}
