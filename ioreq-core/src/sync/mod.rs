// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The atomics and locks that the request path uses, in one place, so that loom models, the audit build and the real
//! thing run the same source. Code on a request's way takes its atomics and locks from here and nowhere else.

#[cfg(all(feature = "audit", not(loom)))]
mod audited;

#[cfg(all(feature = "audit", not(loom)))]
pub(crate) use audited::{Mutex, MutexGuard, atomic};
#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(any(loom, feature = "audit")))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

/// Atomics in memory that others made: the pages shared with the hypervisor. Loom has none there (its models bring memory of
/// their own); the audit sees them.
pub(crate) mod foreign {
    #[cfg(all(feature = "audit", not(loom)))]
    pub(crate) use super::audited::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
    #[cfg(any(loom, not(feature = "audit")))]
    pub(crate) use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
}

use crossbeam::utils::Backoff;

/// Waits a little for another thread: spins, then yields, then sleeps in short steps.
#[cfg(not(loom))]
pub(crate) fn pause(backoff: &Backoff) {
    if backoff.is_completed() {
        std::thread::sleep(std::time::Duration::from_micros(20));
    } else {
        backoff.snooze();
    }
}

/// Lets another thread of the model run.
#[cfg(loom)]
pub(crate) fn pause(_: &Backoff) {
    loom::thread::yield_now();
}
