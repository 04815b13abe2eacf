// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which tables there are and how they hang together. Everything here is used under the structure's lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use ioreq_core::Gfn;

use super::heat::Heat;
use super::out_of_sync::Out;
use super::pending::Pending;
use super::table::{Parent, Table, TableId};
use super::tracking::NewLink;
use super::{Inner, Root, RootId, ShadowStats};

/// Levels of tables: so many steps lead from any table to a root.
const LEVELS: u32 = 4;

/// An address space.
pub(super) struct RootState {
    pub(super) root: Root,
    pub(super) tables: [Option<TableId>; 4],
}

pub(super) struct Structure {
    pub(super) inner: Weak<Inner>,
    by_gfn: HashMap<u64, Arc<Table>>,
    by_id: Vec<Option<Arc<Table>>>,
    free_ids: Vec<u32>,
    roots: BTreeMap<RootId, RootState>,
    /// Roots by the frame of their first table, oldest first.
    roots_at: HashMap<Option<Gfn>, Vec<RootId>>,
    next_root: u64,
    /// Submissions so far.
    submissions: u64,
    /// Tables that wait for something. None of them is empty.
    pub(super) pending: BTreeMap<TableId, Box<Pending>>,
    /// Tables out of sync.
    pub(super) out: BTreeMap<TableId, Box<Out>>,
    /// Tables that are to go out of sync at their next submission.
    pub(super) hot: BTreeSet<TableId>,
    /// Tables that were ever written often.
    pub(super) heat: HashMap<TableId, Heat>,
    /// New tables, not tracked yet.
    pub(super) to_track: Vec<Arc<Table>>,
    /// Entries that lead to those.
    pub(super) new_links: Vec<NewLink>,
    /// New tables, tracked but not read yet.
    pub(super) to_fill: Vec<Arc<Table>>,
    /// Tables that lost a parent.
    pub(super) to_release: Vec<TableId>,
    /// Pages whose tracking is to end.
    pub(super) to_untrack: Vec<u64>,
    pub(super) stats: ShadowStats,
}

impl Structure {
    pub(super) fn new(inner: Weak<Inner>) -> Self {
        Structure {
            inner,
            by_gfn: HashMap::new(),
            by_id: Vec::new(),
            free_ids: Vec::new(),
            roots: BTreeMap::new(),
            roots_at: HashMap::new(),
            next_root: 0,
            submissions: 0,
            pending: BTreeMap::new(),
            out: BTreeMap::new(),
            hot: BTreeSet::new(),
            heat: HashMap::new(),
            to_track: Vec::new(),
            new_links: Vec::new(),
            to_fill: Vec::new(),
            to_release: Vec::new(),
            to_untrack: Vec::new(),
            stats: ShadowStats::default(),
        }
    }

    pub(super) fn table_of(&self, gfn: Gfn) -> Option<Arc<Table>> {
        self.by_gfn.get(&gfn.0).cloned()
    }

    pub(super) fn table(&self, id: TableId) -> Option<&Arc<Table>> {
        self.by_id.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn table_count(&self) -> usize {
        self.by_gfn.len()
    }

    pub(super) fn root_count(&self) -> usize {
        self.roots.len()
    }

    /// Oldest first.
    pub(super) fn all_roots(&self) -> Vec<(RootId, Root)> {
        let roots = self.roots.iter();
        roots.map(|(id, state)| (*id, state.root)).collect()
    }

    pub(super) fn all_tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.by_gfn.values()
    }

    /// A number for a new table.
    pub(super) fn new_id(&mut self) -> Option<TableId> {
        if let Some(id) = self.free_ids.pop() {
            return Some(TableId(id));
        }
        let id = u32::try_from(self.by_id.len()).ok()?;
        self.by_id.push(None);
        Some(TableId(id))
    }

    pub(super) fn add(&mut self, table: &Arc<Table>) {
        if let Some(slot) = self.by_id.get_mut(table.id.0 as usize) {
            *slot = Some(Arc::clone(table));
        }
        self.by_gfn.insert(table.gfn.0, Arc::clone(table));
        self.stats.tables_peak = self.stats.tables_peak.max(self.by_gfn.len() as u64);
    }

    /// Takes a table out, with all that is noted of its entries.
    pub(super) fn remove(&mut self, table: &Table) {
        self.by_gfn.remove(&table.gfn.0);
        if let Some(slot) = self.by_id.get_mut(table.id.0 as usize) {
            *slot = None;
        }
        self.free_ids.push(table.id.0);
        self.pending.remove(&table.id);
        self.out.remove(&table.id);
        self.hot.remove(&table.id);
        self.heat.remove(&table.id);
    }

    /// The table from which alone roots reach this one; None if there may be several.
    fn top(&self, id: TableId) -> Option<&Arc<Table>> {
        let mut table = self.table(id)?;
        for _ in 0..LEVELS {
            match table.parent() {
                Parent::Root => return Some(table),
                Parent::Table(parent) => table = self.table(parent)?,
                Parent::Many => break,
            }
        }
        None
    }

    /// Whether the address space may reach the table. A table with several parents counts as reached by all.
    pub(super) fn reaches(&self, root: RootId, id: TableId) -> bool {
        let top = self.top(id).map(|top| top.id);
        top.is_none_or(|top| {
            self.root(root)
                .is_some_and(|r| r.tables.contains(&Some(top)))
        })
    }

    /// Submissions so far of the address spaces that reach the table; of all, if it is not known which do.
    pub(super) fn interval(&self, table: &Table) -> u64 {
        self.top(table.id).map_or(self.submissions, |top| {
            // Relaxed: under the structure's lock.
            top.submissions.load(Ordering::Relaxed)
        })
    }

    /// Another submission of the address space; None if there is no such.
    pub(super) fn next_interval(&mut self, root: RootId) -> Option<()> {
        let tables = self.root(root)?.tables;
        self.submissions += 1;
        for table in tables.iter().flatten().filter_map(|id| self.table(*id)) {
            // Relaxed: under the structure's lock.
            table.submissions.fetch_add(1, Ordering::Relaxed);
        }
        Some(())
    }

    pub(super) fn root(&self, id: RootId) -> Option<&RootState> {
        self.roots.get(&id)
    }

    pub(super) fn add_root(&mut self, root: Root, tables: [Option<TableId>; 4]) -> RootId {
        let id = RootId(self.next_root);
        self.next_root += 1;
        self.roots_at.entry(root.first()).or_default().push(id);
        self.roots.insert(id, RootState { root, tables });
        id
    }

    pub(super) fn remove_root(&mut self, id: RootId) -> Option<RootState> {
        let state = self.roots.remove(&id)?;
        if let Some(same) = self.roots_at.get_mut(&state.root.first()) {
            same.retain(|other| *other != id);
            if same.is_empty() {
                self.roots_at.remove(&state.root.first());
            }
        }
        Some(state)
    }

    /// The newest root at a frame that `is_it`.
    fn newest(
        &self,
        first: Option<Gfn>,
        is_it: impl Fn(Root) -> bool,
    ) -> Option<(RootId, &RootState)> {
        let mut newest_first = self.roots_at.get(&first)?.iter().rev();
        newest_first.find_map(|id| Some((*id, self.roots.get(id).filter(|r| is_it(r.root))?)))
    }

    pub(super) fn find_root(&self, root: Root) -> Option<RootId> {
        self.newest(root.first(), |other| other == root)
            .map(|(id, _)| id)
    }

    pub(super) fn find_l3(&self, gfn: Gfn) -> Option<(RootId, Root)> {
        self.newest(Some(gfn), |root| matches!(root, Root::L3(_)))
            .map(|(id, state)| (id, state.root))
    }
}
