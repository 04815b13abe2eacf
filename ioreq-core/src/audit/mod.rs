// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The audit: what a request costs between READY seen and RESP_READY stored, counted rather than claimed.
//!
//! With the feature `audit` the atomics and locks of the request path (`crate::sync`) are wrappers that count, and
//! [`CountingAllocator`] counts allocations, while a request's *window* is open on the thread. All atomic stores of a
//! serving thread are noted by cache line, so that a test can tell whether two workers store to the same one. Without the
//! feature all of this is nothing. For tests: counting is slow.
//!
//! With the feature `callgrind` instead, opening and closing a window tells Valgrind's callgrind to start and to stop counting
//! instructions (`cargo xtask bench --instructions`).
//!
//! It does not see what goes past `crate::sync`: the counts of a std `Arc`, stores into guest memory (`vm-memory`'s atomics), system
//! calls, and whatever a handler or a hypervisor backend does by itself.

#[cfg(feature = "audit")]
mod allocator;
#[cfg(all(feature = "callgrind", not(feature = "audit")))]
mod callgrind;
#[cfg(feature = "audit")]
mod record;

#[cfg(feature = "audit")]
pub use allocator::CountingAllocator;
#[cfg(feature = "audit")]
pub use record::{ThreadReport, report, reset};
#[cfg(feature = "audit")]
pub(crate) use record::{close, fence, lock, open, rmw, store};

#[cfg(all(feature = "callgrind", not(feature = "audit")))]
pub use callgrind::empty_window;
#[cfg(all(feature = "callgrind", not(feature = "audit")))]
pub(crate) use callgrind::{close, open};

/// A request was seen.
#[cfg(not(any(feature = "audit", feature = "callgrind")))]
#[inline(always)]
pub(crate) fn open() {}

/// It was answered.
#[cfg(not(any(feature = "audit", feature = "callgrind")))]
#[inline(always)]
pub(crate) fn close() {}
