// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Out-of-sync tables: a last-level table that is written again and again is not tracked, and its writes cost the guest
//! nothing. Before the GPU looks, at each submission of an address space that reaches it, the table is read and what changed
//! is made in the shadow.
//!
//! # When a table goes
//! A page can be unmarked only while nobody writes it (see [`ioreq_core::claim`]), so in the middle of a burst is the wrong time
//! to ask. A table that was hot before several submissions in a row ([`heat`](super::heat)) is let go *at* a submission, when its
//! writer waits for the GPU. It stays out across submissions: unmarking and marking cost hypercalls, reading a table costs
//! a microsecond.
//!
//! # When it comes back
//! When nobody has written it for some submissions, or its page could not be unmarked for some. Then it is tracked *first*
//! and read after, so that no write between is lost. If it did not avoid as many traps as it took to earn the right, it came
//! back in vain, and has to earn the next time twice as long.
//!
//! # Why it is right
//! While a table is out, only the holder of the structure's lock changes its shadow, and the shadow is what the copy of the
//! guest's page says that was made last. A handler that was called before sees that the table is out, after its store, or
//! its store is in what is read when the table leaves (the fences of [`handler`](super::handler) and [`Inner::leave_sync`]).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ioreq_core::Width;
use ioreq_core::claim::PageState;
use ioreq_core::handler::PageHandler;
use vm_memory::GuestAddress;

use super::structure::Structure;
use super::table::{State, Table, TableId};
use super::{Inner, RootId};
use crate::vgpu::entry::{ENTRIES, Entry};

/// Submissions without a write, or without the page being unmarked, after which a table comes back.
const PATIENCE: u32 = 4;

/// What to do with last-level tables that are written again and again. Off by default.
///
/// ```
/// use std::num::NonZeroU32;
/// use ioreq_backends::vgpu::OutOfSync;
/// let policy = OutOfSync::after(NonZeroU32::new(32).unwrap()).at_most(256);
/// assert_ne!(policy, OutOfSync::on());
/// assert_eq!(OutOfSync::default(), OutOfSync::off());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutOfSync {
    threshold: Option<NonZeroU32>,
    most: usize,
}

impl OutOfSync {
    /// Every table stays tracked.
    #[must_use]
    pub const fn off() -> Self {
        OutOfSync {
            threshold: None,
            most: 0,
        }
    }

    /// A table of which 64 entries are written before each of several submissions in a row is not tracked any more, until
    /// it has come to rest; at most 1024 of them at a time.
    #[must_use]
    pub const fn on() -> Self {
        OutOfSync {
            threshold: NonZeroU32::new(64),
            most: 1024,
        }
    }

    /// The same, from so many writes an interval on.
    #[must_use]
    pub const fn after(writes: NonZeroU32) -> Self {
        OutOfSync {
            threshold: Some(writes),
            ..Self::on()
        }
    }

    /// At most so many tables at a time; each takes 4 KiB, for what was last read of it.
    #[must_use]
    pub const fn at_most(self, tables: usize) -> Self {
        OutOfSync {
            most: tables,
            ..self
        }
    }

    pub(super) const fn threshold(self) -> Option<NonZeroU32> {
        self.threshold
    }
}

/// A table that is out of sync.
pub(super) struct Out {
    /// The guest's entries as they were last read; the shadow is made from them.
    copy: [u64; ENTRIES],
    /// Its page was unmarked already when it was last read, so that no write since then has trapped.
    free: bool,
    /// Submissions since an entry was last found changed.
    idle: u32,
    /// Submissions that found it changed, and its page still marked.
    stuck: u32,
    /// Traps avoided so far.
    avoided: u64,
}

impl Inner {
    /// The writes of a last-level table passed another multiple of the threshold.
    pub(super) fn warmed(&self, table: &Table) {
        let mut structure = self.lock();
        // It may be gone, and its number another table's.
        let same = structure.table(table.id);
        if !same.is_some_and(|same| std::ptr::eq(&**same, table)) {
            return;
        }
        let now = structure.interval(table);
        if structure.heat.entry(table.id).or_default().pass(now) {
            structure.hot.insert(table.id);
        }
    }

    /// The part of a submission of `root` that concerns tables out of sync: those that it reaches are read, and those that
    /// have earned it leave.
    pub(super) fn submit_out_of_sync(&self, structure: &mut Structure, root: RootId) {
        let reached = |structure: &Structure, ids: &mut dyn Iterator<Item = TableId>| {
            ids.filter(|id| structure.reaches(root, *id))
                .collect::<Vec<_>>()
        };
        for id in reached(structure, &mut structure.out.keys().copied()) {
            if let (Some(table), Some(out)) =
                (structure.table(id).cloned(), structure.out.remove(&id))
            {
                self.look_at(structure, &table, out);
            }
        }
        for id in reached(structure, &mut structure.hot.iter().copied()) {
            structure.hot.remove(&id);
            let live = structure.table(id).filter(|t| t.state() == State::Live);
            if let Some(table) = live.cloned()
                && structure.out.len() < self.common.policy.most
            {
                self.leave_sync(structure, &table);
            }
        }
    }

    /// Lets the guest write the table without trapping, as soon as its page can be unmarked.
    fn leave_sync(&self, structure: &mut Structure, table: &Arc<Table>) {
        table.set_state(State::OutOfSync);
        // SeqCst: the state, then the reading; pairs with the fence in `Table::write`.
        fence(Ordering::SeqCst);
        let mut out = Box::new(Out {
            copy: [0; ENTRIES],
            free: false,
            idle: 0,
            stuck: 0,
            avoided: 0,
        });
        // Whatever a handler stored and then left to us is in memory: every entry is made once.
        for (index, copy) in out.copy.iter_mut().enumerate() {
            let guest = self.guest_entry(table, index);
            *copy = guest.0;
            self.make_entry(structure, table, index, guest);
        }
        structure.out.insert(table.id, out);
        structure.stats.out_of_sync += 1;
        if self.tracker.untrack(table.gfn.into()).is_err() {
            // The claim is going, and the shadow with it.
            structure.stats.untracked_failed += 1;
        }
    }

    /// Reads a table that is out of sync, and decides whether it stays so.
    fn look_at(&self, structure: &mut Structure, table: &Arc<Table>, mut out: Box<Out>) {
        let free = self.tracker.state(table.gfn) == PageState::Untracked;
        let changed = self.reread(structure, table, &mut out.copy);
        structure.stats.rereads += 1;
        if out.free {
            structure.stats.traps_avoided += changed;
            out.avoided += changed;
        }
        out.idle = if changed == 0 { out.idle + 1 } else { 0 };
        out.stuck = match (free, changed) {
            (true, _) => 0,
            (false, 0) => out.stuck,
            (false, _) => out.stuck + 1,
        };
        out.free = free;
        if out.idle < PATIENCE && out.stuck < PATIENCE {
            structure.out.insert(table.id, out);
        } else {
            self.come_back(structure, table, out);
        }
    }

    /// Brings a table back: tracked first, then read.
    fn come_back(&self, structure: &mut Structure, table: &Arc<Table>, mut out: Box<Out>) {
        table.set_state(State::Filling);
        let handler: Arc<dyn PageHandler> = Arc::<Table>::clone(table);
        if self.tracker.track(table.gfn.into(), handler).is_err() {
            // It goes on being read at submissions; the next one tries again.
            table.set_state(State::OutOfSync);
            structure.stats.track_failed += 1;
            structure.out.insert(table.id, out);
            return;
        }
        // SeqCst: the mark, then the reading; pairs with the fence in `Table::write`.
        fence(Ordering::SeqCst);
        let changed = self.reread(structure, table, &mut out.copy);
        if out.free {
            structure.stats.traps_avoided += changed;
            out.avoided += changed;
        }
        table.set_state(State::Live);
        structure.stats.protected_again += 1;
        let threshold = self.common.policy.threshold.map_or(0, NonZeroU32::get);
        let gained = out.avoided >= u64::from(threshold);
        structure.stats.out_of_sync_in_vain += u64::from(!gained);
        let heat = structure.heat.entry(table.id).or_default();
        heat.came_back(gained);
    }

    /// Makes the entries that differ from `copy`, which follows. Returns how many did.
    fn reread(
        &self,
        structure: &mut Structure,
        table: &Arc<Table>,
        copy: &mut [u64; ENTRIES],
    ) -> u64 {
        let mut page = [0; ENTRIES * 8];
        let start = GuestAddress(table.gfn.0 << 12);
        if self.ram.read(start, &mut page).is_err() {
            // A page that was ballooned out holds nothing.
            page.fill(0);
        }
        let mut changed = 0;
        let glances = page.as_chunks::<8>().0.iter();
        for (index, (glance, copy)) in glances.zip(copy).enumerate() {
            if u64::from_le_bytes(*glance) == *copy {
                continue;
            }
            // The page is not read entry by entry: what differs is read again, whole.
            let at = GuestAddress((table.gfn.0 << 12) + index as u64 * 8);
            let guest = self.ram.load(at, Width::B8).unwrap_or(0);
            if guest != *copy {
                *copy = guest;
                self.make_entry(structure, table, index, Entry(guest));
                changed += 1;
            }
        }
        changed
    }
}
