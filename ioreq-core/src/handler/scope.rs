// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether this thread is inside a handler, so that waiting for handlers there is an error and not a hang.

use std::cell::Cell;

#[cfg(not(loom))]
thread_local! {
    /// Handlers that the thread is in: all in the lower half, those of tracked pages in the upper. One word, so that entering
    /// and leaving are one addition each.
    static DEPTH: Cell<u64> = const { Cell::new(0) };
}
#[cfg(loom)]
loom::thread_local! {
    static DEPTH: Cell<u64> = Cell::new(0);
}

const ANY: u64 = 1;
const PAGE: u64 = 1 << 32;

/// Marks the thread as being in a handler, while it lives.
pub(crate) struct Scope {
    counted: u64,
}

impl Scope {
    /// Enters a handler; `page` if it is a tracked page's, which holds that page's order.
    #[inline]
    pub(crate) fn enter(page: bool) -> Self {
        let counted = if page { ANY | PAGE } else { ANY };
        DEPTH.with(|depth| depth.set(depth.get().wrapping_add(counted)));
        Scope { counted }
    }
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get().wrapping_sub(self.counted)));
    }
}

/// Whether the thread is inside any handler.
pub(crate) fn in_handler() -> bool {
    DEPTH.with(|depth| depth.get() != 0)
}

/// Whether the thread is inside a tracked page's handler.
pub(crate) fn in_page_handler() -> bool {
    DEPTH.with(|depth| depth.get() >= PAGE)
}
