// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: follows a remembered pointer; the map's edition and the registry of readers say that it still leads somewhere.
//!
//! What a reader found last, for the next access to the same device. A map has an *edition*, a number that no other map has or had,
//! and takes a new one after it unlinked an entry and before it retires it. So an edition is to what is remembered what a link
//! is to what it leads to: a reader that sees the edition with which it found something is one from whom that was not
//! unlinked, and it stays until the reader quiesces or goes off line. What is remembered in between is not followed.

use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64 as Counter;

use crate::sync::atomic::{AtomicU64, Ordering};

/// Editions handed out. Not of the models: nothing but the number is taken from it.
static EDITIONS: Counter = Counter::new(1);

/// No map's.
const NONE: u64 = 0;

/// A map's edition.
pub(super) struct Edition(AtomicU64);

impl Edition {
    pub(super) fn new() -> Self {
        Edition(AtomicU64::new(Self::fresh()))
    }

    fn fresh() -> u64 {
        // Relaxed: a number, and each only once.
        EDITIONS.fetch_add(1, Ordering::Relaxed)
    }

    /// What readers remember is forgotten. Between unlinking and retiring.
    pub(super) fn renew(&self) {
        // Release: pairs with the Acquire in `get`: whoever sees it does not find what was unlinked before.
        self.0.store(Self::fresh(), Ordering::Release);
    }

    #[inline]
    pub(super) fn get(&self) -> u64 {
        // Acquire: pairs with the Release in `renew`.
        self.0.load(Ordering::Acquire)
    }
}

/// What a reader found last, in a map of that edition.
pub(super) struct LastHit {
    edition: Cell<u64>,
    entry: Cell<NonNull<()>>,
}

// SAFETY: a number and an address; the address is followed only as `get` says, on whatever thread.
unsafe impl Send for LastHit {}

impl LastHit {
    pub(super) fn new() -> Self {
        LastHit {
            edition: Cell::new(NONE),
            entry: Cell::new(NonNull::dangling()),
        }
    }

    #[inline]
    pub(super) fn set<E>(&self, edition: u64, entry: &E) {
        self.edition.set(edition);
        self.entry.set(NonNull::from(entry).cast());
    }

    /// What was remembered with this edition.
    ///
    /// # Safety
    /// The caller is a reader on line with the registry that the map of this edition retires to, has read the edition from the map
    /// since it last quiesced, and does not quiesce in `'a`; whatever is remembered with an edition of that map is an `E`.
    #[inline]
    pub(super) unsafe fn get<'a, E>(&self, edition: u64) -> Option<&'a E> {
        // SAFETY: an edition is of one map, so this came from a reference to an `E` of it, which had not been unlinked when the
        // edition was read: the caller keeps it.
        (self.edition.get() == edition).then(|| unsafe { self.entry.get().cast::<E>().as_ref() })
    }
}

impl fmt::Debug for LastHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastHit").finish_non_exhaustive()
    }
}
