// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tracking pages, as backends ask for it: object-safe, so that a backend needs to know neither the hypervisor nor the server.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::MarkError;
use super::mem_type::upgrade;
use crate::dispatch::{Counted, Kind, PageRoute, TrackerShared};
use crate::error::Result;
use crate::handler::{PageHandler, TypedHandler, Verdict};
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
///
/// ```
/// use ioreq_core::claim::{MarkError, PageState, PageTracker};
/// use ioreq_core::handler::PageHandler;
/// use ioreq_core::{Error, ErrorKind, Gfn, GfnRange, Op, Result};
/// use std::collections::BTreeSet;
/// use std::sync::{Arc, Mutex};
///
/// /// For a backend's unit tests: remembers what is tracked, and calls nobody.
/// #[derive(Default)]
/// struct Pages(Mutex<BTreeSet<Gfn>>);
///
/// impl PageTracker for Pages {
///     fn track(&self, pages: GfnRange, _: Arc<dyn PageHandler>) -> Result<(), MarkError> {
///         self.0.lock().unwrap().extend(pages.iter());
///         Ok(())
///     }
///     fn replace(&self, pages: GfnRange, _: Arc<dyn PageHandler>) -> Result<()> {
///         match pages.iter().all(|gfn| self.state(gfn) == PageState::Tracked) {
///             true => Ok(()),
///             false => Err(Error::new(Op::Mark, ErrorKind::NoSuchRoute).about(pages)),
///         }
///     }
///     fn untrack(&self, pages: GfnRange) -> Result<()> {
///         self.0.lock().unwrap().retain(|gfn| !pages.contains(*gfn));
///         Ok(())
///     }
///     fn state(&self, gfn: Gfn) -> PageState {
///         match self.0.lock().unwrap().contains(&gfn) {
///             true => PageState::Tracked,
///             false => PageState::Untracked,
///         }
///     }
/// }
///
/// let pages = Pages::default();
/// pages.untrack(Gfn(1).into())?; // nothing to do
/// assert_eq!(pages.state(Gfn(1)), PageState::Untracked);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait PageTracker: Send + Sync {
    /// Tracks `pages`: when it returns, every write to one of them traps to `handler`. Read a page's contents after this
    /// call, not before, or a write between is lost. A page that is [`Leaving`](PageState::Leaving) is taken back.
    ///
    /// # Errors
    /// `RouteConflict` when a page is tracked already, `Retry` when marking one failed before and it is still on its way out
    /// (nothing is changed then), or as the hypervisor says; see [`MarkError`] for what a failure in the middle leaves.
    fn track(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<(), MarkError>;

    /// Tracks many pages, each with a handler of its own, in any order. [`Tracker`](super::Tracker) marks neighbours together, up
    /// to 1024 with one hypercall; this provided one tracks page by page.
    ///
    /// ```
    /// use ioreq_core::Op;
    /// # use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite};
    /// # use ioreq_core::{Gfn, claim::PageTracker, server::IoreqServer};
    /// # use ioreq_sim::{DomainConfig, Machine};
    /// # use std::sync::Arc;
    /// # struct Table(u64);
    /// # impl PageHandler for Table {
    /// #     fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
    /// #         PageOutcome::Apply
    /// #     }
    /// # }
    /// # let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    /// # let server = IoreqServer::builder(domain.hypervisor()).build()?;
    /// # let claim = server.claim_mem_type()?;
    /// # let tracker = claim.tracker("tables");
    /// let table = |gfn| -> (Gfn, Arc<dyn PageHandler>) { (Gfn(gfn), Arc::new(Table(gfn))) };
    /// tracker.track_each((0x100..0x300).map(table).collect())?;
    /// assert_eq!(domain.counts().dmop(Op::SetMemType), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`track`](Self::track). `Tracker` changes nothing for a conflict, or for a page given twice, which is
    /// `InvalidArgument`; of other failures the [`MarkError`] says what became of every page.
    fn track_each(&self, pages: Vec<(Gfn, Arc<dyn PageHandler>)>) -> Result<(), MarkError> {
        let mut done = Vec::new();
        let mut pages = pages.into_iter();
        while let Some((gfn, handler)) = pages.next() {
            if let Err(mut err) = self.track(gfn.into(), handler) {
                err.done.splice(0..0, done);
                err.untouched
                    .extend(pages.map(|(gfn, _)| GfnRange::from(gfn)));
                return Err(err);
            }
            done.push(gfn.into());
        }
        Ok(())
    }

    /// Gives `pages` another handler; they stay marked throughout.
    ///
    /// # Errors
    /// `NoSuchRoute` unless this tracker tracks all of them.
    fn replace(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<()>;

    /// Ends tracking of `pages`, those of them that this tracker tracks. When it returns no new call of their handlers starts; the
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
///
/// ```
/// use ioreq_core::claim::{PageState, PageTracker};
/// use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite};
/// use ioreq_core::{Gfn, GfnRange, VcpuId, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
/// use std::sync::Arc;
///
/// /// Lets every write through.
/// struct Watch;
/// impl PageHandler for Watch {
///     fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
///         assert_eq!((write.gfn(), write.value()), (Gfn(0x10), 7));
///         PageOutcome::Apply
///     }
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let claim = server.claim_mem_type()?;
/// let tracker = claim.tracker("watch");
/// tracker.track(GfnRange::sized(0x10, 4)?, Arc::new(Watch))?;
/// let running = server.start()?;
/// let guest = domain.spawn(VcpuId(0), |cpu| {
///     cpu.store32(0x1_0008, 7)?; // traps
///     cpu.load32(0x1_0008) // does not
/// })?;
/// assert_eq!(guest.join()?, 7);
/// assert_eq!(tracker.stats().writes, 1);
///
/// tracker.untrack(Gfn(0x10).into())?;
/// assert_ne!(tracker.state(Gfn(0x10)), PageState::Tracked);
/// running.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tracker<H: Hypervisor> {
    core: Weak<Core<H>>,
    shared: Arc<TrackerShared>,
    /// Of pages with a handler each: one for every type of handlers and fallback.
    kinds: Arc<Mutex<Vec<Kind<PageRoute>>>>,
}

impl<H: Hypervisor> Tracker<H> {
    pub(super) fn new(core: Weak<Core<H>>, shared: Arc<TrackerShared>) -> Self {
        Tracker {
            core,
            shared,
            kinds: Arc::default(),
        }
    }

    /// What the tracker's handlers have served.
    #[must_use]
    pub fn stats(&self) -> RouteStats {
        RouteStats::sum(&self.shared.counters)
    }

    /// Tracks pages that are marked already, by the process whose server was
    /// [taken over](crate::server::Builder::take_over): what it had tracked, from its saved state or by asking the hypervisor
    /// for their type.
    ///
    /// # Errors
    /// `RouteConflict` if a page is tracked already, `WrongState` without a claim. None is adopted then.
    pub fn adopt(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<()> {
        let core = upgrade(&self.core)?;
        let route = self.route(&core, pages, handler);
        core.ledger().adopt(&core, pages, &route)
    }

    fn route_to(&self, handler: Option<TypedHandler>, fallback: Verdict) -> PageRoute {
        PageRoute {
            handler,
            leaving: false,
            fallback,
            tracker: Arc::clone(&self.shared),
        }
    }

    /// What leads `pages` to the handler: for a page by itself nothing of ours.
    fn route(
        &self,
        core: &Core<H>,
        pages: GfnRange,
        handler: Arc<dyn PageHandler>,
    ) -> Counted<PageRoute> {
        let fallback = handler.fallback();
        if pages.pages() == 1
            && let Some(kind) = self.kind(core, &*handler, fallback)
            && let Some(route) = kind.with(&handler)
        {
            return route;
        }
        let handler = core.panics.guard_page(&self.shared.name, handler);
        Counted::new(self.route_to(Some(TypedHandler::new(handler)), fallback))
    }

    /// The kind of pages with such a handler each, if there can be one.
    fn kind(
        &self,
        core: &Core<H>,
        handler: &dyn PageHandler,
        fallback: Verdict,
    ) -> Option<Kind<PageRoute>> {
        // Each may have a value of its own, and kinds are few.
        if matches!(fallback, Verdict::Replace(_)) {
            return None;
        }
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = kinds.iter();
        if let Some(kind) = known.find(|kind| kind.fallback == fallback && kind.is_of(handler)) {
            return Some(kind.clone());
        }
        let kind = core.pages.kind(handler, self.route_to(None, fallback))?;
        kinds.push(kind.clone());
        Some(kind)
    }
}

impl<H: Hypervisor> PageTracker for Tracker<H> {
    fn track(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<(), MarkError> {
        let core = upgrade(&self.core).map_err(|err| {
            let mut err = MarkError::new(err);
            err.untouched.push(pages);
            err
        })?;
        let route = self.route(&core, pages, handler);
        let result = core.ledger().track(&core, pages, &route);
        if result.is_err() {
            core.wake_control();
        }
        result
    }

    fn track_each(&self, pages: Vec<(Gfn, Arc<dyn PageHandler>)>) -> Result<(), MarkError> {
        let core = match upgrade(&self.core) {
            Ok(core) => core,
            Err(err) => {
                let mut err = MarkError::new(err);
                let all = pages.iter().map(|(gfn, _)| GfnRange::from(*gfn));
                err.untouched.extend(all);
                return Err(err);
            }
        };
        let routed = pages.into_iter();
        let mut routed: Vec<_> = routed
            .map(|(gfn, handler)| (gfn, self.route(&core, gfn.into(), handler)))
            .collect();
        routed.sort_unstable_by_key(|(gfn, _)| *gfn);
        let result = core.ledger().track_each(&core, &routed);
        if result.is_err() {
            core.wake_control();
        }
        result
    }

    fn replace(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<()> {
        let core = upgrade(&self.core)?;
        let route = self.route(&core, pages, handler);
        core.ledger().replace(&core, pages, &route)
    }

    fn untrack(&self, pages: GfnRange) -> Result<()> {
        let core = upgrade(&self.core)?;
        let leaving = Counted::new(PageRoute {
            leaving: true,
            ..self.route_to(None, Verdict::Apply)
        });
        let mut ledger = core.ledger();
        ledger.untrack(&core, pages, &leaving)?;
        let enough = ledger.unmarker.is_enough();
        drop(ledger);
        core.wake_unmarking(enough);
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
            kinds: Arc::clone(&self.kinds),
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind, Op};
    use crate::handler::{Context, PageOutcome, PageWrite};
    use std::sync::Mutex;

    /// Tracks what is not frame 5.
    #[derive(Default)]
    struct NotFive(Mutex<Vec<u64>>);

    impl PageTracker for NotFive {
        fn track(&self, pages: GfnRange, _: Arc<dyn PageHandler>) -> Result<(), MarkError> {
            if pages.contains(Gfn(5)) {
                let mut err = MarkError::new(Error::new(Op::Mark, ErrorKind::WrongState));
                err.unknown.push(pages);
                return Err(err);
            }
            self.0.lock().unwrap().extend(pages.iter().map(|gfn| gfn.0));
            Ok(())
        }
        fn replace(&self, _: GfnRange, _: Arc<dyn PageHandler>) -> Result<()> {
            Ok(())
        }
        fn untrack(&self, _: GfnRange) -> Result<()> {
            Ok(())
        }
        fn state(&self, _: Gfn) -> PageState {
            PageState::Untracked
        }
    }

    struct Nothing;
    impl PageHandler for Nothing {
        fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
            PageOutcome::Apply
        }
    }

    #[test]
    fn page_by_page_says_what_became_of_each() {
        let each = |gfns: &[u64]| {
            let tracker = NotFive::default();
            let one = |gfn: &u64| -> (Gfn, Arc<dyn PageHandler>) { (Gfn(*gfn), Arc::new(Nothing)) };
            let result = tracker.track_each(gfns.iter().map(one).collect());
            (tracker.0.into_inner().unwrap(), result)
        };
        assert_eq!(each(&[]), (vec![], Ok(())));
        assert_eq!(each(&[9, 4]), (vec![9, 4], Ok(())));
        let (tracked, result) = each(&[9, 4, 5, 6, 1]);
        let err = result.unwrap_err();
        let ranges =
            |gfns: &[u64]| -> Vec<GfnRange> { gfns.iter().map(|gfn| Gfn(*gfn).into()).collect() };
        assert_eq!(tracked, [9, 4]);
        assert_eq!(
            (err.done, err.unknown, err.untouched),
            (ranges(&[9, 4]), ranges(&[5]), ranges(&[6, 1]))
        );
    }
}
