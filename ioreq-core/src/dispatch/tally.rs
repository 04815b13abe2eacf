// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What only changes of the page map need to know: how many pages of each leaf are tracked.

use super::leaf::{LEAF, LEAF_SHIFT};
use super::zeroed::table;
use crate::range::GfnRange;
use crate::sync::atomic::{AtomicU16, Ordering};

/// The number of the leaf that has the frame.
#[inline]
pub(super) fn leaf_of(gfn: u64) -> u64 {
    gfn >> LEAF_SHIFT
}

/// Tracked pages, counted by leaf. Lives under the map's lock.
pub(super) struct Tally {
    /// Atomic for its zeroed table alone: only the holder of the lock comes here.
    live: Box<[AtomicU16]>,
    /// Leaves that lead nowhere, but had an order held when it came to that: to be unlinked later.
    lingering: Vec<u64>,
    /// The lowest and the highest leaf that was ever there: nothing else need be looked through.
    used: Option<(u64, u64)>,
}

impl Tally {
    pub(super) fn new(leaves: usize) -> Self {
        Tally {
            live: table(leaves),
            lingering: Vec::new(),
            used: None,
        }
    }

    /// `pages`, cut at the ends of leaves.
    pub(super) fn parts(pages: GfnRange) -> impl Iterator<Item = GfnRange> {
        Self::parts_of(pages, leaf_of(pages.first()), leaf_of(pages.last()))
    }

    /// The same, without what no leaf was ever made for.
    pub(super) fn used_parts(&self, pages: GfnRange) -> impl Iterator<Item = GfnRange> + use<> {
        let (lowest, highest) = self.used.unwrap_or((1, 0));
        let (first, last) = (leaf_of(pages.first()), leaf_of(pages.last()));
        Self::parts_of(pages, first.max(lowest), last.min(highest))
    }

    fn parts_of(pages: GfnRange, first: u64, last: u64) -> impl Iterator<Item = GfnRange> + use<> {
        (first..=last).filter_map(move |leaf| {
            let (first, last) = (leaf << LEAF_SHIFT, (leaf << LEAF_SHIFT) + (LEAF as u64 - 1));
            GfnRange::new(first.max(pages.first()), last.min(pages.last())).ok()
        })
    }

    /// Numbers of the leaves that may be there.
    pub(super) fn used(&self) -> impl Iterator<Item = u64> + use<> {
        let (lowest, highest) = self.used.unwrap_or((1, 0));
        lowest..=highest
    }

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
    pub(super) fn is_all(&self, part: GfnRange, tracked: bool) -> bool {
        let live = self.live(leaf_of(part.first()));
        live == if tracked { LEAF as u64 } else { 0 }
    }

    /// The pages of `part`, of one leaf, came to be tracked.
    pub(super) fn add(&mut self, part: GfnRange) {
        let leaf = leaf_of(part.first());
        self.set(leaf, self.live(leaf) + part.pages());
        let (lowest, highest) = self.used.unwrap_or((leaf, leaf));
        self.used = Some((lowest.min(leaf), highest.max(leaf)));
    }

    /// So many pages of `part`, of one leaf, are tracked no more.
    pub(super) fn subtract(&mut self, part: GfnRange, pages: u64) {
        let leaf = leaf_of(part.first());
        self.set(leaf, self.live(leaf) - pages);
    }

    /// Remembers a leaf that could not be unlinked.
    pub(super) fn linger(&mut self, leaf: u64) {
        if !self.lingering.contains(&leaf) {
            self.lingering.push(leaf);
        }
    }

    /// Leaves to try again.
    pub(super) fn take_lingering(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.lingering)
    }
}
