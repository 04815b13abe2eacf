// SPDX-License-Identifier: Apache-2.0 OR MIT

//! UNSAFETY: calls a handler by a pointer without a type; whoever makes a `HandlerRef` knows what it points to.
//!
//! The type behind a `dyn PageHandler`. Of the two words that point to a handler one says its type, and handlers have few
//! types: a page that has a handler of its own keeps the other word alone.

use std::any::TypeId;
use std::fmt;
use std::sync::Arc;

use super::{Context, PageHandler, PageOutcome, PageWrite};

/// A type of handlers.
#[derive(Debug, Clone, Copy)]
pub struct HandlerType {
    id: TypeId,
    /// For a pointer to a handler of the type.
    write: unsafe fn(*const (), &Context<'_>, &PageWrite<'_>) -> PageOutcome,
    whole: fn(*const ()) -> *const dyn PageHandler,
}

impl HandlerType {
    /// The type of this one.
    pub(crate) fn of(handler: &dyn PageHandler) -> Self {
        // Named, as an `Arc` of a handler is one as well, of another type.
        <dyn PageHandler as Typed>::handler_type(handler)
    }

    /// A pointer to a handler of this type, whole again.
    pub(crate) fn whole(&self, handler: *const ()) -> *const dyn PageHandler {
        (self.whole)(handler)
    }
}

impl PartialEq for HandlerType {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// What has a type that can be asked for: every [`PageHandler`], and nobody implements it by hand.
pub trait Typed {
    /// The type of this one.
    fn handler_type(&self) -> HandlerType;
}

impl<T: PageHandler> Typed for T {
    fn handler_type(&self) -> HandlerType {
        /// # Safety
        /// `handler` points to a `T` that lives till it returns.
        unsafe fn write<T: PageHandler>(
            handler: *const (),
            cx: &Context<'_>,
            write: &PageWrite<'_>,
        ) -> PageOutcome {
            // SAFETY: the caller's promise.
            unsafe { &*handler.cast::<T>() }.write(cx, write)
        }
        HandlerType {
            id: TypeId::of::<T>(),
            write: write::<T>,
            whole: |handler| handler.cast::<T>() as *const dyn PageHandler,
        }
    }
}

/// A page's handler with its type at hand, so that calling it asks for nothing else.
///
/// ```
/// use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite, TypedHandler};
/// use std::sync::Arc;
/// struct Watch;
/// impl PageHandler for Watch {
///     fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
///         PageOutcome::Apply
///     }
/// }
/// let watch: Arc<dyn PageHandler> = Arc::new(Watch);
/// let typed = TypedHandler::new(Arc::clone(&watch));
/// assert!(std::ptr::addr_eq(typed.get().get(), Arc::as_ptr(&watch)));
/// ```
pub struct TypedHandler {
    handler: Arc<dyn PageHandler>,
    of: HandlerType,
}

impl TypedHandler {
    /// Asks the handler for its type.
    #[must_use]
    pub fn new(handler: Arc<dyn PageHandler>) -> Self {
        let of = HandlerType::of(&*handler);
        TypedHandler { handler, of }
    }

    /// The handler.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> HandlerRef<'_> {
        let handler = Arc::as_ptr(&self.handler).cast();
        HandlerRef {
            handler,
            of: &self.of,
        }
    }
}

impl fmt::Debug for TypedHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedHandler").finish_non_exhaustive()
    }
}

/// A page's handler, borrowed: of a [`TypedHandler`], or one that a tracked page has to itself.
///
/// ```
/// use ioreq_core::handler::{Context, HandlerRef, PageHandler, PageOutcome, PageWrite, TypedHandler};
/// use std::sync::Arc;
/// # struct Watch;
/// # impl PageHandler for Watch {
/// #     fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
/// #         PageOutcome::Apply
/// #     }
/// # }
/// /// What a dispatcher does with a write.
/// fn pass(handler: HandlerRef<'_>, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
///     handler.write(cx, write)
/// }
///
/// let typed = TypedHandler::new(Arc::new(Watch));
/// let one: HandlerRef<'_> = typed.get();
/// let same = one; // as cheap to copy as a reference
/// assert!(std::ptr::addr_eq(one.get(), same.get()));
/// ```
#[derive(Clone, Copy)]
pub struct HandlerRef<'g> {
    /// Of the type, and alive for `'g`.
    handler: *const (),
    of: &'g HandlerType,
}

impl<'g> HandlerRef<'g> {
    /// # Safety
    /// `handler` points to a handler of this type, which lives for `'g`.
    #[inline(always)]
    pub(crate) unsafe fn new(handler: *const (), of: &'g HandlerType) -> Self {
        HandlerRef { handler, of }
    }

    /// As [`PageHandler::write`].
    #[inline(always)]
    pub fn write(self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        // SAFETY: of the type, and alive (see the field).
        unsafe { (self.of.write)(self.handler, cx, write) }
    }

    /// The handler itself.
    #[must_use]
    pub fn get(self) -> &'g dyn PageHandler {
        // SAFETY: as in `write`.
        unsafe { &*self.of.whole(self.handler) }
    }
}

impl fmt::Debug for HandlerRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerRef").finish_non_exhaustive()
    }
}
