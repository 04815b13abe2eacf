// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: turns pointers from entries of the page map back into the `Arc`s that they came from.
//!
//! What tracked pages are led to: a route, which counts its pages, so that adding a million of them counts once; and for pages
//! of a [`Kind`](super::Kind) a handler besides.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::kind::{Number, word_of};
use crate::handler::PageHandler;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A route with the number of pages that lead to it. Belongs to the first [`PageMap`](super::PageMap) that it is given to. Cheap to
/// clone: the same one then.
///
/// ```
/// use ioreq_core::dispatch::Counted;
/// let route = Counted::new("ppgtt");
/// assert_eq!(route.len(), 5); // derefs to the route
/// ```
pub struct Counted<R> {
    node: Arc<Node<R>>,
    /// Of pages that have their own; of the type of the node's kind then, and [`fits`](super::kind::fits).
    own: Option<Arc<dyn PageHandler>>,
}

/// The route itself, and what is counted.
pub(super) struct Node<R> {
    route: R,
    /// Pages that lead here, unless the map's [`Held`](super::held::Held) has the number. Under the lock of the map it belongs to.
    pages: AtomicU64,
    /// The map it belongs to; 0 at first, then never changed.
    owner: AtomicUsize,
    /// Of a kind: every page has a handler of its own. None: no page has.
    kind: Option<Number<R>>,
}

impl<R> Node<R> {
    /// A route to which no page leads yet.
    pub(super) fn new(route: R, owner: usize, kind: Option<Number<R>>) -> Arc<Self> {
        Arc::new(Node {
            route,
            pages: AtomicU64::new(0),
            owner: AtomicUsize::new(owner),
            kind,
        })
    }

    #[inline]
    pub(super) fn route(&self) -> &R {
        &self.route
    }

    pub(super) fn kind(&self) -> Option<&Number<R>> {
        self.kind.as_ref()
    }

    /// Pages that lead here.
    pub(super) fn pages(&self) -> u64 {
        // Relaxed, here and below: under the map's lock.
        self.pages.load(Ordering::Relaxed)
    }

    pub(super) fn set_pages(&self, pages: u64) {
        self.pages.store(pages, Ordering::Relaxed);
    }
}

impl<R> Counted<R> {
    /// A route to which no page leads yet.
    pub fn new(route: R) -> Self {
        let node = Node::new(route, 0, None);
        Counted { node, own: None }
    }

    /// A page's own handler, with the rest of its kind. For handlers that are of the kind and fit.
    pub(super) fn own(node: Arc<Node<R>>, handler: Arc<dyn PageHandler>) -> Self {
        let own = Some(handler);
        Counted { node, own }
    }

    /// The handler of pages that have their own.
    #[must_use]
    pub fn handler(&self) -> Option<&Arc<dyn PageHandler>> {
        self.own.as_ref()
    }

    /// Whether both lead to the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let handlers = (self.own.as_ref(), other.own.as_ref());
        Arc::ptr_eq(&self.node, &other.node)
            && match handlers {
                (Some(one), Some(other)) => std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other)),
                (one, other) => one.is_none() && other.is_none(),
            }
    }

    #[inline]
    pub(super) fn node(&self) -> &Arc<Node<R>> {
        &self.node
    }

    /// Whether the route belongs to the map with this identity already.
    #[inline]
    pub(super) fn belongs(&self, map: usize) -> bool {
        // Relaxed: it is never changed from one map to another.
        self.node.owner.load(Ordering::Relaxed) == map
    }

    /// Makes the route belong to the map with this identity; false if it belongs to another.
    pub(super) fn belong(&self, map: usize) -> bool {
        let owned_by = &self.node.owner;
        // Relaxed, all of it: only who is first matters. Looked at before: nearly always it belongs to this map already.
        match owned_by.load(Ordering::Relaxed) {
            0 => {
                let first = owned_by.compare_exchange(0, map, Ordering::Relaxed, Ordering::Relaxed);
                first.map_or_else(|owner| owner == map, |_| true)
            }
            owner => owner == map,
        }
    }

    /// What to write into the entry of one page, which [`hold`](super::held::Held::hold) has counted. With a handler of its own the entry has
    /// one strong count of that.
    #[inline]
    pub(super) fn word(&self) -> *mut () {
        match (&self.own, &self.node.kind) {
            (Some(own), Some(kind)) => word_of(kind, Arc::into_raw(Arc::clone(own)).cast()),
            _ => Arc::as_ptr(&self.node).cast_mut().cast(),
        }
    }

    /// One more owner of what an entry leads to.
    ///
    /// # Safety
    /// `node` and `handler` are what an entry leads to, of a map whose lock the caller holds.
    pub(super) unsafe fn share(
        node: *const Node<R>,
        handler: Option<*const dyn PageHandler>,
    ) -> Self {
        // SAFETY: from `Arc::as_ptr`, and the map's strong count is above 0 while it is in an entry.
        unsafe { Arc::increment_strong_count(node) };
        // SAFETY: the count just added is this value's.
        let node = unsafe { Arc::from_raw(node) };
        let own = handler.map(|handler| {
            // SAFETY: from `Arc::into_raw` in `word`, and the entry has that strong count.
            unsafe { Arc::increment_strong_count(handler) };
            // SAFETY: the count just added is this value's.
            unsafe { Arc::from_raw(handler) }
        });
        Counted { node, own }
    }
}

impl<R> Clone for Counted<R> {
    fn clone(&self) -> Self {
        Counted {
            node: Arc::clone(&self.node),
            own: self.own.clone(),
        }
    }
}

impl<R> Deref for Counted<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.node.route
    }
}

impl<R: fmt::Debug> fmt::Debug for Counted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = if self.own.is_some() { ", own" } else { "" };
        write!(f, "Counted({:?}{own})", self.node.route)
    }
}
