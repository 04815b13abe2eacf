// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: follows a remembered link and a remembered pointer; the registry of readers keeps both until its number changes.
//!
//! What a reader found last, for the next access to the same device: an entry, and the link that led to it. It is found again while that
//! link still leads to that entry. That is what a look-up asks at the end of its way, so an entry is found while it is linked, and
//! by nobody after its removal has returned.
//!
//! * A link is part of the map's root or of one of its tables. Maps are told by numbers that are never given out again, so the root is there.
//!   Tables and entries are freed when every reader's word is at least *s*, the number that was counted up to after they were unlinked, or
//!   off line. A reader that sees *s*, when it quiesces or goes on line, forgets what it found before. Going on line it looks at the
//!   number after its fence: a collector that did not wait for it has counted up before *his* fence, and that came first.
//! * So while an entry is remembered, no other one comes to its place in memory: if the link leads there, it is the one that was found, and
//!   has the range that was remembered.
//!
//! A change takes no line from readers but those of what is changed. The range is compared first: where the next access is to another
//! device, the link is not looked at.

use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::link::{Entry, Link};

/// Tells a map from all others that are or were there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapId(u64);

impl MapId {
    /// Of no map.
    const NONE: Self = MapId(0);

    pub(super) fn new() -> Self {
        // Not loom's: it lives as long as the process, and orders nothing.
        static LAST: AtomicU64 = AtomicU64::new(0);
        MapId(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// What a reader found last: in which map, and by which link.
pub(super) struct LastHit {
    /// The registry's number, as the reader has it in its word while it is on line.
    number: Cell<u64>,
    map: Cell<MapId>,
    first: Cell<u64>,
    /// From its first address to the last that is remembered: its own last, but in the range that is all of the space.
    span: Cell<u64>,
    /// A `Link<R>` of the map.
    link: Cell<NonNull<()>>,
    /// The `Entry<R>` that it led to.
    entry: Cell<NonNull<()>>,
}

// SAFETY: numbers and addresses; they are followed only as `get` says, on whatever thread.
unsafe impl Send for LastHit {}

impl LastHit {
    pub(super) fn new() -> Self {
        LastHit {
            number: Cell::new(0),
            map: Cell::new(MapId::NONE),
            first: Cell::new(0),
            span: Cell::new(0),
            link: Cell::new(NonNull::dangling()),
            entry: Cell::new(NonNull::dangling()),
        }
    }

    /// The number with which it was renewed last.
    #[inline]
    pub(super) fn number(&self) -> u64 {
        self.number.get()
    }

    /// Forgets what was found, and is at this number from now on.
    #[inline]
    pub(super) fn renew(&self, number: u64) {
        self.number.set(number);
        self.map.set(MapId::NONE);
    }

    /// Remembers the entry that `link` of `map` led to.
    #[inline]
    pub(super) fn set<R>(&self, map: MapId, link: &Link<R>, entry: &Entry<R>) {
        let range = entry.range;
        self.map.set(map);
        self.first.set(range.first());
        self.span
            .set((range.last() - range.first()).min(u64::MAX - 1));
        self.link.set(NonNull::from(link).cast());
        self.entry.set(NonNull::from(entry).cast());
    }

    /// What was remembered of this map, if it is still there and covers all `len` addresses from `addr` on.
    ///
    /// # Safety
    /// The caller is a reader on line with the registry that the map, which has `R`s, retires to, and does not quiesce in `'a`.
    #[inline]
    pub(super) unsafe fn get<'a, R: Send + Sync + 'static>(
        &self,
        map: MapId,
        addr: u64,
        len: u64,
    ) -> Option<&'a Entry<R>> {
        // One comparison for both ends: of two, each could go either way with every access.
        let (offset, span) = (addr.wrapping_sub(self.first.get()), self.span.get());
        // A length of 0 is larger than every span.
        let inside = offset <= span && len.wrapping_sub(1) <= span - offset;
        if !inside || self.map.get() != map {
            return None;
        }
        let entry = self.entry.get().cast::<Entry<R>>();
        // SAFETY: a link of this very map. If it is in a table, that is there: the number has been the same since (see the module).
        let link: &Link<R> = unsafe { self.link.get().cast().as_ref() };
        if !link.leads_to(entry.as_ptr()) {
            return None;
        }
        // SAFETY: it has not been freed, since the number has been the same; and as it is linked now, it stays until the caller quiesces.
        Some(unsafe { entry.as_ref() })
    }
}

impl fmt::Debug for LastHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastHit").finish_non_exhaustive()
    }
}
