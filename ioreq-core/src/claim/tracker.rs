// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tracking pages, as backends ask for it: object-safe, so that a backend needs to know neither the hypervisor nor the server.

use std::fmt;
use std::sync::{Arc, Weak};

use super::MarkError;
use super::mem_type::upgrade;
use crate::dispatch::{Counted, PageRoute, TrackerShared};
use crate::error::Result;
use crate::handler::{PageHandler, Verdict};
use crate::hypervisor::Hypervisor;
use crate::ids::Gfn;
use crate::range::GfnRange;
use crate::server::Core;
use crate::stats::RouteStats;

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

/// Tracks pages through a [`MemTypeClaim`](super::MemTypeClaim). Cheap to clone; it keeps neither the claim nor the server
/// alive, so handlers may hold one.
pub struct Tracker<H: Hypervisor> {
    core: Weak<Core<H>>,
    shared: Arc<TrackerShared>,
}

impl<H: Hypervisor> Tracker<H> {
    pub(super) fn new(core: Weak<Core<H>>, shared: Arc<TrackerShared>) -> Self {
        Tracker { core, shared }
    }

    /// What the tracker's handlers have served.
    #[must_use]
    pub fn stats(&self) -> RouteStats {
        RouteStats::sum(&self.shared.counters)
    }

    fn route(&self, handler: Option<Arc<dyn PageHandler>>) -> Arc<Counted<PageRoute>> {
        let fallback = handler
            .as_ref()
            .map_or(Verdict::Apply, |handler| handler.fallback());
        Counted::new(PageRoute {
            handler,
            fallback,
            tracker: Arc::clone(&self.shared),
        })
    }
}

impl<H: Hypervisor> PageTracker for Tracker<H> {
    fn track(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<(), MarkError> {
        let core = upgrade(&self.core).map_err(|err| {
            let mut err = MarkError::new(err);
            err.untouched.push(pages);
            err
        })?;
        let route = self.route(Some(handler));
        let result = core.ledger().track(&core, pages, &route);
        if result.is_err() {
            core.wake_control();
        }
        result
    }

    fn replace(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<()> {
        let core = upgrade(&self.core)?;
        let route = self.route(Some(handler));
        core.ledger().replace(&core, pages, &route)
    }

    fn untrack(&self, pages: GfnRange) -> Result<()> {
        let core = upgrade(&self.core)?;
        let leaving = self.route(None);
        core.ledger().untrack(&core, pages, &leaving)?;
        core.wake_control();
        Ok(())
    }

    fn state(&self, gfn: Gfn) -> PageState {
        let route = self
            .core
            .upgrade()
            .and_then(|core| core.pages.route_of(gfn));
        match route {
            None => PageState::Untracked,
            Some(route) if route.is_leaving() => PageState::Leaving,
            Some(_) => PageState::Tracked,
        }
    }
}

impl<H: Hypervisor> Clone for Tracker<H> {
    fn clone(&self) -> Self {
        Tracker {
            core: Weak::clone(&self.core),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<H: Hypervisor> fmt::Debug for Tracker<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}
