// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: counts a page of a route that its entry leads to.
//!
//! Changes of tracked pages under one lock, and the short way of a single page that comes or goes while nothing else begins or ends.
//!
//! Of a million pages, a page's entry is in no cache. Until it comes a processor can go on, to the next pages' entries, which then
//! come at the same time, as long as its instructions fit (some hundreds, half as many where two threads share a core), and
//! need nothing that the entry says. Therefore the short way is short, looks at nothing behind the entry (see also
//! [`held`](super::held)), and many changes take the lock once.

use std::fmt;

use super::counted::Counted;
use super::kind::Way;
use super::page_map::PageMap;
use super::tally::{Tally, leaf_of};
use crate::error::Result;
use crate::ids::Gfn;
use crate::range::GfnRange;
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;

/// Changes of a [`PageMap`], which nobody else changes meanwhile: for many of them at once. Readers see each as it is made.
///
/// Whoever has one and changes the map without it, or asks it for more than [`find`](PageMap::find) and
/// [`len`](PageMap::len) do, waits for ever.
///
/// ```
/// use ioreq_core::dispatch::{Counted, Grace, PageMap};
/// use ioreq_core::{Gfn, GfnRange};
///
/// let grace = Grace::new();
/// let map = PageMap::new(Gfn(0xffff), grace.clone())?;
/// let route = Counted::new("ppgtt");
/// let mut edit = map.edit();
/// for gfn in [0x10, 0x2000, 0x30] {
///     edit.insert(Gfn(gfn).into(), &route)?;
/// }
/// assert_eq!(edit.remove(GfnRange::sized(0x2000, 8)?), 1);
/// assert_eq!(map.len(), 2); // seen at once
/// drop(edit);
/// assert_eq!(map.ranges(), [Gfn(0x10).into(), Gfn(0x30).into()]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Edit<'m, R: Send + Sync + 'static> {
    map: &'m PageMap<R>,
    tally: MutexGuard<'m, Tally<R>>,
}

impl<'m, R: Send + Sync + 'static> Edit<'m, R> {
    pub(super) fn new(map: &'m PageMap<R>) -> Self {
        Edit {
            map,
            tally: map.tally(),
        }
    }

    /// As [`PageMap::insert`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn insert(&mut self, pages: GfnRange, route: &Counted<R>) -> Result<()> {
        if pages.pages() == 1 && self.insert_single(Gfn(pages.first()), route) {
            return Ok(());
        }
        self.map.insert_all(pages, route, &mut self.tally)
    }

    /// As [`PageMap::remove`].
    #[inline]
    pub fn remove(&mut self, pages: GfnRange) -> u64 {
        if pages.pages() == 1 && self.remove_single(Gfn(pages.first())) {
            return 1;
        }
        self.map.remove_all(pages, &mut self.tally)
    }

    /// Leads the page to `route`, if that needs no leaf, makes no error, and the page shares the route; false, and nothing is changed, if not.
    #[inline]
    fn insert_single(&mut self, gfn: Gfn, route: &Counted<R>) -> bool {
        let (map, tally) = (self.map, &mut *self.tally);
        if gfn > map.last || route.handler().is_some() || !route.belongs(map.identity()) {
            return false;
        }
        let number = leaf_of(gfn.0);
        let Some(leaf) = map.leaf(number, tally) else {
            return false;
        };
        let entry = leaf.entry(gfn);
        // Relaxed: routes change under the lock that we hold.
        if !entry.load(Ordering::Relaxed).is_null() || !tally.add_single(number) {
            return false;
        }
        tally.held.hold(route, 1);
        // Release: pairs with the Acquire in `Page::word`.
        entry.store(route.word(), Ordering::Release);
        map.count_more(1);
        true
    }

    /// Removes the page, if it is tracked, shares its route with others, and is not the last one of that or of its leaf, and if
    /// nothing else is to be done on the occasion; false, and nothing is changed, if not.
    #[inline]
    fn remove_single(&mut self, gfn: Gfn) -> bool {
        let (map, tally) = (self.map, &mut *self.tally);
        let number = leaf_of(gfn.0);
        let Some(leaf) = map.leaf(number, tally) else {
            return false;
        };
        if tally.has_parked() || tally.has_lingering() || !tally.has_several(number) {
            return false;
        }
        let entry = leaf.entry(gfn);
        // Relaxed: as above.
        let way = map.kinds.way(entry.load(Ordering::Relaxed));
        let Some(Way { node, own: None }) = way else {
            return false;
        };
        // SAFETY: the entry leads there, and is overwritten below.
        if !unsafe { tally.held.let_one_of_many_go(node) } {
            return false;
        }
        // Release: as any store to an entry. A null leads nowhere.
        entry.store(std::ptr::null_mut(), Ordering::Release);
        tally.subtract_single(number);
        map.count_less(1);
        true
    }
}

impl<R: Send + Sync + 'static> fmt::Debug for Edit<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edit").finish_non_exhaustive()
    }
}
