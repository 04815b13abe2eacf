// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One shadow table.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use ioreq_core::Gfn;

use super::{Common, HostAddr, Inner, SCRATCH, TABLE_BASE};
use crate::vgpu::entry::{ENTRIES, Entry, Kind, Level};

/// Where a table stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Not tracked yet.
    New = 0,
    /// Tracked; being read from guest memory under the structure's lock.
    Filling = 1,
    /// In step with the guest.
    Live = 2,
    /// Not tracked for now: read at submissions.
    OutOfSync = 3,
    /// No root reaches it, or its page could not be tracked.
    Dead = 4,
}

/// Who leads to a table, as far as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parent {
    /// Roots alone.
    Root,
    /// One table, by one entry or several.
    Table(TableId),
    /// Several tables, or a table and a root.
    Many,
}

impl Parent {
    fn code(self) -> u64 {
        match self {
            Parent::Root => 1 << 32,
            Parent::Many => 2 << 32,
            Parent::Table(id) => id.0.into(),
        }
    }
}

/// The number of a shadow table; its place in the shadow's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TableId(pub(super) u32);

impl TableId {
    /// The shadow table's own address, which entries of its parents hold.
    pub(super) fn address(self) -> HostAddr {
        HostAddr(TABLE_BASE + (u64::from(self.0) << 12))
    }

    /// The table at an address; None if it is not a table's.
    pub(super) fn at(address: u64) -> Option<Self> {
        let page = address.checked_sub(TABLE_BASE)? >> 12;
        u32::try_from(page).ok().map(TableId)
    }
}

/// The shadow of one guest page, and that page's handler.
pub(super) struct Table {
    pub(super) id: TableId,
    pub(super) gfn: Gfn,
    pub(super) level: Level,
    pub(super) common: Arc<Common>,
    pub(super) inner: Weak<Inner>,
    state: AtomicU8,
    /// Parents and roots that lead here; changed under the structure's lock.
    pub(super) refs: AtomicU32,
    /// A [`Parent`]'s code; changed under the structure's lock.
    parent: AtomicU64,
    /// Submissions of the roots that start here; changed under the structure's lock.
    pub(super) submissions: AtomicU64,
    /// Some entries are half-written; changed under the structure's lock.
    half_written: AtomicBool,
    /// Entry writes applied without the lock; in the page's order.
    pub(super) writes: AtomicU64,
    /// Made with the first entry that is not absent: most tables of a sparse address space are empty.
    entries: OnceLock<Box<[AtomicU64; ENTRIES]>>,
}

impl Table {
    /// A table of one parent.
    pub(super) fn new(
        id: TableId,
        gfn: Gfn,
        level: Level,
        parent: Parent,
        common: &Arc<Common>,
        inner: &Weak<Inner>,
    ) -> Arc<Self> {
        Arc::new(Table {
            id,
            gfn,
            level,
            common: Arc::clone(common),
            inner: Weak::clone(inner),
            state: AtomicU8::new(State::New as u8),
            refs: AtomicU32::new(1),
            parent: AtomicU64::new(parent.code()),
            submissions: AtomicU64::new(0),
            half_written: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            entries: OnceLock::new(),
        })
    }

    pub(super) fn state(&self) -> State {
        // Acquire: pairs with `set_state`: whoever sees Live sees the entries that were read before.
        match self.state.load(Ordering::Acquire) {
            0 => State::New,
            1 => State::Filling,
            2 => State::Live,
            3 => State::OutOfSync,
            _ => State::Dead,
        }
    }

    /// Changed under the structure's lock.
    pub(super) fn set_state(&self, state: State) {
        // Release: see `state`.
        self.state.store(state as u8, Ordering::Release);
    }

    pub(super) fn parent(&self) -> Parent {
        // Relaxed: under the structure's lock.
        let code = self.parent.load(Ordering::Relaxed);
        match u32::try_from(code) {
            Ok(id) => Parent::Table(TableId(id)),
            Err(_) if code == Parent::Root.code() => Parent::Root,
            Err(_) => Parent::Many,
        }
    }

    /// One more leads here.
    pub(super) fn add_parent(&self, parent: Parent) {
        if self.parent() != parent {
            // Relaxed: under the structure's lock.
            self.parent.store(Parent::Many.code(), Ordering::Relaxed);
        }
    }

    /// Whether some entries are half-written: then writes take the structure's lock.
    pub(super) fn is_half_written(&self) -> bool {
        // Acquire: pairs with `set_half_written`.
        self.half_written.load(Ordering::Acquire)
    }

    /// Changed under the structure's lock: to true in the page's order, to false once the entries are made.
    pub(super) fn set_half_written(&self, value: bool) {
        // Release: whoever sees false and changes an entry without the lock does so after those entries were made.
        self.half_written.store(value, Ordering::Release);
    }

    /// A shadow entry.
    pub(super) fn get(&self, index: usize) -> Entry {
        let entry = self.entries.get().and_then(|entries| entries.get(index));
        // Acquire: pairs with `set`: a child that is seen has been filled.
        entry.map_or(Entry::ABSENT, |entry| Entry(entry.load(Ordering::Acquire)))
    }

    /// Changes a shadow entry, as one store.
    pub(super) fn set(&self, index: usize, entry: Entry) {
        if entry == Entry::ABSENT && self.entries.get().is_none() {
            return;
        }
        let entries = self
            .entries
            .get_or_init(|| Box::new([const { AtomicU64::new(0) }; ENTRIES]));
        if let Some(slot) = entries.get(index) {
            // Release: see `get`.
            slot.store(entry.0, Ordering::Release);
        }
    }

    /// The shadow of an entry that leads to a page or nowhere; None if it leads to a table or to what is not memory.
    pub(super) fn leaf(&self, index: usize, guest: Entry) -> Option<Entry> {
        match self.level.read(index, guest) {
            Kind::Absent => Some(Entry::ABSENT),
            Kind::Page(size) => {
                let host = self
                    .common
                    .frames
                    .translate(guest.frame(size), size.frames())?;
                Some(guest.with_address(host.0))
            }
            Kind::Table(_) => None,
        }
    }

    /// The tables that the entries lead to.
    pub(super) fn children(&self) -> impl Iterator<Item = TableId> {
        let entries = self.entries.get().filter(|_| !self.level.is_last());
        let all = entries.into_iter().flat_map(|entries| entries.iter());
        // Relaxed: under the structure's lock, which is the only one to change directories.
        all.filter_map(move |entry| self.child_of(Entry(entry.load(Ordering::Relaxed))))
    }

    /// The table that a shadow entry of this level leads to.
    pub(super) fn child_of(&self, entry: Entry) -> Option<TableId> {
        match self.level.read(0, entry) {
            Kind::Table(_) if entry.address() != SCRATCH.0 => TableId::at(entry.address()),
            _ => None,
        }
    }
}
