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
    #[cfg(not(any(loom, feature = "audit")))]
    pub(crate) use std::sync::atomic::AtomicU8;
    #[cfg(any(loom, not(feature = "audit")))]
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

use crossbeam::utils::Backoff;

/// A queue with many writers: crossbeam's, which loom does not see, or in models one that it does.
#[cfg(not(loom))]
pub(crate) use crossbeam::queue::SegQueue;
#[cfg(loom)]
pub(crate) use queue::SegQueue;

#[cfg(loom)]
mod queue {
    use std::collections::VecDeque;
    use std::sync::PoisonError;

    /// Stands in for `crossbeam::queue::SegQueue`.
    #[derive(Debug)]
    pub(crate) struct SegQueue<T>(super::Mutex<VecDeque<T>>);

    impl<T> SegQueue<T> {
        pub(crate) fn new() -> Self {
            SegQueue(super::Mutex::new(VecDeque::new()))
        }
        fn lock(&self) -> super::MutexGuard<'_, VecDeque<T>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
        pub(crate) fn push(&self, value: T) {
            self.lock().push_back(value);
        }
        pub(crate) fn pop(&self) -> Option<T> {
            self.lock().pop_front()
        }
    }
}

/// Waits a little for another thread: spins, then yields, then sleeps in short steps.
#[cfg(not(loom))]
pub(crate) fn pause(backoff: &Backoff) {
    if backoff.is_completed() {
        std::thread::sleep(std::time::Duration::from_micros(20));
    } else {
        backoff.snooze();
    }
}

/// Sleeps for so long: between two looks at what other threads do.
#[cfg(not(loom))]
pub(crate) fn nap(time: std::time::Duration) {
    std::thread::sleep(time);
}

/// Lets another thread of the model run.
#[cfg(loom)]
pub(crate) fn nap(_: std::time::Duration) {
    loom::thread::yield_now();
}

/// Lets another thread of the model run.
#[cfg(loom)]
pub(crate) fn pause(_: &Backoff) {
    loom::thread::yield_now();
}
