// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: dereferences atomic pointers to routes; the registry of readers keeps what they point to.
//!
//! Ports: a table of 65536 pointers, mapped where it is touched, and the range that each route covers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};

use super::grace::{Grace, ReadGuard};
use super::range_map::Conflict;
use super::zeroed::table;
use crate::range::PortRange;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Ports of the x86 I/O space.
const PORTS: usize = if cfg!(loom) { 4 } else { 1 << 16 };

/// What a port's pointer leads to.
struct Entry<R> {
    range: PortRange,
    route: Arc<R>,
}

/// Routes of port ranges that do not overlap.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_core::{PortRange, dispatch::{Grace, PortMap}};
/// let grace = Grace::new();
/// let ports = PortMap::new(grace.clone());
/// let _ = ports.insert(PortRange::new(0x3f8, 0x3ff)?, &Arc::new("uart"));
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// assert_eq!(ports.find(0x3fc, 4, &guard), Some(&"uart"));
/// assert_eq!(ports.find(0x3fd, 4, &guard), None); // not wholly inside
/// # Ok::<(), ioreq_core::RangeError>(())
/// ```
pub struct PortMap<R: Send + Sync + 'static> {
    table: Box<[AtomicPtr<Entry<R>>]>,
    /// The entries that the table points to, by first port: their owner until they are retired.
    entries: Mutex<BTreeMap<u16, *mut Entry<R>>>,
    grace: Arc<Grace>,
}

// SAFETY: the raw pointers are owned by the map like boxes, of an `Entry<R>` that is Send + Sync because `R` is.
unsafe impl<R: Send + Sync + 'static> Send for PortMap<R> {}
// SAFETY: as above; shared access goes through atomics and the lock.
unsafe impl<R: Send + Sync + 'static> Sync for PortMap<R> {}

impl<R: Send + Sync + 'static> PortMap<R> {
    /// An empty map.
    #[must_use]
    pub fn new(grace: Arc<Grace>) -> Self {
        PortMap {
            table: table(PORTS),
            entries: Mutex::new(BTreeMap::new()),
            grace,
        }
    }

    /// The route whose range covers all `len` ports from `port` on.
    #[inline]
    #[must_use]
    pub fn find<'g>(&self, port: u16, len: u64, guard: &'g ReadGuard<'_>) -> Option<&'g R> {
        guard.check(&self.grace);
        // Acquire: pairs with the Release in `point`.
        let entry = self.table.get(usize::from(port))?.load(Ordering::Acquire);
        // SAFETY: an entry in the table is freed only by garbage retired after the table stopped pointing to it; `guard` is of
        // the same registry (checked) and cannot quiesce while it is borrowed for `'g`.
        let entry: &'g Entry<R> = unsafe { entry.as_ref() }?;
        entry.range.covers(port, len).then_some(&*entry.route)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u16, *mut Entry<R>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn point(&self, range: PortRange, to: *mut Entry<R>) {
        let ports = usize::from(range.first())..=usize::from(range.last());
        for entry in self.table.get(ports).unwrap_or_default() {
            // Release: pairs with the Acquire in `find`.
            entry.store(to, Ordering::Release);
        }
    }

    /// Adds a route.
    ///
    /// # Errors
    /// The [`Conflict`] if the range overlaps one that is there.
    pub fn insert(&self, range: PortRange, route: &Arc<R>) -> Result<(), Conflict<R>> {
        let mut entries = self.entries();
        if let Some((_, last)) = entries.range(..=range.last()).next_back() {
            // SAFETY: entries in the list are alive: they leave it before they are retired, under the lock that we hold.
            let last = unsafe { &**last };
            if last.range.overlaps(&range) {
                return Err(Conflict::new(&last.route));
            }
        }
        let entry = Box::into_raw(Box::new(Entry {
            range,
            route: Arc::clone(route),
        }));
        entries.insert(range.first(), entry);
        self.point(range, entry);
        Ok(())
    }

    /// Gives the very range another route; false if it is not there.
    pub fn replace(&self, range: PortRange, route: &Arc<R>) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&range.first()) else {
            return false;
        };
        let new = Box::into_raw(Box::new(Entry {
            range,
            route: Arc::clone(route),
        }));
        let old = std::mem::replace(entry, new);
        self.point(range, new);
        self.retire(old);
        true
    }

    /// Removes the very range; false if it is not there.
    pub fn remove(&self, range: PortRange) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.remove(&range.first()) else {
            return false;
        };
        self.point(range, std::ptr::null_mut());
        self.retire(entry);
        true
    }

    fn retire(&self, entry: *mut Entry<R>) {
        // SAFETY: from `Box::into_raw`, taken out of the list by its one owner; the table does not point to it any more.
        let entry = unsafe { Box::from_raw(entry) };
        self.grace.retire(move || drop(entry));
    }
}

impl<R: Send + Sync + 'static> Drop for PortMap<R> {
    fn drop(&mut self) {
        let entries = std::mem::take(&mut *self.entries());
        for entry in entries.into_values() {
            self.retire(entry);
        }
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
