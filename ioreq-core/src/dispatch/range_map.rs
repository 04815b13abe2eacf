// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ranges of a 64-bit space: MMIO addresses, and PCI functions by their packed form.
//!
//! Readers look at an immutable, sorted snapshot; a change publishes a new one.

use std::fmt;
use std::sync::{Arc, PoisonError};

use super::grace::{Grace, ReadGuard};
use super::published::Published;
use crate::range::MmioRange;
use crate::sync::{Mutex, MutexGuard};

/// A range overlaps one that is there.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_core::{MmioRange, dispatch::{Grace, RangeMap}};
/// let ranges = RangeMap::new(Grace::new());
/// ranges.insert(MmioRange::new(0, 0xfff)?, &Arc::new("first")).unwrap();
/// let conflict = ranges.insert(MmioRange::new(0xfff, 0x1fff)?, &Arc::new("second")).unwrap_err();
/// assert_eq!(**conflict.existing(), "first");
/// # Ok::<(), ioreq_core::RangeError>(())
/// ```
pub struct Conflict<R>(Arc<R>);

impl<R> Conflict<R> {
    pub(super) fn new(existing: &Arc<R>) -> Self {
        Conflict(Arc::clone(existing))
    }

    /// The route that is there.
    #[must_use]
    pub fn existing(&self) -> &Arc<R> {
        &self.0
    }
}

impl<R> fmt::Debug for Conflict<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conflict").finish_non_exhaustive()
    }
}

struct Entry<R> {
    last: u64,
    route: Arc<R>,
}

/// All ranges at one moment: their first addresses, sorted and dense for the search, and what belongs to each.
struct Snapshot<R> {
    firsts: Box<[u64]>,
    entries: Box<[Entry<R>]>,
}

impl<R> Snapshot<R> {
    /// The one range that can hold `addr`: the last that starts at or before it.
    #[inline]
    fn below(&self, addr: u64) -> Option<(u64, &Entry<R>)> {
        let at = self
            .firsts
            .partition_point(|first| *first <= addr)
            .checked_sub(1)?;
        Some((*self.firsts.get(at)?, self.entries.get(at)?))
    }
}

/// Routes of ranges that do not overlap.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_core::{MmioRange, dispatch::{Grace, RangeMap}};
/// let grace = Grace::new();
/// let ranges = RangeMap::new(grace.clone());
/// ranges.insert(MmioRange::sized(0xe000_0000, 0x1000)?, &Arc::new("bar0")).unwrap();
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// assert_eq!(ranges.find(0xe000_0ffc, 4, &guard), Some(&"bar0"));
/// assert_eq!(ranges.find(0xe000_0ffd, 4, &guard), None); // not wholly inside
/// # Ok::<(), ioreq_core::RangeError>(())
/// ```
pub struct RangeMap<R: Send + Sync + 'static> {
    snapshot: Published<Snapshot<R>>,
    /// What the snapshot is made from, sorted by first address.
    ranges: Mutex<Vec<(MmioRange, Arc<R>)>>,
}

impl<R: Send + Sync + 'static> RangeMap<R> {
    /// An empty map.
    #[must_use]
    pub fn new(grace: Arc<Grace>) -> Self {
        let empty = Snapshot {
            firsts: Box::default(),
            entries: Box::default(),
        };
        RangeMap {
            snapshot: Published::new(empty, grace),
            ranges: Mutex::new(Vec::new()),
        }
    }

    /// The route whose range covers all `len` addresses from `addr` on.
    #[inline]
    #[must_use]
    pub fn find<'g>(&self, addr: u64, len: u64, guard: &'g ReadGuard<'_>) -> Option<&'g R> {
        let (first, entry) = self.snapshot.load(guard).below(addr)?;
        let range = MmioRange::new(first, entry.last).ok()?;
        range.covers(addr, len).then_some(&*entry.route)
    }

    fn ranges(&self) -> MutexGuard<'_, Vec<(MmioRange, Arc<R>)>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, ranges: &[(MmioRange, Arc<R>)]) {
        let firsts = ranges.iter().map(|(range, _)| range.first()).collect();
        let entry = |(range, route): &(MmioRange, Arc<R>)| Entry {
            last: range.last(),
            route: Arc::clone(route),
        };
        let entries = ranges.iter().map(entry).collect();
        self.snapshot.publish(Snapshot { firsts, entries });
    }

    /// Adds a route.
    ///
    /// # Errors
    /// The [`Conflict`] if the range overlaps one that is there.
    pub fn insert(&self, range: MmioRange, route: &Arc<R>) -> Result<(), Conflict<R>> {
        let mut ranges = self.ranges();
        let at = ranges.partition_point(|(other, _)| other.first() <= range.last());
        if let Some((other, existing)) = at.checked_sub(1).and_then(|before| ranges.get(before))
            && other.overlaps(&range)
        {
            return Err(Conflict::new(existing));
        }
        ranges.insert(at, (range, Arc::clone(route)));
        self.publish(&ranges);
        Ok(())
    }

    /// Gives the very range another route; false if it is not there.
    pub fn replace(&self, range: MmioRange, route: &Arc<R>) -> bool {
        let mut ranges = self.ranges();
        let Some((_, old)) = ranges.iter_mut().find(|(other, _)| *other == range) else {
            return false;
        };
        *old = Arc::clone(route);
        self.publish(&ranges);
        true
    }

    /// Removes the very range; false if it is not there.
    pub fn remove(&self, range: MmioRange) -> bool {
        let mut ranges = self.ranges();
        let Some(at) = ranges.iter().position(|(other, _)| *other == range) else {
            return false;
        };
        ranges.remove(at);
        self.publish(&ranges);
        true
    }
}

impl<R: Send + Sync + 'static> fmt::Debug for RangeMap<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeMap")
            .field("ranges", &self.ranges().len())
            .finish_non_exhaustive()
    }
}
