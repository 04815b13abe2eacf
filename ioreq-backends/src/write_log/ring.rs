// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ring between writers and reader, and how a sleeping reader is woken.
//!
//! A writer puts a record, fences, then looks whether the reader waits. The reader says that it waits, fences, then looks for
//! a record once more before it sleeps. Of two SeqCst fences one is first: either the writer sees the reader waiting and
//! wakes it, or the reader sees the record. A wake-up that comes before the sleep makes the sleep return at once.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use crossbeam::sync::Unparker;
use crossbeam::utils::CachePadded;

use super::WriteRecord;

/// What writers and reader share.
pub(super) struct Ring {
    records: ArrayQueue<WriteRecord>,
    /// Written where records are lost, so kept off the line that every writer reads.
    lost: CachePadded<AtomicU64>,
    waiting: AtomicBool,
    closed: AtomicBool,
    reader: Unparker,
}

impl Ring {
    pub(super) fn new(capacity: usize, reader: Unparker) -> Self {
        Ring {
            records: ArrayQueue::new(capacity),
            lost: CachePadded::new(AtomicU64::new(0)),
            waiting: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            reader,
        }
    }

    pub(super) fn put(&self, record: WriteRecord) {
        if self.records.push(record).is_err() {
            self.lose();
            return;
        }
        self.wake();
    }

    /// Counts a record that is lost.
    pub(super) fn lose(&self) {
        // Relaxed: a counter; nothing else is told by it.
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lost(&self) -> u64 {
        // Relaxed: as in `lose`.
        self.lost.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        // SeqCst: pairs with the fence in `prepare_to_sleep` (see the module).
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it.
        if self.waiting.load(Ordering::Relaxed) {
            self.reader.unpark();
        }
    }

    /// No record comes any more.
    pub(super) fn close(&self) {
        // Release: pairs with the Acquire in `is_closed`: the last records are seen by who sees this.
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn is_closed(&self) -> bool {
        // Acquire: pairs with the Release in `close`.
        self.closed.load(Ordering::Acquire)
    }

    /// The reader's side: the oldest record.
    pub(super) fn take(&self) -> Option<WriteRecord> {
        self.records.pop()
    }

    /// The reader will sleep, unless it finds something when it looks now, after this call.
    pub(super) fn prepare_to_sleep(&self) {
        // Relaxed: the fence orders it.
        self.waiting.store(true, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `wake` (see the module).
        fence(Ordering::SeqCst);
    }

    pub(super) fn awake(&self) {
        // Relaxed: a writer that still sees the reader waiting wakes it for nothing.
        self.waiting.store(false, Ordering::Relaxed);
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.records.capacity()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("capacity", &self.capacity())
            .field("len", &self.len())
            .field("lost", &self.lost())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
