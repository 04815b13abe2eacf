// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: dereferences atomic pointers to leaves; the registry of readers keeps what they point to.
//!
//! Tracked pages: from a guest frame to its route and its order, in two dependent loads.
//!
//! A root of pointers to leaves, one leaf per 512 frames: 512 pointers to routes and 512 order bytes, 9 bytes a page, and a lone
//! page costs a leaf of 4.5 KiB. The root is zeroed memory, mapped where it is touched. Many pages share a route.

use std::fmt;
use std::sync::{Arc, PoisonError};

use crossbeam::utils::CachePadded;

use super::counted::Counted;
use super::grace::{Grace, ReadGuard};
use super::leaf::{LEAF_SHIFT, Leaf, Page};
use super::order;
use super::tally::{Tally, leaf_of};
use super::zeroed::{boxed, table};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::ids::Gfn;
use crate::range::GfnRange;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
use crate::sync::{Mutex, MutexGuard};

/// The most leaves a root may have: 2^40 frames (2^52 bytes of guest-physical address).
const MAX_LEAVES: u64 = 1 << (40 - 9);

/// Tracked pages. Readers look up under a [`ReadGuard`]; changes are made under a lock inside, and never wait for readers.
///
/// ```
/// use ioreq_core::{Gfn, GfnRange, dispatch::{Counted, Grace, PageMap}};
/// let grace = Grace::new();
/// let pages = PageMap::new(Gfn(0xfffff), grace.clone())?;
/// pages.insert(GfnRange::sized(0x100, 3)?, &Counted::new("ppgtt"))?;
///
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// let page = pages.find(Gfn(0x101), &guard).expect("tracked");
/// let order = page.lock().expect("not being unmarked");
/// assert_eq!(page.route(), Some(&"ppgtt"));
/// drop(order);
/// assert!(pages.find(Gfn(0x103), &guard).is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PageMap<R: Send + Sync + 'static> {
    /// Null, or from `Box::into_raw`; owned by the map while linked, then by the garbage of `grace`.
    root: Box<[AtomicPtr<Leaf<R>>]>,
    grace: Arc<Grace>,
    last: Gfn,
    /// Pages with a route; changed under the lock. On a line of its own, as what follows: whoever changes the map does not take away the
    /// line that readers look at.
    len: CachePadded<AtomicU64>,
    /// The most there were.
    peak: CachePadded<AtomicU64>,
    tally: CachePadded<Mutex<Tally>>,
}

/// What no page leads to any more, and readers may still look at.
struct Unlinked<R> {
    leaves: Vec<Box<Leaf<R>>>,
    routes: Vec<Arc<Counted<R>>>,
}

/// In models leaves are not freed but buried, so that whoever still follows a kept order finds out.
#[cfg(loom)]
impl<R> Drop for Unlinked<R> {
    fn drop(&mut self) {
        for leaf in self.leaves.drain(..) {
            Box::leak(leaf).all_orders().for_each(order::bury);
        }
    }
}

impl<R: Send + Sync + 'static> Unlinked<R> {
    fn new() -> Self {
        Unlinked {
            leaves: Vec::new(),
            routes: Vec::new(),
        }
    }

    /// Frees it all when no reader looks at it any more.
    fn retire(self, grace: &Grace) {
        if !self.leaves.is_empty() || !self.routes.is_empty() {
            grace.retire(move || drop(self));
        }
    }
}

impl<R: Send + Sync + 'static> PageMap<R> {
    /// An empty map for frames up to `last`, for readers of `grace`.
    ///
    /// # Errors
    /// `InvalidArgument` beyond frame 2^40 - 1, which no x86 processor can address.
    pub fn new(last: Gfn, grace: Arc<Grace>) -> Result<Self> {
        let leaves = (last.0 >> LEAF_SHIFT) + 1;
        let Some(count) = usize::try_from(leaves)
            .ok()
            .filter(|_| leaves <= MAX_LEAVES)
        else {
            let err = Error::new(Op::Configure, ErrorKind::InvalidArgument);
            return Err(err.about(format!(
                "a last frame of {last}: at most 2^40 frames can be tracked"
            )));
        };
        Ok(PageMap {
            root: table(count),
            grace,
            last,
            len: CachePadded::new(AtomicU64::new(0)),
            peak: CachePadded::new(AtomicU64::new(0)),
            tally: CachePadded::new(Mutex::new(Tally::new(count))),
        })
    }

    /// The page, if it is tracked.
    ///
    /// # Panics
    /// If the guard is of another registry than the map.
    #[inline(always)]
    #[must_use]
    pub fn find<'g>(&self, gfn: Gfn, guard: &'g ReadGuard<'_>) -> Option<Page<'g, R>> {
        guard.check(&self.grace);
        let leaf = self.root.get(usize::try_from(leaf_of(gfn.0)).ok()?)?;
        // Acquire: pairs with the Release store that linked the leaf.
        let leaf: *mut Leaf<R> = leaf.load(Ordering::Acquire);
        // SAFETY: a leaf in the root is freed only by garbage retired after it was unlinked; `guard` is of the same registry
        // (checked above) and, borrowed for `'g`, cannot quiesce before the reference ends.
        let leaf: &'g Leaf<R> = unsafe { leaf.as_ref() }?;
        let page = leaf.page(gfn, guard.kept());
        page.route().is_some().then_some(page)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What tells this map from others: where its root is.
    fn identity(&self) -> usize {
        self.root.as_ptr().addr()
    }

    /// The leaf with this number, for whoever changes the map: its lock keeps the leaf linked.
    fn leaf(&self, number: u64, _locked: &Tally) -> Option<&Leaf<R>> {
        let leaf = self.root.get(usize::try_from(number).ok()?)?;
        // Relaxed: leaves are linked and unlinked under the lock that we hold.
        let leaf = leaf.load(Ordering::Relaxed);
        // SAFETY: leaves are unlinked and retired under the lock, which the caller holds while it uses the reference.
        unsafe { leaf.as_ref() }
    }

    /// The same, made if it is not there.
    fn make_leaf(&self, number: u64, locked: &Tally) -> Option<&Leaf<R>> {
        if let Some(leaf) = self.leaf(number, locked) {
            return Some(leaf);
        }
        let entry = self.root.get(usize::try_from(number).ok()?)?;
        // Release: pairs with the Acquire in `find`; the leaf is all zeroes before it is seen.
        entry.store(Box::into_raw(boxed::<Leaf<R>>()), Ordering::Release);
        self.leaf(number, locked)
    }

    /// The first of `pages` that is tracked, or with `tracked` false, the first that is not.
    fn first_that_is(&self, tracked: bool, pages: GfnRange, tally: &Tally) -> Option<Gfn> {
        let has_it = |part: GfnRange| match self.leaf(leaf_of(part.first()), tally) {
            _ if tally.is_all(part, tracked) => Some(Gfn(part.first())),
            _ if tally.is_all(part, !tracked) => None,
            None => (!tracked).then_some(Gfn(part.first())),
            Some(leaf) => {
                // Relaxed: routes change under the lock that we hold.
                let mut entries = leaf.routes(part).iter().zip(part.iter());
                entries
                    .find(|(entry, _)| entry.load(Ordering::Relaxed).is_null() != tracked)
                    .map(|(_, gfn)| gfn)
            }
        };
        Tally::parts(pages).find_map(has_it)
    }

    fn check_route(&self, route: &Arc<Counted<R>>, pages: GfnRange) -> Result<()> {
        if route.belong(self.identity()) {
            return Ok(());
        }
        let err = Error::new(Op::Route, ErrorKind::InvalidArgument);
        Err(err.about(format!(
            "{pages}: their route belongs to another map; make one for each"
        )))
    }

    /// Leads `pages` to `route`. All or nothing.
    ///
    /// # Errors
    /// `RouteConflict` with the first of them that is tracked already, `InvalidArgument` beyond the map's last frame or if
    /// the route belongs to another map.
    pub fn insert(&self, pages: GfnRange, route: &Arc<Counted<R>>) -> Result<()> {
        if pages.last() > self.last.0 {
            let err = Error::new(Op::Route, ErrorKind::InvalidArgument).about(format!(
                "{pages}: the last frame that can be tracked is {} (see the builder's last_gfn)",
                self.last
            ));
            return Err(err);
        }
        self.check_route(route, pages)?;
        let mut tally = self.tally();
        if let Some(gfn) = self.first_that_is(true, pages, &tally) {
            let err = Error::new(Op::Route, ErrorKind::RouteConflict);
            return Err(err.about(GfnRange::from(gfn)));
        }
        let pointer = route.hold(pages.pages());
        for part in Tally::parts(pages) {
            let Some(leaf) = self.make_leaf(leaf_of(part.first()), &tally) else {
                continue;
            };
            for entry in leaf.routes(part) {
                // Release: pairs with the Acquire in `Page::route`.
                entry.store(pointer, Ordering::Release);
            }
            tally.add(part);
        }
        // Relaxed: under the lock; readers of `len` want a number, not an order.
        let len = self.len.load(Ordering::Relaxed) + pages.pages();
        self.len.store(len, Ordering::Relaxed);
        if len > self.peak.load(Ordering::Relaxed) {
            self.peak.store(len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Leads `pages`, all of them tracked, elsewhere; their orders stay as they are. All or nothing.
    ///
    /// # Errors
    /// `NoSuchRoute` with the first of them that is not tracked, `InvalidArgument` if the route belongs to another map.
    pub fn replace(&self, pages: GfnRange, route: &Arc<Counted<R>>) -> Result<()> {
        self.check_route(route, pages)?;
        let tally = self.tally();
        if let Some(gfn) = self.first_that_is(false, pages, &tally) {
            let err = Error::new(Op::Route, ErrorKind::NoSuchRoute);
            return Err(err.about(GfnRange::from(gfn)));
        }
        let mut unlinked = Unlinked::new();
        let pointer = route.hold(pages.pages());
        for part in Tally::parts(pages) {
            if let Some(leaf) = self.leaf(leaf_of(part.first()), &tally) {
                Self::overwrite(leaf, part, pointer, &mut unlinked);
            }
        }
        unlinked.retire(&self.grace);
        Ok(())
    }

    /// Writes `pointer` into the entries of `part` that are not null, and returns their number. What they led to is let go, run
    /// by run: neighbours share routes.
    fn overwrite(
        leaf: &Leaf<R>,
        part: GfnRange,
        pointer: *mut Counted<R>,
        unlinked: &mut Unlinked<R>,
    ) -> u64 {
        let (mut run, mut pages, mut all) = (std::ptr::null_mut(), 0, 0);
        let mut let_go = |run: *mut Counted<R>, pages: u64| {
            if !run.is_null() {
                // SAFETY: it was in that many entries, under the map's lock, until we overwrote them.
                unlinked
                    .routes
                    .extend(unsafe { Counted::let_go(run, pages) });
            }
        };
        for entry in leaf.routes(part) {
            // Relaxed: routes change under the lock that we hold.
            let old = entry.load(Ordering::Relaxed);
            if old.is_null() {
                continue;
            }
            // Release: pairs with the Acquire in `Page::route`.
            entry.store(pointer, Ordering::Release);
            if old != run {
                let_go(run, pages);
                (run, pages) = (old, 0);
            }
            pages += 1;
            all += 1;
        }
        let_go(run, pages);
        all
    }

    /// Removes those of `pages` that are tracked, and returns their number. No new look-up finds them; orders that are held
    /// stay held until their holders are done, parking ends.
    pub fn remove(&self, pages: GfnRange) -> u64 {
        let mut removed = 0;
        let mut unlinked = Unlinked::new();
        let mut tally = self.tally();
        for part in tally.used_parts(pages) {
            if tally.is_all(part, false) {
                continue;
            }
            let Some(leaf) = self.leaf(leaf_of(part.first()), &tally) else {
                continue;
            };
            let here = Self::overwrite(leaf, part, std::ptr::null_mut(), &mut unlinked);
            // The routes go before parking ends, so that a request that was parked finds none.
            let parked = leaf.orders(part).iter();
            parked
                .filter(|byte| order::is_parked(byte))
                .for_each(order::unpark);
            tally.subtract(part, here);
            removed += here;
            self.unlink_if_empty(leaf_of(part.first()), &mut tally, &mut unlinked);
        }
        for number in tally.take_lingering() {
            self.unlink_if_empty(number, &mut tally, &mut unlinked);
        }
        // Relaxed: as in `insert`.
        let len = self.len.load(Ordering::Relaxed);
        self.len.store(len - removed, Ordering::Relaxed);
        unlinked.retire(&self.grace);
        removed
    }

    /// Removes everything.
    pub fn clear(&self) {
        if let Ok(all) = GfnRange::new(0, self.last.0) {
            self.remove(all);
        }
    }

    /// Unlinks a leaf that leads nowhere, unless an order in it is held: a new leaf would have a second order for the page.
    ///
    /// A reader may have found the page before its route went, and take its order after we looked. It looks at the route only
    /// then: of its taking and our fence one is first in the order of SeqCst operations. Either we see the order taken, or it
    /// sees the route gone, and serves nothing.
    fn unlink_if_empty(&self, number: u64, tally: &mut Tally, unlinked: &mut Unlinked<R>) {
        let Some(leaf) = self.leaf(number, tally) else {
            return;
        };
        if !tally.is_empty(number) {
            return;
        }
        fence(Ordering::SeqCst);
        if !leaf.is_free() {
            // It goes with what is removed next, or with the map. Whoever serves a page of it lets go by itself.
            leaf.call_in();
            tally.linger(number);
            return;
        }
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        let Some(entry) = self.root.get(index) else {
            return;
        };
        // Relaxed: under the lock. A null leads nowhere, so there is nothing for the store to order.
        let leaf = entry.load(Ordering::Relaxed);
        entry.store(std::ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: it came from `Box::into_raw` in `make_leaf`, and only the holder of the lock unlinks, once.
        unlinked.leaves.push(unsafe { Box::from_raw(leaf) });
    }

    /// Leaves the page's writes unanswered from now on; false while one is being served, or if the page is not tracked.
    pub fn park(&self, gfn: Gfn) -> bool {
        let tally = self.tally();
        // Relaxed: routes change under the lock that we hold.
        let is_led = |leaf: &Leaf<R>| !leaf.route(gfn).load(Ordering::Relaxed).is_null();
        self.leaf(leaf_of(gfn.0), &tally)
            .is_some_and(|leaf| is_led(leaf) && order::park(leaf.order(gfn)))
    }

    /// Ends parking.
    pub fn unpark(&self, gfn: Gfn) {
        let tally = self.tally();
        if let Some(leaf) = self.leaf(leaf_of(gfn.0), &tally) {
            order::unpark(leaf.order(gfn));
        }
    }

    /// Whether the page is parked; for whoever holds a parked request, and so takes no lock.
    #[must_use]
    pub fn is_parked(&self, gfn: Gfn, guard: &ReadGuard<'_>) -> bool {
        self.find(gfn, guard)
            .is_some_and(|page| order::is_parked(page.order()))
    }

    /// The page's route, kept.
    #[must_use]
    pub fn route_of(&self, gfn: Gfn) -> Option<Arc<Counted<R>>> {
        let tally = self.tally();
        let leaf = self.leaf(leaf_of(gfn.0), &tally)?;
        // Relaxed: routes change under the lock that we hold.
        let route = leaf.route(gfn).load(Ordering::Relaxed);
        // SAFETY: it is in an entry, under the map's lock.
        (!route.is_null()).then(|| unsafe { Counted::share(route) })
    }

    /// Number of tracked pages.
    #[must_use]
    pub fn len(&self) -> u64 {
        // Relaxed: a number, not an order.
        self.len.load(Ordering::Relaxed)
    }

    /// The most pages that were tracked at a time.
    #[must_use]
    pub fn peak(&self) -> u64 {
        // Relaxed: a number, not an order.
        self.peak.load(Ordering::Relaxed)
    }

    /// Whether no page is tracked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tracked pages, as ranges in order.
    #[must_use]
    pub fn ranges(&self) -> Vec<GfnRange> {
        GfnRange::new(0, self.last.0).map_or_else(|_| Vec::new(), |all| self.ranges_in(all))
    }

    /// Those of `pages` that are tracked, as ranges in order.
    #[must_use]
    pub fn ranges_in(&self, pages: GfnRange) -> Vec<GfnRange> {
        let tally = self.tally();
        let mut found: Vec<GfnRange> = Vec::new();
        let mut add = |more: GfnRange| match found.last_mut() {
            Some(run) if run.last() + 1 == more.first() => {
                if let Ok(longer) = GfnRange::new(run.first(), more.last()) {
                    *run = longer;
                }
            }
            _ => found.push(more),
        };
        for part in tally.used_parts(pages) {
            if tally.is_all(part, false) {
                continue;
            }
            if tally.is_all(part, true) {
                add(part);
                continue;
            }
            let Some(leaf) = self.leaf(leaf_of(part.first()), &tally) else {
                continue;
            };
            for (gfn, entry) in part.iter().zip(leaf.routes(part)) {
                // Relaxed: routes change under the lock that we hold.
                if !entry.load(Ordering::Relaxed).is_null() {
                    add(gfn.into());
                }
            }
        }
        found
    }

    /// Bytes that the tracked pages take: leaves. Routes and the root are not counted.
    #[must_use]
    pub fn leaf_bytes(&self) -> usize {
        let tally = self.tally();
        let leaves = tally
            .used()
            .filter(|number| self.leaf(*number, &tally).is_some());
        leaves.count() * size_of::<Leaf<R>>()
    }
}

impl<R: Send + Sync + 'static> Drop for PageMap<R> {
    fn drop(&mut self) {
        self.clear();
        let mut unlinked = Unlinked::new();
        for number in self.tally().used() {
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            let leaf = self
                .root
                .get(index)
                .map(|leaf| leaf.load(Ordering::Relaxed));
            // Relaxed: `&mut self`, nobody else is here. What is left are leaves whose orders were held when they emptied; whoever
            // keeps one was told then, and so lets go before it announces that it has seen this (see `kept`).
            if let Some(leaf) = leaf.filter(|leaf| !leaf.is_null()) {
                // SAFETY: from `Box::into_raw` in `make_leaf`; the map is its only owner.
                unlinked.leaves.push(unsafe { Box::from_raw(leaf) });
            }
        }
        unlinked.retire(&self.grace);
        self.grace.collect();
    }
}

impl<R: Send + Sync + 'static> fmt::Debug for PageMap<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageMap")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
