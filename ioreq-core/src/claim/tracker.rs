// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tracking pages, as backends ask for it: object-safe, so that a backend needs to know neither the hypervisor nor the server.

use std::sync::Arc;

use super::MarkError;
use crate::error::Result;
use crate::handler::PageHandler;
use crate::ids::Gfn;
use crate::range::GfnRange;

/// How a page stands with the framework.
///
/// ```
/// use ioreq_core::claim::PageState;
/// assert_ne!(PageState::Tracked, PageState::Leaving);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageState {
    /// Ordinary memory: the framework does not know it.
    Untracked,
    /// Writes trap and go to the page's handler.
    Tracked,
    /// To be unmarked: writes may still trap; they are applied as written and reach no handler.
    Leaving,
}

/// Tracks pages of one guest. Callable from any thread, handlers included.
///
/// [`Tracker`](super::Tracker) is the real one; a backend's unit tests bring their own.
pub trait PageTracker: Send + Sync {
    /// Tracks `pages`: when it returns, every write to one of them traps to `handler`. Read a page's contents after this
    /// call, not before, or a write between is lost. A page that is [`Leaving`](PageState::Leaving) is taken back.
    ///
    /// # Errors
    /// `RouteConflict` when a page is tracked already (nothing is changed then), or as the hypervisor says; see
    /// [`MarkError`] for what a failure in the middle leaves.
    fn track(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<(), MarkError>;

    /// Gives `pages` another handler; they stay marked throughout.
    ///
    /// # Errors
    /// `NoSuchRoute` unless all of them are tracked.
    fn replace(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<()>;

    /// Ends tracking of `pages`, those of them that are tracked. When it returns no new call of their handlers starts; the
    /// hypervisor's mark is removed later, by the safe protocol, in batches. Never waits.
    ///
    /// # Errors
    /// `WrongState` if the claim is gone.
    fn untrack(&self, pages: GfnRange) -> Result<()>;

    /// How `gfn` stands now.
    fn state(&self, gfn: Gfn) -> PageState;
}
