// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: dereferences atomic pointers to routes; the registry of readers keeps what they point to.
//!
//! Ports: a table of 65536 pointers, mapped where it is touched. Each leads to the route of the range that has the port.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};

use crossbeam::utils::CachePadded;

use super::grace::{Grace, ReadGuard};
use super::ranged::{Conflict, Ranged};
use super::zeroed::table;
use crate::range::PortRange;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Ports of the x86 I/O space.
const PORTS: usize = if cfg!(loom) { 4 } else { 1 << 16 };

type Entry<R> = Ranged<PortRange, R>;

/// Routes of port ranges that do not overlap.
///
/// ```
/// use ioreq_core::{PortRange, dispatch::{Grace, PortMap}};
/// let grace = Grace::new();
/// let ports = PortMap::new(grace.clone());
/// ports.insert(PortRange::new(0x3f8, 0x3ff)?, "uart")?;
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// assert_eq!(ports.find(0x3fc, 4, &guard), Some(&"uart"));
/// assert_eq!(ports.find(0x3fd, 4, &guard), None); // not wholly inside
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PortMap<R: Send + Sync + 'static> {
    /// Null, or from `Arc::as_ptr` of the one entry that has the port.
    table: Box<[AtomicPtr<Entry<R>>]>,
    /// The entries by first port. This owns them while the table points to them; then the garbage of `grace` does.
    /// On a line of its own, as a [`RangeMap`](super::RangeMap)'s.
    entries: CachePadded<Mutex<BTreeMap<u16, Arc<Entry<R>>>>>,
    grace: Arc<Grace>,
}

impl<R: Send + Sync + 'static> PortMap<R> {
    /// An empty map, for readers of `grace`.
    #[must_use]
    pub fn new(grace: Arc<Grace>) -> Self {
        PortMap {
            table: table(PORTS),
            entries: CachePadded::new(Mutex::new(BTreeMap::new())),
            grace,
        }
    }

    /// The route whose range covers all `len` ports from `port` on.
    ///
    /// # Panics
    /// If the guard is of another registry than the map.
    #[inline(always)]
    #[must_use]
    pub fn find<'g>(&self, port: u16, len: u64, guard: &'g ReadGuard<'_>) -> Option<&'g R> {
        guard.check(&self.grace);
        // Acquire: pairs with the Release in `point`.
        let entry = self.table.get(usize::from(port))?.load(Ordering::Acquire);
        // SAFETY: an entry in the table is freed only by garbage retired after the table stopped pointing to it; `guard` is of
        // the same registry (checked) and cannot quiesce while it is borrowed for `'g`.
        let entry: &'g Entry<R> = unsafe { entry.as_ref() }?;
        entry.range.covers(port, len).then_some(&entry.route)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<Entry<R>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn point(&self, range: PortRange, to: *const Entry<R>) {
        let ports = usize::from(range.first())..=usize::from(range.last());
        for entry in self.table.get(ports).unwrap_or_default() {
            // Release: pairs with the Acquire in `find`.
            entry.store(to.cast_mut(), Ordering::Release);
        }
    }

    /// Adds a route. When this returns, every look-up finds it.
    ///
    /// # Errors
    /// The [`Conflict`] if the range overlaps one that is there.
    pub fn insert(&self, range: PortRange, route: R) -> Result<(), Conflict<PortRange, R>> {
        let mut entries = self.entries();
        // The last that starts before our end is the only one that can reach into the range.
        if let Some((_, last)) = entries.range(..=range.last()).next_back()
            && last.range.overlaps(&range)
        {
            return Err(Conflict::new(last));
        }
        let entry = Arc::new(Ranged { range, route });
        self.point(range, Arc::as_ptr(&entry));
        entries.insert(range.first(), entry);
        Ok(())
    }

    /// Gives this very range another route; false if it is not there.
    pub fn replace(&self, range: PortRange, route: R) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&range.first()) else {
            return false;
        };
        // A part of a range is not a range: half of its ports would go on to lead to what is freed.
        if entry.range != range {
            return false;
        }
        let old = std::mem::replace(entry, Arc::new(Ranged { range, route }));
        self.point(range, Arc::as_ptr(entry));
        self.grace.retire(move || drop(old));
        true
    }

    /// Removes this very range; false if it is not there. Never waits: what its route holds is freed later.
    pub fn remove(&self, range: PortRange) -> bool {
        let mut entries = self.entries();
        let whole = |entry: &Arc<Entry<R>>| entry.range == range;
        if !entries.get(&range.first()).is_some_and(whole) {
            return false;
        }
        let old = entries.remove(&range.first());
        self.point(range, std::ptr::null());
        self.grace.retire(move || drop(old));
        true
    }
}

impl<R: Send + Sync + 'static> Drop for PortMap<R> {
    fn drop(&mut self) {
        // A reader may hold what it found longer than the map lives.
        let entries = std::mem::take(&mut *self.entries());
        self.grace.retire(move || drop(entries));
        self.grace.collect();
    }
}

impl<R: Send + Sync + 'static> fmt::Debug for PortMap<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortMap")
            .field("ranges", &self.entries().len())
            .finish_non_exhaustive()
    }
}
