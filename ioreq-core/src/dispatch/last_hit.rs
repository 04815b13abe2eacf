// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: follows a remembered pointer; the number of the registry of readers says that it still leads somewhere.
//!
//! What a reader found last, for the next access to the same device. It is remembered with the map, and with the registry's number as it
//! was before the look-up; and followed only in that map, and while the number is the same. That suffices:
//!
//! * Let *n* be the number with which an entry was found, and *s* the one that its unlinking was counted as: after its last link
//!   was overwritten, and before whoever unlinked it went on. If *n* were *s* or more, the look-up would have seen the
//!   unlinking (Release/Acquire on the number) and not have found it. So *n < s*: a reader that sees *n* again comes before the
//!   unlinking, as if it had looked the entry up just then, and after a removal has returned nobody sees *n*.
//! * The entry is freed when every reader's word is *s* or more, or off line. This one's is at most *n*: it copies the number into
//!   its word, and numbers never fall. If it was off line when the collector looked, it sees *s* (the fences of going on line
//!   and of collecting). So what it follows stays until it quiesces, by the rule that keeps what links lead to.
//! * A map is told by where its root is, which no two maps share that are there at the same time. One that came to the place of
//!   another is not taken for it: the other's last act was to unlink its entries, and that was counted.
//! * A reader remembers what it found in maps of its own registry only. So what is remembered with a map tells that the
//!   registry is the right one, and need not be checked again.
//!
//! Whatever else is counted meanwhile (other maps' entries, batches of pages) makes readers forget, too: they look up once more.
//!
//! The range is remembered as well, and compared first: where the next access is to another device, nothing waits for the number, whose
//! cache line every change takes away.

use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;

use crate::range::MmioRange;

/// No map's identity.
const NONE: usize = 0;

/// What a reader found last: whose it is, when it was found, and in which map.
pub(super) struct LastHit {
    map: Cell<usize>,
    first: Cell<u64>,
    /// From its first address to the last that is remembered: its own last, but in the range that is all of the space.
    span: Cell<u64>,
    now: Cell<u64>,
    entry: Cell<NonNull<()>>,
}

// SAFETY: numbers and an address; the address is followed only as `get` says, on whatever thread.
unsafe impl Send for LastHit {}

impl LastHit {
    pub(super) fn new() -> Self {
        LastHit {
            map: Cell::new(NONE),
            first: Cell::new(0),
            span: Cell::new(0),
            now: Cell::new(0),
            entry: Cell::new(NonNull::dangling()),
        }
    }

    /// Remembers what was found by links of `map` after the registry's number was read.
    #[inline]
    pub(super) fn set<E>(&self, now: u64, map: usize, range: MmioRange, entry: &E) {
        self.map.set(map);
        self.first.set(range.first());
        self.span
            .set((range.last() - range.first()).min(u64::MAX - 1));
        self.now.set(now);
        self.entry.set(NonNull::from(entry).cast());
    }

    /// What was remembered of this map for all `len` addresses from `addr` on, if it was at this number.
    ///
    /// # Safety
    /// The caller is a reader on line, has read the number from its registry since it last quiesced, and does not quiesce in `'a`.
    /// Whatever is remembered of a map of this identity is an `E` that was found by a reader of the registry that the map retires to,
    /// and is retired as remembered (`Grace::retire_remembered`) after no link leads to it, and before the map ends.
    #[inline]
    pub(super) unsafe fn get<'a, E>(
        &self,
        now: u64,
        map: usize,
        addr: u64,
        len: u64,
    ) -> Option<&'a E> {
        // One comparison for both ends: of two, each could go either way with every access.
        let (offset, span) = (addr.wrapping_sub(self.first.get()), self.span.get());
        // A length of 0 is larger than every span.
        let inside = offset <= span && len.wrapping_sub(1) <= span - offset;
        let same = inside && self.map.get() == map && self.now.get() == now;
        // SAFETY: the same number, so its unlinking has not been counted: it came from a reference to an `E` of this very map, and what is
        // counted later is kept until the caller quiesces (see the module).
        same.then(|| unsafe { self.entry.get().cast::<E>().as_ref() })
    }
}

impl fmt::Debug for LastHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastHit").finish_non_exhaustive()
    }
}
