// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The audit: what a request costs between READY seen and RESP_READY stored, counted rather than claimed.
//!
//! With the feature `audit` the atomics and locks of the request path (`crate::sync`) are wrappers that count, and
//! [`CountingAllocator`] counts allocations, while a request's *window* is open on the thread. All atomic stores of a
//! serving thread are noted by cache line, so that a test can tell whether two workers store to the same one. Without the
//! feature all of this is nothing. For tests: counting is slow.
//!
//! It does not see what goes past `crate::sync`: the counts of a std `Arc`, stores into guest memory (`vm-memory`'s atomics), system
//! calls, and whatever a handler or a hypervisor backend does by itself.

#[cfg(feature = "audit")]
mod allocator;
#[cfg(feature = "audit")]
mod record;

#[cfg(feature = "audit")]
pub use allocator::CountingAllocator;
#[cfg(feature = "audit")]
pub use record::{ThreadReport, report, reset};
#[cfg(feature = "audit")]
pub(crate) use record::{close, fence, lock, open, rmw, store};

/// A request was taken.
#[cfg(not(feature = "audit"))]
#[inline(always)]
pub(crate) fn open() {}

/// It was answered.
#[cfg(not(feature = "audit"))]
#[inline(always)]
pub(crate) fn close() {}
