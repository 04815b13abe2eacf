// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether this thread is inside a handler, so that waiting for handlers there is an error and not a hang.

use std::cell::Cell;

thread_local! {
    static DEPTH: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// Marks the thread as being in a handler, while it lives.
pub(crate) struct Scope {
    page: bool,
}

impl Scope {
    /// Enters a handler; `page` if it is a tracked page's, which holds that page's order.
    pub(crate) fn enter(page: bool) -> Self {
        DEPTH.with(|depth| {
            let (any, pages) = depth.get();
            depth.set((any + 1, pages + u32::from(page)));
        });
        Scope { page }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        DEPTH.with(|depth| {
            let (any, pages) = depth.get();
            depth.set((any - 1, pages - u32::from(self.page)));
        });
    }
}

/// Whether the thread is inside any handler.
pub(crate) fn in_handler() -> bool {
    DEPTH.with(|depth| depth.get().0 > 0)
}

/// Whether the thread is inside a tracked page's handler.
pub(crate) fn in_page_handler() -> bool {
    DEPTH.with(|depth| depth.get().1 > 0)
}
