// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: turns pointers in leaves back into the `Arc`s that they came from.
//!
//! A route that many tracked pages share: it counts its pages, so that adding a million of them counts once.

use std::ops::Deref;
use std::sync::Arc;

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A route with the number of pages that lead to it. Belongs to the first [`PageMap`](super::PageMap) that it is given to.
///
/// ```
/// use ioreq_core::dispatch::Counted;
/// let route = Counted::new("ppgtt");
/// assert_eq!(route.len(), 5); // derefs to the route
/// ```
#[derive(Debug)]
pub struct Counted<R> {
    route: R,
    /// Pages that lead here; changed under the lock of the map it belongs to. While it is not 0, the map owns one strong
    /// count.
    pages: AtomicU64,
    /// The map it belongs to; 0 at first, then never changed.
    owner: AtomicUsize,
}

impl<R> Counted<R> {
    /// A route to which no page leads yet.
    pub fn new(route: R) -> Arc<Self> {
        Arc::new(Counted {
            route,
            pages: AtomicU64::new(0),
            owner: AtomicUsize::new(0),
        })
    }

    /// The route alone.
    #[inline]
    pub(super) fn route(&self) -> &R {
        &self.route
    }

    /// Makes the route belong to the map with this identity; false if it belongs to another.
    pub(super) fn belong(&self, map: usize) -> bool {
        // Relaxed, all of it: only who is first matters. Looked at before: nearly always it belongs to this map already.
        match self.owner.load(Ordering::Relaxed) {
            0 => {
                let first =
                    self.owner
                        .compare_exchange(0, map, Ordering::Relaxed, Ordering::Relaxed);
                first.map_or_else(|owner| owner == map, |_| true)
            }
            owner => owner == map,
        }
    }

    /// So many pages more, at least one, lead here: what to write into their entries. Under the lock of the map it belongs to.
    pub(super) fn hold(self: &Arc<Self>, pages: u64) -> *mut Self {
        // Relaxed: under the map's lock.
        let before = self.pages.load(Ordering::Relaxed);
        self.pages.store(before + pages, Ordering::Relaxed);
        if before == 0 {
            // The map's strong count; `let_go` gives it back.
            std::mem::forget(Arc::clone(self));
        }
        Arc::as_ptr(self).cast_mut()
    }

    /// So many pages, whose entries have been overwritten, lead here no more; after the last one the map's strong count comes
    /// back, to be given up when no reader can look at the route.
    ///
    /// # Safety
    /// `this` was in that many entries of the map whose lock the caller holds, so that their [`hold`](Self::hold) still counts.
    pub(super) unsafe fn let_go(this: *mut Self, pages: u64) -> Option<Arc<Self>> {
        // SAFETY: held for those pages (the caller), so the map's strong count keeps it.
        let counted = unsafe { &*this };
        // Relaxed: under the map's lock.
        let left = counted.pages.load(Ordering::Relaxed) - pages;
        counted.pages.store(left, Ordering::Relaxed);
        // SAFETY: `this` came from `Arc::as_ptr` in `hold`, with the strong count that it forgot; that is given back once.
        (left == 0).then(|| unsafe { Arc::from_raw(this.cast_const()) })
    }

    /// One more owner of a route that is in an entry.
    ///
    /// # Safety
    /// `this` is in an entry of a map whose lock the caller holds.
    pub(super) unsafe fn share(this: *mut Self) -> Arc<Self> {
        let this = this.cast_const();
        // SAFETY: from `Arc::as_ptr`, and the map's strong count is above 0 while it is in an entry.
        unsafe { Arc::increment_strong_count(this) };
        // SAFETY: the count just added is this value's.
        unsafe { Arc::from_raw(this) }
    }
}

impl<R> Deref for Counted<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.route
    }
}
