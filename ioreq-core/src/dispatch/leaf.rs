// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: dereferences atomic pointers to routes and handlers; the registry of readers keeps what they point to.
//!
//! The leaf of the page map: 512 frames, a word and an order byte each, and nothing else.

use std::fmt;
use std::ops::Range;

use super::kind::Kinds;
use super::order::{self, Locked, Parked};
use super::tally::Part;
use super::zeroed::Zero;
use crate::handler::HandlerRef;
use crate::ids::Gfn;
use crate::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

/// log2 of the frames of a leaf.
pub(super) const LEAF_SHIFT: u32 = if cfg!(loom) { 1 } else { 9 };
/// Frames of a leaf.
pub(super) const LEAF: usize = 1 << LEAF_SHIFT;

/// The entry of one frame: null, or what it leads to, which the map holds (see [`kind`](super::kind)).
pub(super) type Entry = AtomicPtr<()>;

/// [`LEAF`] frames.
pub(super) struct Leaf {
    routes: [Entry; LEAF],
    orders: [AtomicU8; LEAF],
}

// SAFETY: two arrays of types that are valid when zeroed.
unsafe impl Zero for Leaf {
    fn zero() -> Self {
        Leaf {
            routes: Zero::zero(),
            orders: Zero::zero(),
        }
    }
}

impl Leaf {
    /// The page of `gfn`, of which only the place in the leaf matters.
    #[inline]
    pub(super) fn page<'g, R>(&'g self, gfn: Gfn, kinds: &'g Kinds<R>) -> Page<'g, R> {
        let at = place(gfn.0);
        Page {
            route: &self.routes[at],
            order: &self.orders[at],
            kinds,
        }
    }

    /// The entry of `gfn`, of which only the place in the leaf matters.
    #[inline]
    pub(super) fn entry(&self, gfn: Gfn) -> &Entry {
        &self.routes[place(gfn.0)]
    }

    /// The entries of `part`, which is of this leaf.
    #[inline]
    pub(super) fn routes(&self, part: Part) -> &[Entry] {
        &self.routes[places(part)]
    }

    /// The orders of `part`, which is of this leaf.
    #[inline]
    pub(super) fn orders(&self, part: Part) -> &[AtomicU8] {
        &self.orders[places(part)]
    }

    /// Whether no order in it is held or parked.
    pub(super) fn is_free(&self) -> bool {
        self.orders.iter().all(order::is_free)
    }
}

/// The frame's place in its leaf.
#[inline]
fn place(gfn: u64) -> usize {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "below the number of frames of a leaf"
    )]
    let at = (gfn & (LEAF as u64 - 1)) as usize;
    at
}

#[inline]
fn places(part: Part) -> Range<usize> {
    let first = place(part.first());
    #[allow(
        clippy::cast_possible_truncation,
        reason = "at most the frames of a leaf"
    )]
    let pages = part.pages() as usize;
    first..first + pages
}

/// A tracked page, found under a guard.
///
/// ```
/// use ioreq_core::dispatch::{Counted, Grace, PageMap};
/// use ioreq_core::{Gfn, GfnRange};
///
/// let grace = Grace::new();
/// let map = PageMap::new(Gfn(0xffff), grace.clone())?;
/// map.insert(GfnRange::sized(0x10, 4)?, &Counted::new("a route"))?;
///
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// let page = map.find(Gfn(0x13), &guard).expect("inserted above");
/// assert_eq!(page.route(), Some(&"a route"));
/// assert!(map.find(Gfn(0x14), &guard).is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Page<'g, R> {
    route: &'g Entry,
    order: &'g AtomicU8,
    kinds: &'g Kinds<R>,
}

/// Where a page leads.
///
/// ```
/// use ioreq_core::dispatch::{Counted, Grace, Lead, PageMap};
/// use ioreq_core::Gfn;
///
/// let grace = Grace::new();
/// let map = PageMap::new(Gfn(0xffff), grace.clone())?;
/// map.insert(Gfn(7).into(), &Counted::new("shared"))?;
///
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// let Lead { route, own } = map.find(Gfn(7), &guard).and_then(|page| page.lead()).expect("tracked");
/// assert_eq!(route, &"shared");
/// assert!(own.is_none()); // pages of a `Kind` have one
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Lead<'g, R> {
    /// Its route, or what it has in common with others of its [`Kind`](super::Kind).
    pub route: &'g R,
    /// The handler of a page that has its own.
    pub own: Option<HandlerRef<'g>>,
}

impl<'g, R> Page<'g, R> {
    /// Takes the page's order: nobody else serves a write to the page while it is held.
    ///
    /// # Errors
    /// [`Parked`] while the page is being unmarked.
    #[inline]
    pub fn lock(&self) -> Result<Locked<'g>, Parked> {
        order::lock(self.order)
    }

    /// Where the page leads now; `None` if it is not tracked any more. If that is so although the page's order is held, the page
    /// may have been tracked anew meanwhile, with another order: look it up again.
    #[inline]
    #[must_use]
    pub fn lead(&self) -> Option<Lead<'g, R>> {
        let way = self.kinds.way(self.word())?;
        // SAFETY: a route that an entry leads to is kept by the map's strong count; that count is given up only by garbage retired
        // after the entry was overwritten, and the guard that `'g` borrows holds that garbage back.
        let node = unsafe { &*way.node };
        let own = match (way.own, node.kind()) {
            (Some(handler), Some(kind)) => {
                // SAFETY: as above; the strong count is the entry's, and the handler is of its kind's type (`Kind::with`).
                Some(unsafe { HandlerRef::new(handler, kind.of()) })
            }
            _ => None,
        };
        let route = node.route();
        Some(Lead { route, own })
    }

    /// The same without the handler of a page that has its own.
    #[inline]
    #[must_use]
    pub fn route(&self) -> Option<&'g R> {
        let way = self.kinds.way(self.word())?;
        // SAFETY: as in `lead`.
        Some(unsafe { &*way.node }.route())
    }

    /// Whether it is tracked still.
    #[inline]
    pub(super) fn is_linked(&self) -> bool {
        !self.word().is_null()
    }

    #[inline]
    pub(super) fn word(&self) -> *mut () {
        // Acquire: pairs with the Release of `PageMap::insert` and `replace`. SeqCst besides: after the taking of the order, if
        // it was taken (see `PageMap::unlink_if_free`).
        self.route.load(Ordering::SeqCst)
    }

    pub(super) fn order(&self) -> &'g AtomicU8 {
        self.order
    }
}

// Not derived: that would ask the same of `R`.
impl<R> Clone for Lead<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Lead<'_, R> {}

impl<R: fmt::Debug> fmt::Debug for Lead<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = if self.own.is_some() { ", own" } else { "" };
        write!(f, "Lead({:?}{own})", self.route)
    }
}

impl<R> fmt::Debug for Page<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}
