// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: dereferences pointers to routes, and gives back the strong counts of them that the page map owns.
//!
//! How many pages lead to each route.
//!
//! Of the route whose pages changed last the count is kept here, not with the route. A page's entry is in no cache when there are
//! a million of them, and it alone says where the route is: with the count there, whatever changes the next page would wait for
//! this page's entry. So it only waits where another route's pages are changed.

use std::sync::Arc;

use super::counted::{Counted, Node};
use crate::sync::atomic::{AtomicPtr, Ordering};

/// The pages of the routes of one map. Lives under the map's lock.
pub(super) struct Held<R> {
    /// Null, or the route whose pages changed last, if it has any. Atomic for being `Send` alone: only the holder of the lock
    /// comes here.
    recent: AtomicPtr<Node<R>>,
    /// Pages that lead there. Its own count is not up to date meanwhile.
    pages: u64,
}

impl<R> Held<R> {
    pub(super) fn new() -> Self {
        Held {
            recent: AtomicPtr::new(std::ptr::null_mut()),
            pages: 0,
        }
    }

    /// So many pages more, at least one, lead to `route`: [`word`](Counted::word) goes into their entries. Of a route that belongs
    /// to this map. While there is a page, the map owns one strong count.
    #[inline]
    pub(super) fn hold(&mut self, route: &Counted<R>, pages: u64) {
        // SAFETY: the caller keeps it; it belongs to this map.
        unsafe { self.turn_to(Arc::as_ptr(route.node())) };
        if self.pages == 0 {
            std::mem::forget(Arc::clone(route.node()));
        }
        self.pages += pages;
    }

    /// So many pages, whose entries have been overwritten, lead to `node` no more; after the last one the map's strong count comes
    /// back, to be given up when no reader can look at the route.
    ///
    /// # Safety
    /// `node` was in that many entries of this map until now, so that what [`hold`](Self::hold) counted for them still counts.
    pub(super) unsafe fn let_go(
        &mut self,
        node: *const Node<R>,
        pages: u64,
    ) -> Option<Arc<Node<R>>> {
        // SAFETY: pages led there, so the map's strong count keeps it.
        unsafe { self.turn_to(node) };
        self.pages -= pages;
        if self.pages > 0 {
            return None;
        }
        self.recent.store(std::ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: kept until the next line, as above.
        unsafe { &*node }.set_pages(0);
        // SAFETY: from `Arc::as_ptr`, with the strong count that `hold` forgot; there is no page, so it is given back once.
        Some(unsafe { Arc::from_raw(node) })
    }

    /// Lets one page go that is not the last; false, and nothing is changed, if it is.
    ///
    /// # Safety
    /// `node` is in an entry of this map, which is overwritten before the lock is released if this returns true.
    #[inline]
    pub(super) unsafe fn let_one_of_many_go(&mut self, node: *const Node<R>) -> bool {
        // SAFETY: a page leads there, so the map's strong count keeps it.
        unsafe { self.turn_to(node) };
        let others = self.pages - 1;
        if others > 0 {
            self.pages = others;
        }
        others > 0
    }

    /// Makes `node` the one whose count is here.
    ///
    /// # Safety
    /// Somebody keeps `node`, which belongs to this map.
    #[inline]
    unsafe fn turn_to(&mut self, node: *const Node<R>) {
        // Relaxed, all of it: under the map's lock.
        let recent = self.recent.load(Ordering::Relaxed);
        if recent.addr() != node.addr() {
            // SAFETY: the caller's promise.
            unsafe { self.change_over(recent, node) };
        }
    }

    /// The same from `recent`, which is another one.
    ///
    /// # Safety
    /// As for [`turn_to`](Self::turn_to).
    #[inline(never)]
    unsafe fn change_over(&mut self, recent: *const Node<R>, node: *const Node<R>) {
        // SAFETY: null, or it has pages, so the map's strong count keeps it: `let_go` of the last one makes it null.
        if let Some(recent) = unsafe { recent.as_ref() } {
            recent.set_pages(self.pages);
        }
        // SAFETY: the caller's promise.
        self.pages = unsafe { &*node }.pages();
        self.recent.store(node.cast_mut(), Ordering::Relaxed);
    }
}
