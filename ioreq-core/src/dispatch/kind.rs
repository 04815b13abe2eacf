// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages with a handler each: what they have in common they share, and an entry of the page map leads to the handler itself.
//!
//! An entry is one word. Null: the page is not tracked. With nothing in its top bits it points to a route that pages share. Else
//! the top bits are the number of a kind, and the rest points to the page's handler. A kind says of what type the handler is, and
//! what else its pages have in common. So a handler of its own costs a page nothing beyond the word that it has anyway.
//!
//! A number is free again when its kind is gone, and that is kept as long as a reader may have seen an entry of it: by the
//! garbage of the last page that left.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, PoisonError};

use super::counted::{Counted, Node};
use super::zeroed::Zero;
use crate::handler::{HandlerType, PageHandler};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicPtr, Ordering};

/// Numbers there are; 0 is none. Kinds are combinations of tracker, type and fallback: more are not to be expected, and who gets
/// no number has routes as others have.
const KINDS: usize = if cfg!(loom) { 2 } else { 1 << 10 };
/// Bits of an entry below the number. Processors have addresses of 47 to 52 bits for programs.
const BITS: u32 = usize::BITS - KINDS.ilog2();

/// The kinds of one map, by number.
pub(super) struct Kinds<R> {
    /// Followed for numbers in entries only: what is left at a free number points nowhere.
    nodes: [AtomicPtr<Node<R>>; KINDS],
    free: Mutex<Vec<u16>>,
}

/// A kind's number; free again when this is dropped.
pub(super) struct Number<R> {
    number: u16,
    of: HandlerType,
    kinds: Arc<Kinds<R>>,
}

/// Where an entry leads. Pointers: whoever follows them knows what keeps them.
pub(super) struct Way<R> {
    pub(super) node: *const Node<R>,
    /// To the page's own handler.
    pub(super) own: Option<*const ()>,
}

impl<R> Kinds<R> {
    pub(super) fn new() -> Arc<Self> {
        let numbers = (1..KINDS).rev();
        Arc::new(Kinds {
            nodes: Zero::zero(),
            free: Mutex::new(
                numbers
                    .filter_map(|number| number.try_into().ok())
                    .collect(),
            ),
        })
    }

    /// What `word`, from an entry, leads to.
    #[inline(always)]
    pub(super) fn way(&self, word: *mut ()) -> Option<Way<R>> {
        let number = word.addr() >> BITS;
        if number == 0 {
            let node = word.cast::<Node<R>>().cast_const();
            return (!node.is_null()).then_some(Way { node, own: None });
        }
        // Relaxed: it was written before the first entry with this number, and the entry was read with Acquire or under the lock.
        let node = self.nodes[number].load(Ordering::Relaxed).cast_const();
        let own = word.map_addr(|addr| addr & ((1 << BITS) - 1));
        Some(Way {
            node,
            own: Some(own.cast_const()),
        })
    }
}

impl<R> Number<R> {
    /// The type of the kind's handlers.
    #[inline(always)]
    pub(super) fn of(&self) -> &HandlerType {
        &self.of
    }
}

impl<R> Drop for Number<R> {
    fn drop(&mut self) {
        let mut free = self
            .kinds
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        free.push(self.number);
    }
}

/// Whether the address leaves room for a number.
fn fits(handler: &Arc<dyn PageHandler>) -> bool {
    Arc::as_ptr(handler).cast::<()>().addr() >> BITS == 0
}

/// The entry of a page with a handler that [`fits`].
#[inline]
pub(super) fn word_of<R>(kind: &Number<R>, handler: *const ()) -> *mut () {
    let number = usize::from(kind.number) << BITS;
    handler.cast_mut().map_addr(|addr| addr | number)
}

/// What pages with a handler each have in common: the type of their handlers, and the rest of their routes.
///
/// ```
/// use ioreq_core::dispatch::{Grace, PageMap};
/// # use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite};
/// use ioreq_core::Gfn;
/// use std::sync::Arc;
/// # struct Table(u64);
/// # impl PageHandler for Table {
/// #     fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
/// #         PageOutcome::Apply
/// #     }
/// # }
///
/// let grace = Grace::new();
/// let map = PageMap::new(Gfn(0xffff), grace.clone())?;
/// let tables = map.kind(&Table(0), "tables").expect("the first");
/// for gfn in 0..3 {
///     let table: Arc<dyn PageHandler> = Arc::new(Table(gfn));
///     let route = tables.with(&table).expect("of the type");
///     map.insert(Gfn(gfn).into(), &route)?;
/// }
///
/// let mut reader = grace.reader();
/// let guard = reader.enter();
/// let found = map.find(Gfn(2), &guard).and_then(|page| page.lead()).expect("tracked");
/// assert_eq!(found.route, &"tables");
/// assert!(found.own.is_some()); // that is `Table(2)`
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Kind<R>(Arc<Node<R>>);

impl<R> Kind<R> {
    /// A kind of the map with this identity; None if numbers have run out.
    pub(super) fn new(
        kinds: &Arc<Kinds<R>>,
        map: usize,
        of: HandlerType,
        route: R,
    ) -> Option<Self> {
        let number = kinds
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()?;
        let entry = kinds.nodes.get(usize::from(number))?;
        let kinds = Arc::clone(kinds);
        let node = Node::new(route, map, Some(Number { number, of, kinds }));
        // Relaxed: see `Kinds::way`.
        entry.store(Arc::as_ptr(&node).cast_mut(), Ordering::Relaxed);
        Some(Kind(node))
    }

    /// Whether `handler` is of the kind's type.
    #[must_use]
    pub fn is_of(&self, handler: &dyn PageHandler) -> bool {
        let of = HandlerType::of(handler);
        self.0.kind().is_some_and(|kind| kind.of == of)
    }

    /// What to lead a page to that has this handler. `None` if it is not of the kind's type, or if its address leaves no room for
    /// the kind.
    #[must_use]
    pub fn with(&self, handler: &Arc<dyn PageHandler>) -> Option<Counted<R>> {
        let own = || Counted::own(Arc::clone(&self.0), Arc::clone(handler));
        (self.is_of(&**handler) && fits(handler)).then(own)
    }
}

impl<R> Clone for Kind<R> {
    fn clone(&self) -> Self {
        Kind(Arc::clone(&self.0))
    }
}

impl<R> Deref for Kind<R> {
    type Target = R;

    fn deref(&self) -> &R {
        self.0.route()
    }
}

impl<R: fmt::Debug> fmt::Debug for Kind<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kind").field(self.0.route()).finish()
    }
}
