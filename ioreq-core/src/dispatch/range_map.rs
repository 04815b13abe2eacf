// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: follows links of the index; the registry of readers keeps what they lead to.
//!
//! Ranges of a 64-bit space: MMIO addresses, and PCI functions as they lie in an ECAM window.
//!
//! An index by address, so that a look-up costs the same few dependent loads however many ranges there are, and no search: the
//! root has a link per 2 MiB of the first 2^40 bytes, tables below it one per 4 KiB, per 64 bytes and per byte. A link leads
//! straight to a range where only one touches its piece, so a large range costs a link per 2 MiB, a lone one no table, and
//! only pages that several ranges share have tables of their own (512 bytes each). What lies above has a sorted list. The
//! root is zeroed memory, mapped where it is touched.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};

use crossbeam::utils::CachePadded;

use super::grace::{Grace, ReadGuard};
use super::last_hit::MapId;
use super::link::{
    CELLS_SHIFT, Cells, Entry, Lead, Link, List, PAGES_SHIFT, Pages, Target, Unlinked,
};
use super::ranged::{Conflict, Ranged};
use super::zeroed::shared;
use crate::range::MmioRange;
use crate::sync::{Mutex, MutexGuard};

/// log2 of the addresses of a page.
const PAGE_SHIFT: u32 = if cfg!(loom) { 1 } else { 12 };
/// log2 of the addresses of a line, the pieces of a page. (Under loom a line is an address.)
const LINE_SHIFT: u32 = PAGE_SHIFT - CELLS_SHIFT;
/// log2 of the addresses of a region, under a link of the root.
const REGION_SHIFT: u32 = PAGE_SHIFT + PAGES_SHIFT;
// Tables of two sizes cover it all, down to single addresses.
const _: () = assert!(LINE_SHIFT == 0 || LINE_SHIFT == CELLS_SHIFT);
/// Regions that the root knows.
const REGIONS: u64 = if cfg!(loom) { 2 } else { 1 << 19 };
/// Links of the root.
const ROOT: usize = if cfg!(loom) { 3 } else { (1 << 19) + 1 };
const _: () = assert!(ROOT as u64 == REGIONS + 1);
/// The last address that the root knows.
const NEAR_LAST: u64 = (REGIONS << REGION_SHIFT) - 1;

/// The ranges by first address.
type Entries<R> = BTreeMap<u64, Arc<Entry<R>>>;

/// Routes of ranges that do not overlap.
///
/// ```
/// use ioreq_core::{MmioRange, dispatch::{Grace, RangeMap}};
/// let grace = Grace::new();
/// let ranges = RangeMap::new(grace.clone());
/// ranges.insert(MmioRange::sized(0xe000_0000, 0x1000)?, "bar0")?;
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// assert_eq!(ranges.find(0xe000_0ffc, 4, &guard), Some(&"bar0"));
/// assert_eq!(ranges.find(0xe000_0ffd, 4, &guard), None); // not wholly inside
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RangeMap<R: Send + Sync + 'static> {
    /// The links of the regions, then the one of everything above [`NEAR_LAST`]. Not in a box, which would have to be the only one that points
    /// there when the map is moved: readers remember links.
    root: Arc<[Link<R>; ROOT]>,
    /// Owns the entries that links lead to; when no link does any more, the garbage of `grace` owns them.
    /// On a line of its own: whoever changes the map does not take away the line that readers look at.
    entries: CachePadded<Mutex<Entries<R>>>,
    grace: Arc<Grace>,
    id: MapId,
}

impl<R: Send + Sync + 'static> RangeMap<R> {
    /// An empty map, for readers of `grace`.
    #[must_use]
    pub fn new(grace: Arc<Grace>) -> Self {
        RangeMap {
            root: shared(),
            entries: CachePadded::new(Mutex::new(Entries::new())),
            grace,
            id: MapId::new(),
        }
    }

    /// The route whose range covers all `len` addresses from `addr` on.
    ///
    /// # Panics
    /// If the guard is of another registry than the map.
    #[inline(always)]
    #[must_use]
    pub fn find<'g>(&self, addr: u64, len: u64, guard: &'g ReadGuard<'_>) -> Option<&'g R> {
        // SAFETY: `guard` cannot quiesce in `'g`, and is of this map's registry if its reader remembers anything of this map (checked below).
        if let Some(last) = unsafe { guard.last().get(self.id, addr, len) } {
            return Some(&last.route);
        }
        self.look_up(addr, len, guard)
    }

    /// The same, by the links.
    #[inline]
    fn look_up<'g>(&self, addr: u64, len: u64, guard: &'g ReadGuard<'_>) -> Option<&'g R> {
        guard.check(&self.grace);
        let mut link = self.region(addr >> REGION_SHIFT);
        // SAFETY: `guard` is of the registry that what links lead to is retired to (checked), and cannot quiesce in `'g`.
        let mut target: Target<'g, R> = unsafe { link.follow() };
        if let Target::Pages(pages) = target {
            link = pages.link(addr >> PAGE_SHIFT);
            // SAFETY: as above.
            target = unsafe { link.follow() };
        }
        if let Target::Cells(lines) = target {
            link = lines.link(addr >> LINE_SHIFT);
            // SAFETY: as above.
            target = unsafe { link.follow() };
            if let Target::Cells(addrs) = target {
                link = addrs.link(addr);
                // SAFETY: as above.
                target = unsafe { link.follow() };
            }
        }
        match target {
            Target::One(entry) => {
                let entry = entry.filter(|entry| entry.range.covers(addr, len))?;
                guard.last().set(self.id, link, entry);
                Some(&entry.route)
            }
            Target::List(list) => {
                // SAFETY: as above.
                let entry = unsafe { list.below(addr) };
                // Far up in the space, where no link leads straight to it: not remembered.
                let entry = entry.filter(|entry| entry.range.covers(addr, len))?;
                Some(&entry.route)
            }
            Target::Pages(_) | Target::Cells(_) => None,
        }
    }

    /// The link of the region with this number; of all that lies above, the same.
    #[inline]
    fn region(&self, number: u64) -> &Link<R> {
        #[allow(clippy::cast_possible_truncation, reason = "below the root's length")]
        let at = number.min(REGIONS) as usize;
        &self.root[at]
    }

    fn entries(&self) -> MutexGuard<'_, Entries<R>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a route. When this returns, every look-up finds it.
    ///
    /// # Errors
    /// The [`Conflict`] if the range overlaps one that is there.
    pub fn insert(&self, range: MmioRange, route: R) -> Result<(), Conflict<MmioRange, R>> {
        let mut entries = self.entries();
        if let Some(existing) = touching(&entries, range).next() {
            return Err(Conflict::new(existing));
        }
        let entry = Arc::new(Ranged { range, route });
        entries.insert(range.first(), Arc::clone(&entry));
        self.relink(&entries, range, Some(&entry), None);
        Ok(())
    }

    /// Gives this very range another route; false if it is not there.
    pub fn replace(&self, range: MmioRange, route: R) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&range.first()) else {
            return false;
        };
        if entry.range != range {
            return false;
        }
        let new = Arc::new(Ranged { range, route });
        let old = std::mem::replace(entry, Arc::clone(&new));
        self.relink(&entries, range, Some(&new), Some(old));
        true
    }

    /// Removes this very range; false if it is not there. Never waits: what its route holds is freed later.
    pub fn remove(&self, range: MmioRange) -> bool {
        let mut entries = self.entries();
        let whole = |entry: &Arc<Entry<R>>| entry.range == range;
        if !entries.get(&range.first()).is_some_and(whole) {
            return false;
        }
        let old = entries.remove(&range.first());
        self.relink(&entries, range, None, old);
        true
    }

    /// Makes the links of `changed` lead to what `entries` says; `new` is the entry there now, `old` the one that was.
    fn relink(
        &self,
        entries: &Entries<R>,
        changed: MmioRange,
        new: Option<&Arc<Entry<R>>>,
        old: Option<Arc<Entry<R>>>,
    ) {
        let change = Change {
            entries,
            changed,
            new,
        };
        let mut unlinked = Unlinked::new(old);
        let last = changed.last().min(NEAR_LAST);
        // Empty if all of it is far.
        for number in changed.first() >> REGION_SHIFT..=last >> REGION_SHIFT {
            let region = Piece {
                number,
                shift: REGION_SHIFT,
            };
            change.relink(self.region(number), region, &mut unlinked);
        }
        if changed.last() > NEAR_LAST
            && let Ok(far) = MmioRange::new(NEAR_LAST + 1, u64::MAX)
        {
            let lead = match change.found(far) {
                Found::Nobody => Lead::Nobody,
                Found::One(entry) => Lead::One(entry),
                Found::Several => Lead::List(List::new(change.touching(far))),
            };
            self.region(REGIONS).lead(lead, &mut unlinked);
        }
        // Entries, lists and tables go together, after the last link that led to one of them.
        unlinked.retire(&self.grace);
    }
}

/// Addresses that share a link.
#[derive(Clone, Copy)]
struct Piece {
    /// Its number, of all pieces of this size in the space.
    number: u64,
    /// log2 of its addresses.
    shift: u32,
}

impl Piece {
    fn addrs(self) -> MmioRange {
        let first = self.number << self.shift;
        MmioRange::new(first, first | ((1 << self.shift) - 1)).expect("its low bits are all ones")
    }

    /// log2 of the addresses of the pieces of this piece.
    fn finer(self) -> u32 {
        if self.shift > PAGE_SHIFT {
            PAGE_SHIFT
        } else {
            self.shift - CELLS_SHIFT
        }
    }

    /// The pieces of this piece that `part` touches, which is one at least.
    fn parts(self, part: MmioRange) -> impl Iterator<Item = Piece> {
        let (all, shift) = (self.addrs(), self.finer());
        let first = all.first().max(part.first()) >> shift;
        let last = all.last().min(part.last()) >> shift;
        (first..=last).map(move |number| Piece { number, shift })
    }
}

/// Whom a piece belongs to.
enum Found<R> {
    Nobody,
    One(*const Entry<R>),
    Several,
}

/// A range that comes or goes.
struct Change<'a, R> {
    /// As they are afterwards.
    entries: &'a Entries<R>,
    changed: MmioRange,
    new: Option<&'a Arc<Entry<R>>>,
}

impl<'a, R: Send + Sync + 'static> Change<'a, R> {
    /// The entries that touch `piece`, in order.
    fn touching(&self, piece: MmioRange) -> impl Iterator<Item = &'a Arc<Entry<R>>> + use<'a, R> {
        touching(self.entries, piece)
    }

    /// Whom `piece` belongs to.
    fn found(&self, piece: MmioRange) -> Found<R> {
        if self.changed.first() <= piece.first() && piece.last() <= self.changed.last() {
            // Ranges are disjoint: nobody else is here.
            return self
                .new
                .map_or(Found::Nobody, |entry| Found::One(Arc::as_ptr(entry)));
        }
        let mut here = self.touching(piece);
        match (here.next(), here.next()) {
            (None, _) => Found::Nobody,
            (Some(entry), None) => Found::One(Arc::as_ptr(entry)),
            _ => Found::Several,
        }
    }

    /// Makes the link of `piece` lead to whom the piece belongs to now. Under the map's lock.
    fn relink(&self, link: &Link<R>, piece: Piece, unlinked: &mut Unlinked<R>) {
        // SAFETY: links change under the lock that our caller holds.
        match unsafe { link.follow() } {
            Target::Pages(pages) => {
                self.relink_parts(|number| pages.link(number), piece, self.changed, unlinked);
            }
            Target::Cells(cells) => {
                self.relink_parts(|number| cells.link(number), piece, self.changed, unlinked);
            }
            _ => {
                let lead = match self.found(piece.addrs()) {
                    Found::Nobody => Lead::Nobody,
                    Found::One(entry) => Lead::One(entry),
                    Found::Several => self.table(piece, unlinked),
                };
                link.lead(lead, unlinked);
                return;
            }
        }
        // A table stays until nobody is left: one that comes and goes costs no table each time.
        if self.touching(piece.addrs()).next().is_none() {
            link.lead(Lead::Nobody, unlinked);
        }
    }

    /// A table for a piece that several ranges share; never a single address, as ranges are disjoint.
    fn table(&self, piece: Piece, unlinked: &mut Unlinked<R>) -> Lead<R> {
        if piece.shift > PAGE_SHIFT {
            let pages = Pages::new();
            self.relink_parts(|number| pages.link(number), piece, piece.addrs(), unlinked);
            Lead::Pages(pages)
        } else {
            let cells = Cells::new();
            self.relink_parts(|number| cells.link(number), piece, piece.addrs(), unlinked);
            Lead::Cells(cells)
        }
    }

    fn relink_parts<'l>(
        &self,
        link: impl Fn(u64) -> &'l Link<R>,
        piece: Piece,
        part: MmioRange,
        unlinked: &mut Unlinked<R>,
    ) {
        for part in piece.parts(part) {
            self.relink(link(part.number), part, unlinked);
        }
    }
}

/// The entries that touch `piece`, in order.
fn touching<R>(
    entries: &Entries<R>,
    piece: MmioRange,
) -> impl Iterator<Item = &Arc<Entry<R>>> + use<'_, R> {
    let reaching_in = entries.range(..piece.first()).next_back();
    let reaching_in = reaching_in.filter(|(_, entry)| entry.range.overlaps(&piece));
    let inside = entries.range(piece.first()..=piece.last());
    reaching_in
        .into_iter()
        .chain(inside)
        .map(|(_, entry)| entry)
}

impl<R: Send + Sync + 'static> Drop for RangeMap<R> {
    fn drop(&mut self) {
        let ranges: Vec<_> = self.entries().values().map(|entry| entry.range).collect();
        // A reader may hold what it found longer than the map lives, so this is the ordinary way out.
        for range in ranges {
            self.remove(range);
        }
        self.grace.collect();
    }
}

impl<R: Send + Sync + 'static> fmt::Debug for RangeMap<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeMap")
            .field("ranges", &self.entries().len())
            .finish_non_exhaustive()
    }
}
