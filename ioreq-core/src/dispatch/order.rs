// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The order of a tracked page: one byte that says who may serve a write to it.
//!
//! Whoever holds it is the only one to free it, so that releasing is a plain store: a request costs one atomic read-modify-write, or
//! none, if the order was [kept](super::kept) from the request before. Others may add to a held byte that they want it; that
//! is lost when it is freed, and needs no answer then. Contention is rare (two vCPUs writing one page in the same instant) and
//! short (a handler), so waiting is spinning, then sleeping in short steps, without a queue; see [`turn`](super::turn).

use std::fmt;
use std::mem::ManuallyDrop;

use crossbeam::utils::Backoff;

use super::leaf::Page;
use super::turn::Turn;
use crate::sync::atomic::{AtomicU8, Ordering};

/// Nobody serves the page.
const FREE: u8 = 0;
/// A write to the page is being served, or the order is kept for the next.
pub(super) const HELD: u8 = 1;
/// The page is being unmarked: its writes are left unanswered.
const PARKED: u8 = 2;
/// Besides [`HELD`]: somebody waits for it.
const WAITED_FOR: u8 = 4;
/// Besides [`HELD`]: it should not be kept, for the page or the map is to go. Nobody waits.
const CALLED_IN: u8 = 8;

/// The page is being unmarked: come back later.
///
/// ```
/// assert_eq!(format!("{:?}", ioreq_core::dispatch::Parked), "Parked");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parked;

/// The page's order, held. Dropping it lets the next write through.
///
/// ```
/// use ioreq_core::dispatch::{Counted, Grace, PageMap};
/// use ioreq_core::{Gfn, GfnRange};
///
/// let grace = Grace::new();
/// let map = PageMap::new(Gfn(0xffff), grace.clone())?;
/// map.insert(GfnRange::sized(0x10, 4)?, &Counted::new("a route"))?;
///
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// let page = map.find(Gfn(0x10), &guard).expect("inserted above");
/// let order = page.lock().expect("not parked");
/// // Whatever is derived from the page's contents now agrees with what is stored.
/// drop(order);
/// assert!(page.lock().is_ok(), "free again");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the order is held while this lives"]
pub struct Locked<'g, R> {
    page: Page<'g, R>,
    /// It was kept from the last write on.
    was_kept: bool,
}

impl<R> Drop for Locked<'_, R> {
    #[inline(always)]
    fn drop(&mut self) {
        free(self.page.order());
    }
}

impl<R> Locked<'_, R> {
    /// In place of dropping the order, after a write: this thread's next write to the page has it at hand. It is kept only from the second
    /// write to a page on, with none to others in between, and only while the page has a route; otherwise it is as if it were dropped.
    ///
    /// Nobody else can write to the page until the reader lets go ([`ReadGuard`](super::ReadGuard) says when). So quiesce after every
    /// request, and call [`ReadGuard::let_go`](super::ReadGuard::let_go) before anything that others must not wait for.
    #[inline(always)]
    pub fn keep(self) {
        let order = ManuallyDrop::new(self);
        let page = &order.page;
        if order.was_kept {
            page.kept().put_back(page.order());
        // With a route, seen after the taking, the order stays where it is (see `kept`).
        } else if page.is_linked() {
            page.kept().keep(page.order());
        } else {
            free(page.order());
        }
    }
}

impl<R> fmt::Debug for Locked<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked").finish_non_exhaustive()
    }
}

/// Of an order whose leaf is freed. In models only.
#[cfg(loom)]
const BURIED: u8 = 255;

#[cfg(loom)]
pub(super) fn bury(byte: &AtomicU8) {
    byte.store(BURIED, Ordering::Relaxed);
}

/// Whether the order, which is held, is wanted by somebody else.
#[inline(always)]
pub(super) fn is_wanted(byte: &AtomicU8) -> bool {
    // Relaxed: in time for those who wait. For the end of a map, the registry's number was read before, which orders it.
    let now = byte.load(Ordering::Relaxed);
    #[cfg(loom)]
    assert_ne!(now, BURIED, "freed under its keeper");
    now != HELD
}

/// Lets go of an order that is held.
#[inline]
pub(super) fn free(byte: &AtomicU8) {
    #[cfg(loom)]
    assert_ne!(
        byte.load(Ordering::Relaxed),
        BURIED,
        "freed under its holder"
    );
    // Release: pairs with the Acquire of the next `lock` or `park`: the store and the handler's work are seen by it.
    #[cfg(not(loom))]
    byte.store(FREE, Ordering::Release);
    // To loom a store and another thread's read-modify-write (`say`) may stay without an order for ever.
    #[cfg(loom)]
    byte.swap(FREE, Ordering::Release);
}

#[inline(always)]
pub(super) fn lock<R>(page: Page<'_, R>) -> Result<Locked<'_, R>, Parked> {
    // Held since the last write: nobody else had it, and there is nothing to see.
    let was_kept = page.kept().take(page.order());
    if !was_kept {
        match page.kept().turn_to(page.order()) {
            None => take(page.order())?,
            Some(turn) => take_slow(page.order(), turn)?,
        }
    }
    Ok(Locked { page, was_kept })
}

#[inline(always)]
fn take(byte: &AtomicU8) -> Result<(), Parked> {
    // Acquire: pairs with the Release of the last holder, and of `unpark`. SeqCst besides: the order is taken before the
    // route is looked at, or the leaf could be unlinked between (see `PageMap::unlink_if_empty`).
    match byte.compare_exchange(FREE, HELD, Ordering::SeqCst, Ordering::Relaxed) {
        Ok(_) => {
            taken();
            Ok(())
        }
        Err(PARKED) => Err(Parked),
        Err(_) => take_slow(byte, Turn::first()),
    }
}

#[cold]
#[inline(never)]
fn take_slow(byte: &AtomicU8, mut turn: Turn) -> Result<(), Parked> {
    let backoff = Backoff::new();
    loop {
        match look(byte) {
            PARKED => return Err(Parked),
            FREE => {
                // As in `take`; weak, because this is a loop.
                let take =
                    || byte.compare_exchange_weak(FREE, HELD, Ordering::SeqCst, Ordering::Relaxed);
                if turn.may_take() && take().is_ok() {
                    taken();
                    return Ok(());
                }
            }
            held => {
                if turn.may_ask() && held & WAITED_FOR == 0 {
                    say(byte, WAITED_FOR);
                    // It comes soon.
                    backoff.reset();
                }
            }
        }
        turn.wait(&backoff);
    }
}

/// What somebody who waits sees.
fn look(byte: &AtomicU8) -> u8 {
    // Relaxed: what follows from it is done by a compare-exchange. In models a load may see what was long ago, again and again.
    if cfg!(loom) {
        byte.compare_exchange(FREE, FREE, Ordering::Relaxed, Ordering::Relaxed)
            .unwrap_or_else(|now| now)
    } else {
        byte.load(Ordering::Relaxed)
    }
}

/// Adds that to the byte, if it is held.
fn say(byte: &AtomicU8, what: u8) {
    // Relaxed: there is nothing to see but that. A byte that is freed meanwhile needs none of it.
    let _not_held = byte.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
        (now & HELD != 0 && now & what == 0).then_some(now | what)
    });
}

/// Whoever keeps the order lets go of it soon. Nobody waits for that.
pub(super) fn call_in(byte: &AtomicU8) {
    say(byte, CALLED_IN);
}

/// Of an order that is held: whether somebody waits for it.
#[cfg(not(loom))]
pub(super) fn is_waited_for(byte: &AtomicU8) -> bool {
    // Relaxed: as in `say`.
    byte.load(Ordering::Relaxed) & WAITED_FOR != 0
}

#[inline(always)]
fn taken() {
    // Loom takes SeqCst accesses for AcqRel ones; its fences are whole.
    #[cfg(loom)]
    crate::sync::atomic::fence(Ordering::SeqCst);
}

/// Leaves the page's writes unanswered from now on; false while one is being served, or while the order is kept, which it is not
/// for long then.
pub(super) fn park(byte: &AtomicU8) -> bool {
    // AcqRel: Acquire pairs with the last holder's Release: what it noted of its request is seen by the unmark protocol.
    let parked = byte.compare_exchange(FREE, PARKED, Ordering::AcqRel, Ordering::Relaxed);
    if parked.is_err() {
        call_in(byte);
    }
    parked.is_ok()
}

/// Ends parking. Nothing happens to a byte that is not parked.
pub(super) fn unpark(byte: &AtomicU8) {
    // Release: pairs with the Acquire in `lock`.
    let _not_parked = byte.compare_exchange(PARKED, FREE, Ordering::Release, Ordering::Relaxed);
}

pub(super) fn is_parked(byte: &AtomicU8) -> bool {
    // Acquire: pairs with `unpark`; whoever sees the page free may serve it.
    byte.load(Ordering::Acquire) == PARKED
}

/// Whether nobody holds the order or has parked the page.
pub(super) fn is_free(byte: &AtomicU8) -> bool {
    // Acquire: pairs with the holder's Release.
    byte.load(Ordering::Acquire) == FREE
}
