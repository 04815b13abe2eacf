// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Building and tearing down: linking tables to their parents, reading new ones, releasing those that nobody needs.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ioreq_core::{Error, ErrorKind, Gfn, Op, Width};
use vm_memory::GuestAddress;

use super::pending::Halves;
use super::structure::Structure;
use super::table::{Parent, State, Table, TableId};
use super::tracking::NewLink;
use super::{Inner, Root, RootId, SCRATCH};
use crate::vgpu::entry::{ENTRIES, Entry, Kind, Level};

/// Why a table cannot be linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unlinkable {
    BadFrame,
    Clash,
    OverBound,
    Untrackable,
}

impl Inner {
    pub(super) fn create(&self, root: Root) -> ioreq_core::Result<RootId> {
        let mut structure = self.lock();
        if structure.root_count() >= self.most_roots {
            let err = Error::new(Op::Configure, ErrorKind::OutOfMemory);
            return Err(err.about(format!("{} address spaces already", self.most_roots)));
        }
        let wanted = match root {
            Root::L4(gfn) => [Some((gfn, Level::Pml4)), None, None, None],
            Root::L3(directories) => directories.map(|gfn| Some((gfn?, Level::Pd))),
        };
        let mut tables = [None; 4];
        let mut failed = None;
        for (slot, wanted) in tables.iter_mut().zip(wanted) {
            let Some((gfn, level)) = wanted else { continue };
            match self.link(&mut structure, gfn, level, None) {
                Ok(id) => *slot = Some(id),
                Err(why) => failed = failed.or(Some((gfn, why))),
            }
        }
        self.track_new(&mut structure);
        for (id, wanted) in tables.iter().zip(wanted) {
            let table = id.and_then(|id| structure.table(id));
            if let (Some((gfn, _)), Some(State::Dead)) = (wanted, table.map(|t| t.state())) {
                failed = failed.or(Some((gfn, Unlinkable::Untrackable)));
            }
        }
        if let Some((gfn, why)) = failed {
            structure.to_release.extend(tables.into_iter().flatten());
            self.finish(&mut structure);
            return Err(root_error(gfn, why));
        }
        self.finish(&mut structure);
        Ok(structure.add_root(root, tables))
    }

    pub(super) fn destroy(&self, id: RootId) -> ioreq_core::Result<()> {
        let mut structure = self.lock();
        let Some(state) = structure.remove_root(id) else {
            let err = Error::new(Op::Configure, ErrorKind::InvalidArgument);
            return Err(err.about(format!("{id:?} is no address space of this shadow")));
        };
        structure
            .to_release
            .extend(state.tables.into_iter().flatten());
        self.finish(&mut structure);
        Ok(())
    }

    pub(super) fn submit(&self, root: RootId) {
        let mut structure = self.lock();
        if structure.next_interval(root).is_none() {
            return;
        }
        // From the root down: an entry that is made may be what makes the address space reach a table.
        let level = |id: &TableId| structure.table(*id).map(|table| table.level);
        let ids = structure.pending.keys();
        let mut waiting: Vec<(Option<Level>, TableId)> = ids.map(|id| (level(id), *id)).collect();
        waiting.sort_unstable();
        for (_, id) in waiting.into_iter().rev() {
            if !structure.reaches(root, id) {
                continue;
            }
            let pending = structure.pending.remove(&id);
            let (Some(table), Some(pending)) = (structure.table(id).cloned(), pending) else {
                continue;
            };
            for index in pending.entries() {
                self.sync_entry(&mut structure, &table, index);
            }
            // After the entries were made: see the module.
            table.set_half_written(false);
            self.finish(&mut structure);
        }
        self.submit_out_of_sync(&mut structure, root);
        self.finish(&mut structure);
    }

    /// Bytes `from..to` of an entry were written.
    pub(super) fn entry_written(
        &self,
        structure: &mut Structure,
        table: &Arc<Table>,
        index: usize,
        from: usize,
        to: usize,
    ) {
        let halves = Halves::covered(from, to);
        if !halves.whole() {
            structure.stats.split_writes += 1;
        }
        if halves.whole() && !structure.pending.contains_key(&table.id) {
            self.sync_entry(structure, table, index);
            return;
        }
        let pending = structure.pending.entry(table.id).or_default();
        let whole = pending.written(index, halves);
        let half_written = pending.is_half_written();
        if pending.is_empty() {
            structure.pending.remove(&table.id);
        }
        if whole {
            self.sync_entry(structure, table, index);
        } else {
            // What is there now is half old, half new: nobody meant it. Shown is that *something* is there, or nothing.
            let shown = match table.level.read(index, self.guest_entry(table, index)) {
                Kind::Absent => Entry::ABSENT,
                Kind::Page(_) | Kind::Table(_) => Entry(3).with_address(SCRATCH.0),
            };
            self.show(structure, table, index, shown);
        }
        table.set_half_written(half_written);
    }

    pub(super) fn guest_entry(&self, table: &Table, index: usize) -> Entry {
        let at = GuestAddress((table.gfn.0 << 12) + index as u64 * 8);
        // A page that was ballooned out holds nothing.
        Entry(self.ram.load(at, Width::B8).unwrap_or(0))
    }

    /// Makes a shadow entry from what guest memory holds.
    fn sync_entry(&self, structure: &mut Structure, table: &Arc<Table>, index: usize) {
        let guest = self.guest_entry(table, index);
        self.make_entry(structure, table, index, guest);
    }

    /// Makes a shadow entry from the guest's.
    pub(super) fn make_entry(
        &self,
        structure: &mut Structure,
        table: &Arc<Table>,
        index: usize,
        guest: Entry,
    ) {
        let shown = match table.level.read(index, guest) {
            Kind::Absent => Entry::ABSENT,
            Kind::Page(_) => match table.leaf(index, guest) {
                Some(entry) => entry,
                None => {
                    structure.stats.bad_frames += 1;
                    guest.with_address(SCRATCH.0)
                }
            },
            Kind::Table(level) => {
                let old = table
                    .child_of(table.get(index))
                    .and_then(|id| structure.table(id));
                if let Some(child) = old.filter(|t| t.gfn == guest.table() && t.level == level) {
                    guest.with_address(child.id.address().0)
                } else {
                    match self.link(structure, guest.table(), level, Some((table.id, index))) {
                        Ok(id) => guest.with_address(id.address().0),
                        Err(why) => {
                            self.unlinkable(structure, table, index, why);
                            guest.with_address(SCRATCH.0)
                        }
                    }
                }
            }
        };
        self.show(structure, table, index, shown);
    }

    pub(super) fn unlinkable(
        &self,
        structure: &mut Structure,
        table: &Table,
        index: usize,
        why: Unlinkable,
    ) {
        match why {
            Unlinkable::BadFrame => structure.stats.bad_frames += 1,
            Unlinkable::Clash => structure.stats.clashes += 1,
            Unlinkable::OverBound => structure.stats.over_bound += 1,
            Unlinkable::Untrackable => structure.stats.track_failed += 1,
        }
        if why != Unlinkable::BadFrame {
            let pending = structure.pending.entry(table.id).or_default();
            pending.retry(index);
        }
    }

    /// Changes a shadow entry; the table it led to loses a parent, unless it is the same.
    pub(super) fn show(
        &self,
        structure: &mut Structure,
        table: &Table,
        index: usize,
        entry: Entry,
    ) {
        let old = table.get(index);
        if old == entry {
            return;
        }
        table.set(index, entry);
        structure.stats.updates += 1;
        let (before, now) = (table.child_of(old), table.child_of(entry));
        if before != now {
            structure.to_release.extend(before);
        }
    }

    /// One more parent for the table of `gfn`, a root or an entry. A new one is made; [`finish`](Self::finish) tracks and reads
    /// it.
    fn link(
        &self,
        structure: &mut Structure,
        gfn: Gfn,
        level: Level,
        by: Option<(TableId, usize)>,
    ) -> Result<TableId, Unlinkable> {
        let parent = by.map_or(Parent::Root, |(table, _)| Parent::Table(table));
        let id = match structure.table_of(gfn) {
            Some(table) if table.level != level => return Err(Unlinkable::Clash),
            Some(table) if table.state() == State::Dead => return Err(Unlinkable::Untrackable),
            Some(table) => {
                // Relaxed: under the structure's lock.
                table.refs.fetch_add(1, Ordering::Relaxed);
                table.add_parent(parent);
                table.id
            }
            None => self.make(structure, gfn, level, parent)?,
        };
        let is_new = structure.table(id).is_some_and(|t| t.state() == State::New);
        if let Some((parent, index)) = by.filter(|_| is_new) {
            structure.new_links.push(NewLink {
                child: id,
                parent,
                index,
            });
        }
        Ok(id)
    }

    /// A new table, of one parent.
    fn make(
        &self,
        structure: &mut Structure,
        gfn: Gfn,
        level: Level,
        parent: Parent,
    ) -> Result<TableId, Unlinkable> {
        let start = gfn.start().ok_or(Unlinkable::BadFrame)?;
        self.ram
            .load(start, Width::B8)
            .map_err(|_| Unlinkable::BadFrame)?;
        if structure.table_count() >= self.most_tables {
            return Err(Unlinkable::OverBound);
        }
        let id = structure.new_id().ok_or(Unlinkable::OverBound)?;
        let table = Table::new(id, gfn, level, parent, &self.common, &structure.inner);
        structure.add(&table);
        structure.to_track.push(table);
        Ok(id)
    }

    /// Works off what linking and unlinking left to do. No recursion, whatever the guest's tables look like.
    pub(super) fn finish(&self, structure: &mut Structure) {
        loop {
            let all_read = structure.to_fill.is_empty();
            if !structure.to_track.is_empty() && (all_read || structure.is_batch_full()) {
                self.track_new(structure);
            } else if let Some(table) = structure.to_fill.pop() {
                self.fill(structure, &table);
            } else if let Some(id) = structure.to_release.pop() {
                self.release(structure, id);
            } else {
                break;
            }
        }
        self.untrack_dead(structure);
    }

    fn fill(&self, structure: &mut Structure, table: &Arc<Table>) {
        if table.state() != State::Filling {
            return;
        }
        // SeqCst: the mark, then the reading; pairs with the fence in `Table::write`.
        fence(Ordering::SeqCst);
        self.read_table(structure, table);
        table.set_state(State::Live);
    }

    /// Makes every entry from guest memory.
    fn read_table(&self, structure: &mut Structure, table: &Arc<Table>) {
        let mut page = [0; ENTRIES * 8];
        let start = GuestAddress(table.gfn.0 << 12);
        if self.ram.read(start, &mut page).is_err() {
            page.fill(0);
        }
        for (index, bytes) in page.as_chunks::<8>().0.iter().enumerate() {
            // A glance: the table is empty so far, so entries that are absent need nothing. Others are read again, whole.
            let glance = Entry(u64::from_le_bytes(*bytes));
            if glance.is_present() {
                self.sync_entry(structure, table, index);
            }
        }
    }

    /// A table lost a parent; the last one takes it along.
    fn release(&self, structure: &mut Structure, id: TableId) {
        let Some(table) = structure.table(id).cloned() else {
            return;
        };
        // Relaxed: under the structure's lock.
        if table.refs.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let was = table.state();
        table.set_state(State::Dead);
        structure.to_release.extend(table.children());
        structure.remove(&table);
        structure.stats.updates += table.writes.load(Ordering::Relaxed);
        // One that was never tracked, or could not be, never was a table to the guest.
        let was_table = !matches!(was, State::New | State::Dead);
        structure.stats.tables_freed += u64::from(was_table);
        if was_table && was != State::OutOfSync {
            structure.to_untrack.push(table.gfn.0);
        }
    }
}

fn root_error(gfn: Gfn, why: Unlinkable) -> Error {
    let (kind, text) = match why {
        Unlinkable::BadFrame => (ErrorKind::InvalidArgument, "is not guest memory"),
        Unlinkable::Clash => (ErrorKind::InvalidArgument, "is a table of another level"),
        Unlinkable::OverBound => (ErrorKind::OutOfMemory, "would be one table too many"),
        Unlinkable::Untrackable => (ErrorKind::WrongState, "cannot be tracked"),
    };
    Error::new(Op::Configure, kind).about(format!("root table at {gfn} {text}"))
}
