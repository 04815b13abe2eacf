// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: dereferences atomic pointers to leaves; the registry of readers keeps what they point to.
//!
//! Tracked pages: from a guest frame to its route and its order, in two dependent loads.
//!
//! A root of pointers to leaves, one leaf per 512 frames: 512 words and 512 order bytes, 9 bytes a page, and a lone page costs a
//! leaf of 4.5 KiB. The root is zeroed memory, mapped where it is touched. Many pages share a route; pages with a handler each
//! lead to that, and share what else there is (see [`kind`](super::kind)).

use std::fmt;
use std::sync::{Arc, PoisonError};

use crossbeam::utils::CachePadded;

use super::counted::{Counted, Node};
use super::edit::Edit;
use super::grace::{Grace, ReadGuard};
use super::held::Held;
use super::kind::{Kind, Kinds, Way};
use super::leaf::{Entry, LEAF_SHIFT, Leaf, Page};
use super::order;
use super::tally::{Part, Parts, Tally, leaf_of};
use super::zeroed::{boxed, table};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::handler::{HandlerType, PageHandler};
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
    root: Box<[AtomicPtr<Leaf>]>,
    /// Of pages with a handler each. The map's share is retired with it.
    pub(super) kinds: Arc<Kinds<R>>,
    grace: Arc<Grace>,
    pub(super) last: Gfn,
    /// Pages with a route; changed under the lock. On a line of its own, as what follows: whoever changes the map does not take away the
    /// line that readers look at.
    len: CachePadded<AtomicU64>,
    /// The most there were.
    peak: CachePadded<AtomicU64>,
    tally: CachePadded<Mutex<Tally<R>>>,
}

/// What no page leads to any more, and readers may still look at.
struct Unlinked<R> {
    leaves: Vec<Box<Leaf>>,
    routes: Vec<Arc<Node<R>>>,
    handlers: Vec<Arc<dyn PageHandler>>,
}

impl<R: Send + Sync + 'static> Unlinked<R> {
    fn new() -> Self {
        Unlinked {
            leaves: Vec::new(),
            routes: Vec::new(),
            handlers: Vec::new(),
        }
    }

    /// Frees it all when no reader looks at it any more.
    #[inline]
    fn retire(self, grace: &Grace) {
        let things = self.leaves.capacity() + self.routes.capacity() + self.handlers.capacity();
        if things > 0 {
            grace.retire(move || drop(self));
        } else {
            // Nothing to drop, which a compiler does not see.
            std::mem::forget(self);
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
            kinds: Kinds::new(),
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
        let leaf: *mut Leaf = leaf.load(Ordering::Acquire);
        // SAFETY: a leaf in the root is freed only by garbage retired after it was unlinked; `guard` is of the same registry
        // (checked above) and, borrowed for `'g`, cannot quiesce before the reference ends.
        let leaf: &'g Leaf = unsafe { leaf.as_ref() }?;
        // SAFETY: likewise; the map's share is retired at its end.
        let kinds: &'g Kinds<R> = unsafe { &*Arc::as_ptr(&self.kinds) };
        let page = leaf.page(gfn, kinds);
        page.is_linked().then_some(page)
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally<R>> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What tells this map from others: where its root is.
    #[inline]
    pub(super) fn identity(&self) -> usize {
        self.root.as_ptr().addr()
    }

    /// The leaf with this number, for whoever changes the map: its lock keeps the leaf linked.
    #[inline]
    pub(super) fn leaf(&self, number: u64, _locked: &Tally<R>) -> Option<&Leaf> {
        let leaf = self.root.get(usize::try_from(number).ok()?)?;
        // Relaxed: leaves are linked and unlinked under the lock that we hold.
        let leaf = leaf.load(Ordering::Relaxed);
        // SAFETY: leaves are unlinked and retired under the lock, which the caller holds while it uses the reference.
        unsafe { leaf.as_ref() }
    }

    /// The same, made if it is not there.
    fn make_leaf(&self, number: u64, locked: &Tally<R>) -> Option<&Leaf> {
        if let Some(leaf) = self.leaf(number, locked) {
            return Some(leaf);
        }
        let entry = self.root.get(usize::try_from(number).ok()?)?;
        // Release: pairs with the Acquire in `find`; the leaf is all zeroes before it is seen.
        entry.store(Box::into_raw(boxed::<Leaf>()), Ordering::Release);
        self.leaf(number, locked)
    }

    /// The first of `pages` that is tracked, or with `tracked` false, the first that is not.
    fn first_that_is(&self, tracked: bool, pages: GfnRange, tally: &Tally<R>) -> Option<Gfn> {
        let has_it = |part: Part| match self.leaf(part.leaf(), tally) {
            _ if tally.is_all(part, tracked) => Some(Gfn(part.first())),
            _ if tally.is_all(part, !tracked) => None,
            None => (!tracked).then_some(Gfn(part.first())),
            Some(leaf) => {
                // Relaxed: routes change under the lock that we hold.
                let mut entries = leaf.routes(part).iter().zip(part.frames());
                entries
                    .find(|(entry, _)| entry.load(Ordering::Relaxed).is_null() != tracked)
                    .map(|(_, gfn)| gfn)
            }
        };
        Parts::of(pages).find_map(has_it)
    }

    fn check_route(&self, route: &Counted<R>, pages: GfnRange) -> Result<()> {
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
    pub fn insert(&self, pages: GfnRange, route: &Counted<R>) -> Result<()> {
        self.edit().insert(pages, route)
    }

    /// Many changes under one lock.
    #[must_use]
    pub fn edit(&self) -> Edit<'_, R> {
        Edit::new(self)
    }

    #[inline(never)]
    pub(super) fn insert_all(
        &self,
        pages: GfnRange,
        route: &Counted<R>,
        tally: &mut Tally<R>,
    ) -> Result<()> {
        if pages.last() > self.last.0 {
            let err = Error::new(Op::Route, ErrorKind::InvalidArgument).about(format!(
                "{pages}: the last frame that can be tracked is {} (see the builder's last_gfn)",
                self.last
            ));
            return Err(err);
        }
        self.check_route(route, pages)?;
        if let Some(gfn) = self.first_that_is(true, pages, tally) {
            let err = Error::new(Op::Route, ErrorKind::RouteConflict);
            return Err(err.about(GfnRange::from(gfn)));
        }
        tally.held.hold(route, pages.pages());
        for part in Parts::of(pages) {
            let Some(leaf) = self.make_leaf(part.leaf(), tally) else {
                continue;
            };
            for entry in leaf.routes(part) {
                // Release: pairs with the Acquire in `Page::word`.
                entry.store(route.word(), Ordering::Release);
            }
            tally.add(part);
        }
        self.count_more(pages.pages());
        Ok(())
    }

    /// So many pages more are tracked. Under the lock.
    #[inline]
    pub(super) fn count_more(&self, pages: u64) {
        // Relaxed, here and below: under the lock; readers of `len` want a number, not an order.
        let len = self.len.load(Ordering::Relaxed) + pages;
        self.len.store(len, Ordering::Relaxed);
        if len > self.peak.load(Ordering::Relaxed) {
            self.peak.store(len, Ordering::Relaxed);
        }
    }

    /// So many pages fewer. Under the lock.
    #[inline]
    pub(super) fn count_less(&self, pages: u64) {
        let len = self.len.load(Ordering::Relaxed);
        self.len.store(len - pages, Ordering::Relaxed);
    }

    /// Leads `pages`, all of them tracked, elsewhere; their orders stay as they are. All or nothing.
    ///
    /// # Errors
    /// `NoSuchRoute` with the first of them that is not tracked, `InvalidArgument` if the route belongs to another map.
    pub fn replace(&self, pages: GfnRange, route: &Counted<R>) -> Result<()> {
        self.check_route(route, pages)?;
        let mut tally = self.tally();
        let tally = &mut *tally;
        if let Some(gfn) = self.first_that_is(false, pages, tally) {
            let err = Error::new(Op::Route, ErrorKind::NoSuchRoute);
            return Err(err.about(GfnRange::from(gfn)));
        }
        let mut unlinked = Unlinked::new();
        tally.held.hold(route, pages.pages());
        for part in Parts::of(pages) {
            if let Some(leaf) = self.leaf(part.leaf(), tally) {
                let held = &mut tally.held;
                self.overwrite(leaf.routes(part), || route.word(), held, &mut unlinked);
            }
        }
        unlinked.retire(&self.grace);
        Ok(())
    }

    /// Leads the page elsewhere if it leads where `old` says; false, and nothing is changed, if it does not. Its order stays as it is.
    ///
    /// # Errors
    /// `InvalidArgument` if the route belongs to another map.
    pub fn replace_if(&self, gfn: Gfn, old: &Counted<R>, route: &Counted<R>) -> Result<bool> {
        self.check_route(route, gfn.into())?;
        let mut tally = self.tally();
        let Some(leaf) = self.leaf(leaf_of(gfn.0), &tally) else {
            return Ok(false);
        };
        if !self.lead_of(leaf, gfn).is_some_and(|now| now.is(old)) {
            return Ok(false);
        }
        let mut unlinked = Unlinked::new();
        let held = &mut tally.held;
        held.hold(route, 1);
        self.overwrite(
            leaf.routes(gfn.into()),
            || route.word(),
            held,
            &mut unlinked,
        );
        unlinked.retire(&self.grace);
        Ok(true)
    }

    /// Writes words of `word` into those of `entries` that are not null, and returns their number. What they led to is let go, run
    /// by run: neighbours share routes.
    fn overwrite(
        &self,
        entries: &[Entry],
        mut word: impl FnMut() -> *mut (),
        held: &mut Held<R>,
        unlinked: &mut Unlinked<R>,
    ) -> u64 {
        let (mut run, mut pages, mut all) = (std::ptr::null(), 0, 0);
        let Unlinked {
            routes, handlers, ..
        } = unlinked;
        let mut let_go = |run: *const Node<R>, pages: u64| {
            if run.is_null() {
                return;
            }
            // SAFETY: it was in that many entries, under the map's lock, until we overwrote them.
            if let Some(node) = unsafe { held.let_go(run, pages) } {
                routes.push(node);
            }
        };
        for entry in entries {
            // Relaxed: routes change under the lock that we hold.
            let Some(old) = self.kinds.way(entry.load(Ordering::Relaxed)) else {
                continue;
            };
            // Release: pairs with the Acquire in `Page::word`.
            entry.store(word(), Ordering::Release);
            if let Some(handler) = Self::whole(&old) {
                // SAFETY: from `Arc::into_raw` in `Counted::word`, with the strong count of the entry that we overwrote.
                handlers.push(unsafe { Arc::from_raw(handler) });
            }
            if old.node != run {
                let_go(run, pages);
                (run, pages) = (old.node, 0);
            }
            pages += 1;
            all += 1;
        }
        let_go(run, pages);
        all
    }

    /// The page's own handler, if it has one. For ways that an entry led to when the caller took the map's lock.
    fn whole(way: &Way<R>) -> Option<*const dyn PageHandler> {
        let handler = way.own?;
        // SAFETY: the map's strong count keeps it while it is in an entry, and that is let go later.
        let node = unsafe { &*way.node };
        node.kind().map(|kind| kind.of().whole(handler))
    }

    /// Removes those of `pages` that are tracked, and returns their number. No new look-up finds them; orders that are held
    /// stay held until their holders are done, parking ends.
    pub fn remove(&self, pages: GfnRange) -> u64 {
        self.edit().remove(pages)
    }

    #[inline(never)]
    pub(super) fn remove_all(&self, pages: GfnRange, tally: &mut Tally<R>) -> u64 {
        let mut removed = 0;
        let mut unlinked = Unlinked::new();
        for part in tally.used_parts(pages) {
            if tally.is_all(part, false) {
                continue;
            }
            let Some(leaf) = self.leaf(part.leaf(), tally) else {
                continue;
            };
            let (entries, held) = (leaf.routes(part), &mut tally.held);
            let here = self.overwrite(entries, std::ptr::null_mut, held, &mut unlinked);
            if tally.has_parked() {
                // The routes go before parking ends, so that a request that was parked finds none.
                let parked = leaf.orders(part).iter();
                let parked = parked.filter(|byte| order::is_parked(byte) && order::unpark(byte));
                tally.unpark(parked.count() as u64);
            }
            tally.subtract(part, here);
            removed += here;
            if tally.is_empty(part.leaf()) {
                self.unlink_if_free(part.leaf(), tally, &mut unlinked);
            }
        }
        if tally.has_lingering() {
            for number in tally.take_lingering() {
                if tally.is_empty(number) {
                    self.unlink_if_free(number, tally, &mut unlinked);
                }
            }
        }
        self.count_less(removed);
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
    #[cold]
    fn unlink_if_free(&self, number: u64, tally: &mut Tally<R>, unlinked: &mut Unlinked<R>) {
        let Some(leaf) = self.leaf(number, tally) else {
            return;
        };
        fence(Ordering::SeqCst);
        if !leaf.is_free() {
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
        let mut tally = self.tally();
        let leaf = self.leaf(leaf_of(gfn.0), &tally);
        let page = leaf.map(|leaf| leaf.page(gfn, &self.kinds));
        let parked = page.is_some_and(|page| page.is_linked() && order::park(page.order()));
        if parked {
            tally.park();
        }
        parked
    }

    /// Ends parking.
    pub fn unpark(&self, gfn: Gfn) {
        let mut tally = self.tally();
        let leaf = self.leaf(leaf_of(gfn.0), &tally);
        let page = leaf.map(|leaf| leaf.page(gfn, &self.kinds));
        if page.is_some_and(|page| order::unpark(page.order())) {
            tally.unpark(1);
        }
    }

    /// Whether the page is parked; for whoever holds a parked request, and so takes no lock.
    #[must_use]
    pub fn is_parked(&self, gfn: Gfn, guard: &ReadGuard<'_>) -> bool {
        self.find(gfn, guard)
            .is_some_and(|page| order::is_parked(page.order()))
    }

    /// Where the page leads, kept.
    #[must_use]
    pub fn route_of(&self, gfn: Gfn) -> Option<Counted<R>> {
        let tally = self.tally();
        self.lead_of(self.leaf(leaf_of(gfn.0), &tally)?, gfn)
    }

    /// The same, for who holds the lock.
    fn lead_of(&self, leaf: &Leaf, gfn: Gfn) -> Option<Counted<R>> {
        let way = self.kinds.way(leaf.page(gfn, &self.kinds).word())?;
        let handler = Self::whole(&way);
        // SAFETY: an entry leads there, under the map's lock.
        Some(unsafe { Counted::share(way.node, handler) })
    }

    /// A kind of pages with a handler each, of the same type as `like`, that have `route` in common. `None` if the map has a
    /// thousand kinds.
    #[must_use]
    pub fn kind(&self, like: &dyn PageHandler, route: R) -> Option<Kind<R>> {
        Kind::new(&self.kinds, self.identity(), HandlerType::of(like), route)
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
                part.range().into_iter().for_each(&mut add);
                continue;
            }
            let Some(leaf) = self.leaf(part.leaf(), &tally) else {
                continue;
            };
            for (gfn, entry) in part.frames().zip(leaf.routes(part)) {
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
        leaves.count() * size_of::<Leaf>()
    }
}

impl<R: Send + Sync + 'static> Drop for PageMap<R> {
    fn drop(&mut self) {
        self.clear();
        let mut unlinked = Unlinked::<R>::new();
        for number in self.tally().used() {
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            let leaf = self
                .root
                .get(index)
                .map(|leaf| leaf.load(Ordering::Relaxed));
            // Relaxed: `&mut self`, nobody else is here. What is left are leaves whose orders were held when they emptied.
            if let Some(leaf) = leaf.filter(|leaf| !leaf.is_null()) {
                // SAFETY: from `Box::into_raw` in `make_leaf`; the map is its only owner.
                unlinked.leaves.push(unsafe { Box::from_raw(leaf) });
            }
        }
        let kinds = Arc::clone(&self.kinds);
        self.grace.retire(move || drop((unlinked, kinds)));
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
