// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: counts a page of a route that its entry leads to.
//!
//! One page comes or goes, and nothing begins or ends with it: the short way of [`PageMap::insert`] and [`PageMap::remove`].
//!
//! Of a million pages, a page's entry is in no cache. Until it comes a processor can go on, to the next pages' entries, which then
//! come at the same time, as long as its instructions fit (a few hundred), and need nothing that the entry says. Therefore this
//! is short and looks at nothing behind the entry (see also [`held`](super::held)).

use super::kind::Way;
use super::page_map::PageMap;
use super::tally::leaf_of;
use crate::dispatch::Counted;
use crate::ids::Gfn;
use crate::sync::atomic::Ordering;

impl<R: Send + Sync + 'static> PageMap<R> {
    /// Leads the page to `route`, if that needs no leaf and makes no error; false, and nothing is changed, if it does.
    #[inline(never)]
    pub(super) fn insert_single(&self, gfn: Gfn, route: &Counted<R>) -> bool {
        if gfn > self.last || route.handler().is_some() || !route.belongs(self.identity()) {
            return false;
        }
        let mut tally = self.tally();
        let tally = &mut *tally;
        let number = leaf_of(gfn.0);
        let Some(leaf) = self.leaf(number, tally) else {
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
        self.count_more(1);
        true
    }

    /// Removes the page, if it is tracked, shares its route with others, and is not the last one of that or of its leaf, and if
    /// nothing else is to be done on the occasion; false, and nothing is changed, if it is not so.
    #[inline(never)]
    pub(super) fn remove_single(&self, gfn: Gfn) -> bool {
        let mut tally = self.tally();
        let tally = &mut *tally;
        let number = leaf_of(gfn.0);
        let Some(leaf) = self.leaf(number, tally) else {
            return false;
        };
        if tally.has_parked() || tally.has_lingering() || !tally.has_several(number) {
            return false;
        }
        let entry = leaf.entry(gfn);
        // Relaxed: as above.
        let way = self.kinds.way(entry.load(Ordering::Relaxed));
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
        self.count_less(1);
        true
    }
}
