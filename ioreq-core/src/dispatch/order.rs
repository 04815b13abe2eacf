// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The order of a tracked page: one byte that says who may serve a write to it.
//!
//! Whoever holds it is the only one to write the byte, so that releasing is a plain store: a request costs one atomic
//! read-modify-write. Contention is rare (two vCPUs writing one page in the same instant) and short (a handler), so waiting is
//! standing back without touching the byte, then sleeping in short steps, without a queue.

use crossbeam::utils::Backoff;

use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::pause;

/// Nobody serves the page.
pub(super) const FREE: u8 = 0;
/// A write to the page is being served.
const HELD: u8 = 1;
/// The page is being unmarked: its writes are left unanswered.
const PARKED: u8 = 2;

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
#[derive(Debug)]
#[must_use = "the order is held while this lives"]
pub struct Locked<'g>(&'g AtomicU8);

impl Drop for Locked<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: pairs with the Acquire of the next `lock` or `park`: the store and the handler's work are seen by it.
        self.0.store(FREE, Ordering::Release);
    }
}

#[inline]
pub(super) fn lock(byte: &AtomicU8) -> Result<Locked<'_>, Parked> {
    // Acquire: pairs with the Release of the last holder, and of `unpark`. SeqCst besides: the order is taken before the
    // route is looked at, or the leaf could be unlinked between (see `PageMap::unlink_if_free`).
    match byte.compare_exchange(FREE, HELD, Ordering::SeqCst, Ordering::Relaxed) {
        Ok(_) => Ok(taken(byte)),
        Err(PARKED) => Err(Parked),
        Err(_) => lock_slow(byte),
    }
}

/// How long to wait before another try. Each try takes the byte's line from whoever holds the order, who then takes longer than
/// without: this way he serves some writes in between, if he has any. By the clock, because a turn of waiting is 5 ns on one processor and
/// many times that on another.
#[cfg(not(loom))]
const STAND_BACK: std::time::Duration = std::time::Duration::from_micros(2);

/// Waits for that long without touching anything that others use.
#[cfg(not(loom))]
fn stand_back() {
    let begun = std::time::Instant::now();
    while begun.elapsed() < STAND_BACK {
        std::hint::spin_loop();
    }
}

#[cold]
fn lock_slow(byte: &AtomicU8) -> Result<Locked<'_>, Parked> {
    let backoff = Backoff::new();
    loop {
        #[cfg(not(loom))]
        stand_back();
        // As in `lock`; weak, because this is a loop.
        match byte.compare_exchange_weak(FREE, HELD, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return Ok(taken(byte)),
            Err(PARKED) => return Err(Parked),
            Err(_) => pause(&backoff),
        }
    }
}

fn taken(byte: &AtomicU8) -> Locked<'_> {
    // Loom takes SeqCst accesses for AcqRel ones; its fences are whole.
    #[cfg(loom)]
    crate::sync::atomic::fence(Ordering::SeqCst);
    Locked(byte)
}

/// Leaves the page's writes unanswered from now on; false while one is being served.
pub(super) fn park(byte: &AtomicU8) -> bool {
    // AcqRel: Acquire pairs with the last holder's Release: what it noted of its request is seen by the unmark protocol.
    byte.compare_exchange(FREE, PARKED, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

/// Ends parking; false, and nothing happens, if the byte is not parked.
pub(super) fn unpark(byte: &AtomicU8) -> bool {
    // Release: pairs with the Acquire in `lock`.
    byte.compare_exchange(PARKED, FREE, Ordering::Release, Ordering::Relaxed)
        .is_ok()
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
