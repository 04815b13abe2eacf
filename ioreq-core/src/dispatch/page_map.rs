// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: dereferences atomic pointers to leaves and routes; the registry of readers keeps what they point to.
//!
//! Tracked pages: from a guest frame to its route and its order, in two dependent loads.
//!
//! A root of pointers to leaves, one leaf per 512 frames: 512 pointers to routes and 512 order bytes, 9 bytes a page, and a lone
//! page costs a leaf of 4.5 KiB. The root is zeroed memory, mapped where it is touched. Many pages share a route: a route
//! counts its pages, so that adding a million pages counts once.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, PoisonError};

use super::grace::{Grace, ReadGuard};
use super::order::{self, Locked, Parked};
use super::zeroed::{Zero, boxed, table};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::ids::Gfn;
use crate::range::GfnRange;
use crate::sync::atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// log2 of the frames of a leaf.
const LEAF_SHIFT: u32 = if cfg!(loom) { 1 } else { 9 };
/// Frames of a leaf.
const LEAF: usize = 1 << LEAF_SHIFT;
/// The most leaves a root may have: 2^40 frames (2^52 bytes of guest-physical address).
const MAX_LEAVES: u64 = 1 << (40 - 9);

/// A route with the number of pages that lead to it. Belongs to one [`PageMap`].
///
/// ```
/// use ioreq_core::dispatch::Counted;
/// let route = Counted::new("ppgtt");
/// assert_eq!(route.len(), 5); // derefs to the route
/// ```
#[derive(Debug)]
pub struct Counted<R> {
    route: R,
    /// Pages that point here; changed under the map's lock. While it is not 0, the map owns one strong count.
    pages: AtomicU64,
}

impl<R> Counted<R> {
    /// A route to which no page leads yet.
    pub fn new(route: R) -> Arc<Self> {
        Arc::new(Counted {
            route,
            pages: AtomicU64::new(0),
        })
    }
}

impl<R> Deref for Counted<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.route
    }
}

/// [`LEAF`] frames.
pub(super) struct Leaf<R> {
    routes: [AtomicPtr<Counted<R>>; LEAF],
    order: [AtomicU8; LEAF],
}

// SAFETY: two arrays of types that are valid when zeroed.
unsafe impl<R> Zero for Leaf<R> {
    fn zero() -> Self {
        Leaf {
            routes: std::array::from_fn(|_| Zero::zero()),
            order: std::array::from_fn(|_| Zero::zero()),
        }
    }
}

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
    root: Box<[AtomicPtr<Leaf<R>>]>,
    grace: Arc<Grace>,
    last: Gfn,
    /// Pages with a route; changed under the lock.
    len: AtomicU64,
    control: Mutex<Control>,
}

/// What only changes need.
struct Control {
    /// Pages with a route, per leaf.
    live: Box<[AtomicU16]>,
}

/// A tracked page, found under a guard.
///
/// See [`PageMap`] for an example.
pub struct Page<'g, R> {
    route: &'g AtomicPtr<Counted<R>>,
    order: &'g AtomicU8,
}

impl<'g, R: Send + Sync> Page<'g, R> {
    /// Takes the page's order: nobody else serves a write to the page while it is held.
    ///
    /// # Errors
    /// [`Parked`] while the page is being unmarked.
    #[inline]
    pub fn lock(&self) -> Result<Locked<'g>, Parked> {
        order::lock(self.order)
    }

    /// Where the page leads now; `None` if it is not tracked any more.
    #[inline]
    #[must_use]
    pub fn route(&self) -> Option<&'g R> {
        // Acquire: pairs with the Release of `insert` and `replace`.
        let route = self.route.load(Ordering::Acquire);
        // SAFETY: a route in a leaf is kept by the map's strong count; that count is given up only by garbage retired after
        // the pointer was overwritten, and the guard that `'g` borrows holds that garbage back.
        unsafe { route.as_ref() }.map(|counted| &counted.route)
    }
}

impl<R> fmt::Debug for Page<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

impl<R: Send + Sync + 'static> PageMap<R> {
    /// An empty map for frames up to `last`.
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
            len: AtomicU64::new(0),
            control: Mutex::new(Control { live: table(count) }),
        })
    }

    /// The page, if it is tracked.
    #[inline]
    #[must_use]
    pub fn find<'g>(&self, gfn: Gfn, guard: &'g ReadGuard<'_>) -> Option<Page<'g, R>> {
        guard.check(&self.grace);
        let leaf = self.root.get(usize::try_from(gfn.0 >> LEAF_SHIFT).ok()?)?;
        // Acquire: pairs with the Release store that linked the leaf.
        let leaf: *mut Leaf<R> = leaf.load(Ordering::Acquire);
        // SAFETY: a leaf in the root is freed only by garbage retired after it was unlinked; `guard` is of the same registry
        // (checked above) and, borrowed for `'g`, cannot quiesce before the reference ends.
        let leaf: &'g Leaf<R> = unsafe { leaf.as_ref() }?;
        let page = leaf.page(gfn)?;
        page.route().is_some().then_some(page)
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leaf of `gfn`, for changes: the control lock keeps it linked.
    fn leaf(&self, gfn: Gfn, _control: &Control) -> Option<&Leaf<R>> {
        let leaf = self.root.get(usize::try_from(gfn.0 >> LEAF_SHIFT).ok()?)?;
        // Relaxed: leaves are linked and unlinked under the lock that we hold.
        let leaf = leaf.load(Ordering::Relaxed);
        // SAFETY: leaves are unlinked and retired under the control lock, which the caller holds while it uses the reference.
        unsafe { leaf.as_ref() }
    }

    /// The same, made if it is not there.
    fn make_leaf(&self, gfn: Gfn, control: &Control) -> Option<&Leaf<R>> {
        if let Some(leaf) = self.leaf(gfn, control) {
            return Some(leaf);
        }
        let entry = self.root.get(usize::try_from(gfn.0 >> LEAF_SHIFT).ok()?)?;
        // Release: pairs with the Acquire in `find`; the leaf is all zeroes before it is seen.
        entry.store(Box::into_raw(boxed::<Leaf<R>>()), Ordering::Release);
        self.leaf(gfn, control)
    }

    /// Leads `pages` to `route`. All or nothing.
    ///
    /// # Errors
    /// `RouteConflict` if one of them is tracked already, `InvalidArgument` beyond the map's last frame.
    pub fn insert(&self, pages: GfnRange, route: &Arc<Counted<R>>) -> Result<()> {
        if pages.last() > self.last.0 {
            let err = Error::new(Op::Route, ErrorKind::InvalidArgument).about(format!(
                "{pages}: the last frame that can be tracked is {} (see the builder's last_gfn)",
                self.last
            ));
            return Err(err);
        }
        let control = self.control();
        for part in leaf_parts(pages) {
            if control.live(part) == 0 {
                continue;
            }
            let Some(leaf) = self.leaf(Gfn(part.first()), &control) else {
                continue;
            };
            // Relaxed: routes change under the lock that we hold.
            let is_taken = |entry: &AtomicPtr<Counted<R>>| !entry.load(Ordering::Relaxed).is_null();
            let taken = part
                .iter()
                .zip(leaf.entries(part))
                .find(|(_, entry)| is_taken(entry));
            if let Some((gfn, _)) = taken {
                return Err(
                    Error::new(Op::Route, ErrorKind::RouteConflict).about(GfnRange::from(gfn))
                );
            }
        }
        self.hold(route, pages.pages());
        let pointer = Arc::as_ptr(route).cast_mut();
        for part in leaf_parts(pages) {
            let Some(leaf) = self.make_leaf(Gfn(part.first()), &control) else {
                continue;
            };
            for entry in leaf.entries(part) {
                // Release: pairs with the Acquire in `Page::route`.
                entry.store(pointer, Ordering::Release);
            }
            control.add_live(part, part.pages());
        }
        // Relaxed: under the lock; readers of `len` want a number, not an order.
        self.len.store(
            self.len.load(Ordering::Relaxed) + pages.pages(),
            Ordering::Relaxed,
        );
        Ok(())
    }

    /// Leads `pages`, all of them tracked, elsewhere; their orders stay as they are.
    ///
    /// # Errors
    /// `NoSuchRoute` if one of them is not tracked; those before it are changed then.
    pub fn replace(&self, pages: GfnRange, route: &Arc<Counted<R>>) -> Result<()> {
        let control = self.control();
        let missing =
            |gfn: Gfn| Error::new(Op::Route, ErrorKind::NoSuchRoute).about(GfnRange::from(gfn));
        let pointer = Arc::as_ptr(route).cast_mut();
        for part in leaf_parts(pages) {
            let first = Gfn(part.first());
            let leaf = self.leaf(first, &control).ok_or_else(|| missing(first))?;
            for (entry, gfn) in leaf.entries(part).iter().zip(part.iter()) {
                // Relaxed: routes change under the lock that we hold.
                let old = entry.load(Ordering::Relaxed);
                if old.is_null() {
                    return Err(missing(gfn));
                }
                self.hold(route, 1);
                // Release: pairs with the Acquire in `Page::route`.
                entry.store(pointer, Ordering::Release);
                self.let_go(old, 1);
            }
        }
        Ok(())
    }

    /// Removes those of `pages` that are tracked, and returns their number. No new look-up finds them; orders that are held
    /// stay valid, parking ends.
    pub fn remove(&self, pages: GfnRange) -> u64 {
        let control = self.control();
        let mut removed = 0;
        for part in leaf_parts(pages) {
            if control.live(part) == 0 {
                continue;
            }
            let Some(leaf) = self.leaf(Gfn(part.first()), &control) else {
                continue;
            };
            let mut run: (*mut Counted<R>, u64) = (std::ptr::null_mut(), 0);
            let mut here = 0_u64;
            for (entry, order) in leaf.entries(part).iter().zip(leaf.orders(part)) {
                // Relaxed: as in `replace`.
                let old = entry.load(Ordering::Relaxed);
                if old.is_null() {
                    continue;
                }
                // Release: pairs with the Acquire in `Page::route`. The route goes before parking ends, so that a request
                // that was parked finds none.
                entry.store(std::ptr::null_mut(), Ordering::Release);
                if order::is_parked(order) {
                    order::unpark(order);
                }
                here += 1;
                if run.0 != old {
                    self.let_go(run.0, run.1);
                    run = (old, 0);
                }
                run.1 += 1;
            }
            self.let_go(run.0, run.1);
            control.add_live(part, here.wrapping_neg());
            removed += here;
            self.unlink_if_empty(part, &control);
        }
        // Relaxed: as in `insert`.
        self.len.store(
            self.len.load(Ordering::Relaxed) - removed,
            Ordering::Relaxed,
        );
        removed
    }

    /// Removes everything.
    pub fn clear(&self) {
        for run in self.ranges() {
            self.remove(run);
        }
    }

    /// Frees a leaf that leads nowhere, unless an order in it is held: a new leaf would have a second order for the page.
    fn unlink_if_empty(&self, part: GfnRange, control: &Control) {
        let index = usize::try_from(part.first() >> LEAF_SHIFT).unwrap_or(usize::MAX);
        let (Some(leaf), Some(entry)) =
            (self.leaf(Gfn(part.first()), control), self.root.get(index))
        else {
            return;
        };
        if control.live(part) > 0 || !leaf.order.iter().all(order::is_free) {
            return;
        }
        // AcqRel: as `Published::publish`.
        let unlinked = entry.swap(std::ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: it came from `Box::into_raw` in `make_leaf`, and only the holder of the control lock unlinks.
        let unlinked = unsafe { Box::from_raw(unlinked) };
        self.grace.retire(move || drop(unlinked));
    }

    /// One more page leads to `route`, or many.
    fn hold(&self, route: &Arc<Counted<R>>, pages: u64) {
        // Relaxed: under the control lock.
        let before = route.pages.load(Ordering::Relaxed);
        route.pages.store(before + pages, Ordering::Relaxed);
        if before == 0 {
            // The map's strong count; `let_go` gives it back.
            std::mem::forget(Arc::clone(route));
        }
    }

    /// So many pages lead to the route no more.
    fn let_go(&self, route: *mut Counted<R>, pages: u64) {
        // SAFETY: null, or a route that was in a leaf under the control lock, so the map's strong count keeps it.
        let Some(counted) = (unsafe { route.as_ref() }) else {
            return;
        };
        // Relaxed: under the control lock.
        let left = counted.pages.load(Ordering::Relaxed) - pages;
        counted.pages.store(left, Ordering::Relaxed);
        if left == 0 {
            // SAFETY: the pointer came from `Arc::as_ptr`, with the strong count that `hold` forgot; it is given back once.
            let route = unsafe { Arc::from_raw(route.cast_const()) };
            self.grace.retire(move || drop(route));
        }
    }

    /// Leaves the page's writes unanswered from now on; false while one is being served, or if the page is not tracked.
    pub fn park(&self, gfn: Gfn) -> bool {
        let control = self.control();
        let page = self.leaf(gfn, &control).and_then(|leaf| leaf.page(gfn));
        page.is_some_and(|page| page.route().is_some() && order::park(page.order))
    }

    /// Ends parking.
    pub fn unpark(&self, gfn: Gfn) {
        let control = self.control();
        if let Some(page) = self.leaf(gfn, &control).and_then(|leaf| leaf.page(gfn)) {
            order::unpark(page.order);
        }
    }

    /// Whether the page is parked; for whoever holds a parked request, and so takes no lock.
    #[must_use]
    pub fn is_parked(&self, gfn: Gfn, guard: &ReadGuard<'_>) -> bool {
        self.find(gfn, guard)
            .is_some_and(|page| order::is_parked(page.order))
    }

    /// The page's route, kept.
    #[must_use]
    pub fn route_of(&self, gfn: Gfn) -> Option<Arc<Counted<R>>> {
        let control = self.control();
        let entry = self.leaf(gfn, &control)?.routes.get(offset(gfn))?;
        // Relaxed: routes change under the lock that we hold.
        let route = entry.load(Ordering::Relaxed).cast_const();
        if route.is_null() {
            return None;
        }
        // SAFETY: from `Arc::as_ptr` of a route whose strong count the map owns while it is in a leaf, so it is above 0.
        unsafe { Arc::increment_strong_count(route) };
        // SAFETY: the count just added is this value's.
        Some(unsafe { Arc::from_raw(route) })
    }

    /// Number of tracked pages.
    #[must_use]
    pub fn len(&self) -> u64 {
        // Relaxed: a number, not an order.
        self.len.load(Ordering::Relaxed)
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
        let control = self.control();
        let mut found: Vec<GfnRange> = Vec::new();
        let Ok(known) = GfnRange::new(pages.first(), pages.last().min(self.last.0)) else {
            return found;
        };
        for part in leaf_parts(known) {
            if control.live(part) == 0 {
                continue;
            }
            let Some(leaf) = self.leaf(Gfn(part.first()), &control) else {
                continue;
            };
            for (gfn, entry) in part.iter().zip(leaf.entries(part)) {
                // Relaxed: routes change under the lock that we hold.
                if entry.load(Ordering::Relaxed).is_null() {
                    continue;
                }
                match found.last_mut() {
                    Some(run) if run.last() + 1 == gfn.0 => {
                        if let Ok(longer) = GfnRange::new(run.first(), gfn.0) {
                            *run = longer;
                        }
                    }
                    _ => found.push(gfn.into()),
                }
            }
        }
        found
    }

    /// Bytes that the tracked pages take: leaves. Routes and the root are not counted.
    #[must_use]
    pub fn leaf_bytes(&self) -> usize {
        // Relaxed: a number, not an order.
        let linked = self
            .root
            .iter()
            .filter(|leaf| !leaf.load(Ordering::Relaxed).is_null())
            .count();
        linked * size_of::<Leaf<R>>()
    }
}

impl<R> Leaf<R> {
    fn page(&self, gfn: Gfn) -> Option<Page<'_, R>> {
        let at = offset(gfn);
        Some(Page {
            route: self.routes.get(at)?,
            order: self.order.get(at)?,
        })
    }

    /// The routes of `part`, which lies within the leaf.
    fn entries(&self, part: GfnRange) -> &[AtomicPtr<Counted<R>>] {
        self.routes
            .get(offset(Gfn(part.first()))..=offset(Gfn(part.last())))
            .unwrap_or_default()
    }

    /// The orders of `part`.
    fn orders(&self, part: GfnRange) -> &[AtomicU8] {
        self.order
            .get(offset(Gfn(part.first()))..=offset(Gfn(part.last())))
            .unwrap_or_default()
    }
}

impl Control {
    fn counter(&self, part: GfnRange) -> Option<&AtomicU16> {
        self.live
            .get(usize::try_from(part.first() >> LEAF_SHIFT).ok()?)
    }

    /// Tracked pages in the leaf of `part`.
    fn live(&self, part: GfnRange) -> u16 {
        // Relaxed, here and below: only the holder of the control lock comes here. Atomic for its zeroed table alone.
        self.counter(part)
            .map_or(0, |live| live.load(Ordering::Relaxed))
    }

    /// Adds to it; a negative number in two's complement subtracts.
    fn add_live(&self, part: GfnRange, pages: u64) {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "counts up to 512, modulo 2^16"
        )]
        let pages = pages as u16;
        if let Some(live) = self.counter(part) {
            live.store(
                live.load(Ordering::Relaxed).wrapping_add(pages),
                Ordering::Relaxed,
            );
        }
    }
}

/// The page's place in its leaf.
fn offset(gfn: Gfn) -> usize {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "below the number of pages of a leaf"
    )]
    let at = (gfn.0 & (LEAF as u64 - 1)) as usize;
    at
}

/// `pages`, cut at the ends of leaves.
fn leaf_parts(pages: GfnRange) -> impl Iterator<Item = GfnRange> {
    (pages.first() >> LEAF_SHIFT..=pages.last() >> LEAF_SHIFT).filter_map(move |leaf| {
        let (first, last) = (leaf << LEAF_SHIFT, (leaf << LEAF_SHIFT) + (LEAF as u64 - 1));
        GfnRange::new(first.max(pages.first()), last.min(pages.last())).ok()
    })
}

impl<R: Send + Sync + 'static> Drop for PageMap<R> {
    fn drop(&mut self) {
        self.clear();
        for entry in &self.root {
            // Relaxed: `&mut self`, nobody else is here. What is left are leaves whose orders were held when they emptied.
            let leaf = entry.load(Ordering::Relaxed);
            if !leaf.is_null() {
                // SAFETY: from `Box::into_raw` in `make_leaf`; the map is its only owner.
                let leaf = unsafe { Box::from_raw(leaf) };
                self.grace.retire(move || drop(leaf));
            }
        }
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
