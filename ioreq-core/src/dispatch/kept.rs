// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: follows a remembered pointer to an order; that the order is held says that it still leads somewhere.
//!
//! The order of the page that a reader served last, kept from one write to the next, so that one page that is written again and
//! again by one worker costs no read-modify-write.
//!
//! To keep an order is to leave its byte held. From the read-modify-write that took it to the store that lets it go it is never
//! free, so to others it is as if one long write were served: they cannot have it, and its leaf stays. Whoever wants it says so in
//! the byte. The keeper lets go
//!
//! * in [`quiesce`](super::ReadGuard::quiesce), if the byte says that it is wanted;
//! * when it takes another page's order, looks into another map, is told to ([`ReadGuard::let_go`](super::ReadGuard::let_go)), or its
//!   guard ends: whatever the byte says.
//!
//! So a kept order makes others wait until the keeper's next look, or for a write to the same page, and for nothing else.
//!
//! **Why the pointer leads somewhere.** An order is kept only if the page had a route after the order was taken. Of the
//! taking and an unlinker's fence one is first in the order of SeqCst operations (see `PageMap::unlink_if_empty`): were it the
//! fence, the route would be gone to the keeper. So it is the taking, every unlinker since sees the byte held, and leaves the leaf.
//! Only the end of the map takes leaves in which orders are held. It says first, in each of those bytes, that it is wanted, and then
//! retires them, which counts the registry's number up. Quiescing reads that number first, then the byte, and then announces
//! what it read: a reader that announces a number of that time or later has let go.

use std::cell::Cell;
use std::fmt;
use std::ptr;

use super::order;
#[cfg(not(loom))]
use super::order::HELD;
use super::turn::Turn;
use crate::sync::atomic::AtomicU8;

/// Stands for an order that was given up, which is not to be followed any more: nobody's, and never free.
#[cfg(not(loom))]
static GIVEN_UP: AtomicU8 = AtomicU8::new(HELD);

/// A reader's memory of the order of the page that it served last.
pub(super) struct Kept {
    /// The order that is kept, or [`GIVEN_UP`], or null.
    now: Cell<*const AtomicU8>,
    /// The order that was let through last. Never followed.
    last: Cell<*const AtomicU8>,
    /// How to wait for it, after it was given up.
    turn: Cell<Turn>,
}

// SAFETY: an address that is followed as the module says, on whatever thread the reader is.
unsafe impl Send for Kept {}

impl Kept {
    pub(super) fn new() -> Self {
        Kept {
            now: Cell::new(ptr::null()),
            last: Cell::new(ptr::null()),
            turn: Cell::new(Turn::first()),
        }
    }

    /// Takes out what is kept, if it is this order. It is held then, for the caller to free or to keep again.
    #[inline(always)]
    pub(super) fn take(&self, byte: &AtomicU8) -> bool {
        let is_kept = ptr::eq(self.now.get(), byte);
        if is_kept {
            self.now.set(ptr::null());
        }
        is_kept
    }

    /// Before another order is taken: lets go of what is kept. Gives how to wait for that other, if it was given up.
    #[inline(always)]
    pub(super) fn turn_to(&self, byte: &AtomicU8) -> Option<Turn> {
        if self.now.get().is_null() {
            return None;
        }
        self.turn_away(byte)
    }

    #[cold]
    #[inline(never)]
    fn turn_away(&self, byte: &AtomicU8) -> Option<Turn> {
        let gave_up = self.gave_up();
        self.let_go();
        (gave_up && ptr::eq(self.last.get(), byte)).then(|| self.turn.get())
    }

    /// Keeps again what was [taken](Self::take).
    #[inline(always)]
    pub(super) fn put_back(&self, byte: &AtomicU8) {
        // Another one is there only where orders are taken one within the other.
        if !self.now.get().is_null() {
            self.let_go();
        }
        self.now.set(byte);
    }

    /// After a write: keeps the order, if it was this page's the time before, too; otherwise it is free. A page that is written to once is
    /// not worth it.
    ///
    /// The caller holds the order, and the page had a route since.
    #[inline(always)]
    pub(super) fn keep(&self, byte: &AtomicU8) {
        if ptr::eq(self.last.get(), byte) {
            self.put_back(byte);
        } else {
            self.last.set(byte);
            order::free(byte);
        }
    }

    /// Lets go of what is kept.
    #[inline(always)]
    pub(super) fn let_go_of_any(&self) {
        if !self.now.get().is_null() {
            self.let_go();
        }
    }

    #[cold]
    #[inline(never)]
    fn let_go(&self) {
        let gave_up = self.gave_up();
        let byte = self.now.replace(ptr::null());
        if !gave_up {
            // SAFETY: if there is one it is kept, and so held, until this store (see the module).
            if let Some(byte) = unsafe { byte.as_ref() } {
                order::free(byte);
            }
        }
    }

    /// Lets go of what is kept, if it is wanted.
    #[inline(always)]
    pub(super) fn let_go_if_wanted(&self) {
        // SAFETY: if there is one it is kept, and so held, until it is given up below (see the module), or it is a static.
        let byte = unsafe { self.now.get().as_ref() };
        if let Some(byte) = byte
            && order::is_wanted(byte)
        {
            self.give_up(byte);
        }
    }

    #[cold]
    #[inline(never)]
    fn give_up(&self, byte: &AtomicU8) {
        self.now.set(ptr::null());
        // Loom has no clock. Turns decide how long something takes, not what is right.
        #[cfg(not(loom))]
        if order::is_waited_for(byte) {
            self.turn.set(Turn::after_giving_up());
            self.now.set(&raw const GIVEN_UP);
        }
        order::free(byte);
    }

    #[cfg(not(loom))]
    fn gave_up(&self) -> bool {
        ptr::eq(self.now.get(), &raw const GIVEN_UP)
    }

    #[cfg(loom)]
    fn gave_up(&self) -> bool {
        false
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}
