// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A counter with one writer, and arrays of things per worker.

use crossbeam::utils::CachePadded;

use crate::sync::atomic::{AtomicU64, Ordering};

/// A counter that one thread at a time adds to and anybody reads: a plain load and store, no read-modify-write.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the worker that owns the counter calls this; with two writers counts would get lost.
    pub(crate) fn add(&self, n: u64) {
        // Relaxed: a statistic orders nothing; the one writer sees its own stores.
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// Adds one.
    pub(crate) fn bump(&self) {
        self.add(1);
    }

    /// The count; may lag behind the worker by what its CPU has not written back yet.
    pub(crate) fn get(&self) -> u64 {
        // Relaxed: see `add`.
        self.0.load(Ordering::Relaxed)
    }
}

/// One `T` per worker, each on cache lines of its own.
#[derive(Debug)]
pub(crate) struct PerWorker<T>(Box<[CachePadded<T>]>);

impl<T: Default> PerWorker<T> {
    /// For `workers` workers, at least one.
    pub(crate) fn new(workers: usize) -> Self {
        PerWorker(
            (0..workers.max(1))
                .map(|_| CachePadded::new(T::default()))
                .collect(),
        )
    }
}

impl<T> PerWorker<T> {
    /// The `T` of `worker`.
    pub(crate) fn of(&self, worker: usize) -> Option<&T> {
        self.0.get(worker).map(|padded| &**padded)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &**padded)
    }
}
