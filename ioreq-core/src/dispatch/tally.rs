// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What only changes of the page map need to know: how many pages of each leaf are tracked, how many lead to each route, and how
//! many are parked at all.

use std::ops::RangeInclusive;

use super::held::Held;
use super::leaf::{LEAF, LEAF_SHIFT};
use super::zeroed::table;
use crate::ids::Gfn;
use crate::range::GfnRange;
use crate::sync::atomic::{AtomicU16, Ordering};

/// The number of the leaf that has the frame.
#[inline]
pub(super) fn leaf_of(gfn: u64) -> u64 {
    gfn >> LEAF_SHIFT
}

/// Some frames of one leaf, at least one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    first: u64,
    /// The frame behind the last.
    end: u64,
}

impl Part {
    /// The leaf's number.
    #[inline]
    pub(super) fn leaf(self) -> u64 {
        leaf_of(self.first)
    }

    #[inline]
    pub(super) fn first(self) -> u64 {
        self.first
    }

    #[inline]
    pub(super) fn pages(self) -> u64 {
        self.end - self.first
    }

    /// The frames, in order.
    pub(super) fn frames(self) -> impl Iterator<Item = Gfn> {
        (self.first..self.end).map(Gfn)
    }

    /// The same as a range; `None` for none that a guest could have.
    pub(super) fn range(self) -> Option<GfnRange> {
        GfnRange::new(self.first, self.end - 1).ok()
    }
}

impl From<Gfn> for Part {
    fn from(gfn: Gfn) -> Self {
        Part {
            first: gfn.0,
            end: gfn.0 + 1,
        }
    }
}

/// Frames, leaf by leaf.
pub(super) struct Parts {
    next: u64,
    end: u64,
}

impl Parts {
    #[inline]
    pub(super) fn of(pages: GfnRange) -> Self {
        Parts {
            next: pages.first(),
            end: pages.last() + 1,
        }
    }
}

impl Iterator for Parts {
    type Item = Part;

    #[inline]
    fn next(&mut self) -> Option<Part> {
        let first = self.next;
        let behind = (first | (LEAF as u64 - 1)) + 1;
        self.next = behind.min(self.end);
        (first < self.end).then_some(Part {
            first,
            end: self.next,
        })
    }
}

/// Tracked pages, counted by leaf. Lives under the map's lock.
pub(super) struct Tally<R> {
    pub(super) held: Held<R>,
    /// Atomic for its zeroed table alone: only the holder of the lock comes here.
    live: Box<[AtomicU16]>,
    /// Leaves that lead nowhere, but had an order held when it came to that: to be unlinked later.
    lingering: Vec<u64>,
    /// Pages that are parked. While there is none, orders need not be looked at, which are memory of their own.
    parked: u64,
    /// The lowest and the highest leaf that was ever there: nothing else need be looked through.
    used: Option<(u64, u64)>,
}

impl<R> Tally<R> {
    pub(super) fn new(leaves: usize) -> Self {
        Tally {
            held: Held::new(),
            live: table(leaves),
            lingering: Vec::new(),
            parked: 0,
            used: None,
        }
    }

    /// `pages`, cut at the ends of leaves, without what no leaf was ever made for.
    #[inline]
    pub(super) fn used_parts(&self, pages: GfnRange) -> Parts {
        let (lowest, highest) = self.used.unwrap_or((1, 0));
        let (first, end) = (lowest << LEAF_SHIFT, (highest + 1) << LEAF_SHIFT);
        Parts {
            next: pages.first().max(first),
            end: (pages.last() + 1).min(end),
        }
    }

    /// Numbers of the leaves that may be there.
    pub(super) fn used(&self) -> RangeInclusive<u64> {
        let (lowest, highest) = self.used.unwrap_or((1, 0));
        lowest..=highest
    }

    #[inline]
    fn counter(&self, leaf: u64) -> Option<&AtomicU16> {
        self.live.get(usize::try_from(leaf).ok()?)
    }

    fn live(&self, leaf: u64) -> u64 {
        // Relaxed, here and below: under the map's lock.
        self.counter(leaf)
            .map_or(0, |live| live.load(Ordering::Relaxed).into())
    }

    fn set(&self, leaf: u64, live: u64) {
        if let (Some(counter), Ok(live)) = (self.counter(leaf), u16::try_from(live)) {
            counter.store(live, Ordering::Relaxed);
        }
    }

    /// Whether no page of the leaf is tracked.
    pub(super) fn is_empty(&self, leaf: u64) -> bool {
        self.live(leaf) == 0
    }

    /// Whether the count alone says that all pages of `part` are tracked, or that none is.
    #[inline]
    pub(super) fn is_all(&self, part: Part, tracked: bool) -> bool {
        self.live(part.leaf()) == if tracked { LEAF as u64 } else { 0 }
    }

    /// The pages of `part` came to be tracked.
    #[inline]
    pub(super) fn add(&mut self, part: Part) {
        let leaf = part.leaf();
        self.set(leaf, self.live(leaf) + part.pages());
        let (lowest, highest) = self.used.unwrap_or((leaf, leaf));
        self.used = Some((lowest.min(leaf), highest.max(leaf)));
    }

    /// The same for a page of a leaf that is there; false, and nothing is counted, if there is no such leaf.
    #[inline]
    pub(super) fn add_single(&mut self, leaf: u64) -> bool {
        let counter = self.counter(leaf);
        if let Some(counter) = counter {
            counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        counter.is_some()
    }

    /// So many pages of `part` are tracked no more.
    #[inline]
    pub(super) fn subtract(&mut self, part: Part, pages: u64) {
        let leaf = part.leaf();
        self.set(leaf, self.live(leaf) - pages);
    }

    /// The same for one of [`several`](Self::has_several) pages.
    #[inline]
    pub(super) fn subtract_single(&mut self, leaf: u64) {
        if let Some(counter) = self.counter(leaf) {
            counter.store(counter.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        }
    }

    /// Whether more than one page of the leaf is tracked.
    #[inline]
    pub(super) fn has_several(&self, leaf: u64) -> bool {
        self.live(leaf) > 1
    }

    /// A page came to be parked.
    pub(super) fn park(&mut self) {
        self.parked += 1;
    }

    /// So many pages are parked no more.
    pub(super) fn unpark(&mut self, pages: u64) {
        self.parked -= pages;
    }

    /// Whether a page is parked, of whatever leaf.
    pub(super) fn has_parked(&self) -> bool {
        self.parked != 0
    }

    /// Remembers a leaf that could not be unlinked.
    pub(super) fn linger(&mut self, leaf: u64) {
        if !self.lingering.contains(&leaf) {
            self.lingering.push(leaf);
        }
    }

    /// Whether there are leaves to try again.
    pub(super) fn has_lingering(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// Leaves to try again.
    pub(super) fn take_lingering(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.lingering)
    }
}
