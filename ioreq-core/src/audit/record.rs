// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The counters of the audit.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::thread::ThreadId;

/// What one serving thread did.
///
/// ```
/// let report = ioreq_core::audit::ThreadReport::default();
/// assert_eq!((report.requests, report.most_rmws), (0, 0));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadReport {
    /// Requests whose window was opened and closed.
    pub requests: u64,
    /// The most atomic read-modify-writes in one window.
    pub most_rmws: u64,
    /// The most lock acquisitions in one window.
    pub most_locks: u64,
    /// The most allocations in one window.
    pub most_allocations: u64,
    /// The most fences in one window.
    pub most_fences: u64,
    /// Cache lines (address / 64) that the thread stored to atomically, inside windows and outside.
    pub stored_lines: BTreeSet<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Window {
    rmws: u64,
    locks: u64,
    allocations: u64,
    fences: u64,
}

thread_local! {
    static WINDOW: Cell<Option<Window>> = const { Cell::new(None) };
    /// The audit's own work is not counted.
    static BUSY: Cell<bool> = const { Cell::new(false) };
    static REPORT: RefCell<ThreadReport> = RefCell::new(ThreadReport::default());
}

static REPORTS: Mutex<Option<HashMap<ThreadId, ThreadReport>>> = Mutex::new(None);

fn unobserved(work: impl FnOnce()) {
    // A thread that is ending has no counters any more.
    let _ending = BUSY.try_with(|busy| {
        if !busy.replace(true) {
            work();
            busy.set(false);
        }
    });
}

fn count(change: impl FnOnce(&mut Window)) {
    let busy = BUSY.try_with(Cell::get).unwrap_or(true);
    let _ending = WINDOW.try_with(|window| {
        if let Some(mut counts) = window.get().filter(|_| !busy) {
            change(&mut counts);
            window.set(Some(counts));
        }
    });
}

/// A request was seen.
pub(crate) fn open() {
    WINDOW.with(|window| window.set(Some(Window::default())));
}

/// It was answered.
pub(crate) fn close() {
    let Some(counts) = WINDOW.with(Cell::take) else {
        return;
    };
    unobserved(|| {
        REPORT.with_borrow_mut(|report| {
            report.requests += 1;
            report.most_rmws = report.most_rmws.max(counts.rmws);
            report.most_locks = report.most_locks.max(counts.locks);
            report.most_allocations = report.most_allocations.max(counts.allocations);
            report.most_fences = report.most_fences.max(counts.fences);
            let mut all = REPORTS.lock().unwrap_or_else(PoisonError::into_inner);
            all.get_or_insert_default()
                .insert(std::thread::current().id(), report.clone());
        });
    });
}

/// An atomic store.
pub(crate) fn store(addr: usize) {
    unobserved(|| {
        let _ending = REPORT.try_with(|report| {
            report.borrow_mut().stored_lines.insert(addr / 64);
        });
    });
}

/// An atomic read-modify-write, which is a store as well.
pub(crate) fn rmw(addr: usize) {
    count(|window| window.rmws += 1);
    store(addr);
}

/// A fence.
pub(crate) fn fence() {
    count(|window| window.fences += 1);
}

/// A lock was taken.
pub(crate) fn lock() {
    count(|window| window.locks += 1);
}

/// Memory was allocated.
pub(super) fn allocation() {
    count(|window| window.allocations += 1);
}

/// What every thread has done that served a request, as of its last one.
#[must_use]
pub fn report() -> Vec<ThreadReport> {
    let all = REPORTS.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().flat_map(HashMap::values).cloned().collect()
}

/// Forgets the threads seen so far.
pub fn reset() {
    *REPORTS.lock().unwrap_or_else(PoisonError::into_inner) = None;
}
