// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: dereferences an atomic pointer; the registry of readers keeps what it points to.
//!
//! A value that readers look at while it is replaced as a whole.

use std::fmt;
use std::sync::Arc;

use super::grace::{Grace, ReadGuard};
use crate::sync::atomic::{AtomicPtr, Ordering};

/// A `T`, replaced by publishing a new one.
pub(super) struct Published<T: Send + Sync + 'static> {
    /// From `Box::into_raw`, never null; owned by this value until replaced, then by the garbage of `grace`.
    current: AtomicPtr<T>,
    grace: Arc<Grace>,
}

impl<T: Send + Sync + 'static> Published<T> {
    pub(super) fn new(value: T, grace: Arc<Grace>) -> Self {
        Published {
            current: AtomicPtr::new(Box::into_raw(Box::new(value))),
            grace,
        }
    }

    /// The current value.
    #[inline]
    pub(super) fn load<'g>(&self, guard: &'g ReadGuard<'_>) -> &'g T {
        guard.check(&self.grace);
        // Acquire: pairs with the Release in `publish`.
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: `current` came from `Box::into_raw`; it is freed only by garbage retired after it was unlinked, which runs
        // when every reader of this registry that was on line has quiesced. `guard` is of this registry (checked), and
        // the reference ends before it can quiesce (`quiesce` borrows it exclusively).
        unsafe { &*current }
    }

    /// Replaces the value; the old one is dropped when no reader can hold it.
    pub(super) fn publish(&self, value: T) {
        let new = Box::into_raw(Box::new(value));
        // AcqRel: Release pairs with the Acquire in `load`; Acquire with the publisher of the old value, which we free.
        let old = self.current.swap(new, Ordering::AcqRel);
        // SAFETY: `old` came from `Box::into_raw` and was swapped out by nobody else: this is its only owner.
        let old = unsafe { Box::from_raw(old) };
        self.grace.retire(move || drop(old));
    }
}

impl<T: Send + Sync + 'static> Drop for Published<T> {
    fn drop(&mut self) {
        // Relaxed: `&mut self`, nobody else is here.
        let current = self.current.load(Ordering::Relaxed);
        // Readers may still hold the value under their guard, which outlives this borrow-checked-away owner: retire it too.
        // SAFETY: from `Box::into_raw`, and owned by this value alone.
        let current = unsafe { Box::from_raw(current) };
        self.grace.retire(move || drop(current));
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").finish_non_exhaustive()
    }
}
