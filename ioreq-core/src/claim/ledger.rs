// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control side of tracking: one lock under which pages are marked, taken back and unmarked.
//!
//! The lock is held across hypercalls, never while waiting for a vCPU, a worker or a handler, so handlers may take it.

use std::sync::Arc;

use super::error::MarkError;
use super::unmark::{Look, Step, UnmarkEnv, Unmarker};
use crate::dispatch::{Counted, PageRoute};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::hypervisor::{Hypervisor, MarkAuthority, P2mType};
use crate::ids::Gfn;
use crate::range::GfnRange;
use crate::server::Core;
use crate::sync::atomic::{Ordering, fence};

/// Pages marked by one `set_mem_type`: bounded, so that the hypervisor is never busy for long with one call.
const MARK_BATCH: u64 = 1024;

/// What the claim knows of its pages beyond the page map.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The proof that the claim lives; pages can be marked while it is here.
    authority: Option<MarkAuthority>,
    /// The claim is being dropped: no new pages.
    closing: bool,
    pub(crate) unmarker: Unmarker,
}

impl Ledger {
    /// Claims the type. One claim a server.
    pub(crate) fn claim<H: Hypervisor>(&mut self, core: &Core<H>) -> Result<()> {
        if self.authority.is_some() {
            return Err(core.error(Op::ClaimMemType, ErrorKind::AlreadyClaimed));
        }
        core.hv.claim_mem_type(core.id)?;
        self.authority = Some(MarkAuthority::new());
        self.closing = false;
        Ok(())
    }

    /// From now on no page can be tracked.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Gives the type up, with whatever is still marked.
    pub(crate) fn disclaim<H: Hypervisor>(&mut self, core: &Core<H>) -> Result<()> {
        match self.authority.take() {
            Some(_) => core.hv.disclaim_mem_type(core.id),
            None => Ok(()),
        }
    }

    fn open<H: Hypervisor>(&self, core: &Core<H>) -> Result<()> {
        if self.authority.is_none() || self.closing {
            let err = core.error(Op::Mark, ErrorKind::WrongState);
            return Err(err.about("the claim on the memory type is gone"));
        }
        Ok(())
    }

    /// See [`PageTracker::track`](super::PageTracker::track).
    pub(crate) fn track<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        route: &Arc<Counted<PageRoute>>,
    ) -> Result<(), MarkError> {
        self.open(core).map_err(|err| untouched(err, pages))?;
        let parts = split(core, pages, route).map_err(|err| untouched(err, pages))?;
        for (index, part) in parts.iter().enumerate() {
            let result = if part.leaving {
                self.take_back(core, part.pages, route)
            } else {
                self.mark(core, part.pages, route)
            };
            let Err(mut err) = result else { continue };
            // Before the failing part all is done, after it nothing is touched.
            err.done
                .splice(0..0, parts.iter().take(index).map(|part| part.pages));
            err.untouched
                .extend(parts.iter().skip(index + 1).map(|part| part.pages));
            return Err(err);
        }
        // SeqCst: the routes, then the caller's reading of the pages; pairs with the fences in `Bus::write_page` and
        // `Bus::tracked_meanwhile`: a store that found no handler is in what the caller reads, or it finds the new one.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Pages that are leaving, and so still marked, go on being tracked.
    fn take_back<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        route: &Arc<Counted<PageRoute>>,
    ) -> Result<(), MarkError> {
        core.pages
            .replace(pages, route)
            .map_err(|err| untouched(err, pages))?;
        let env = Env {
            core,
            authority: self.authority.as_ref(),
        };
        for gfn in pages.iter() {
            self.unmarker.cancel(gfn, &env);
        }
        Ok(())
    }

    /// Publishes the route, then marks: a write that traps finds its handler.
    fn mark<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        route: &Arc<Counted<PageRoute>>,
    ) -> Result<(), MarkError> {
        let Some(authority) = &self.authority else {
            return Ok(());
        };
        core.pages
            .insert(pages, route)
            .map_err(|err| untouched(err, pages))?;
        for batch in pages.batches(MARK_BATCH) {
            let Err(err) = core.hv.set_mem_type(authority, P2mType::IoreqServer, batch) else {
                continue;
            };
            // Some pages of the batch may be marked, and the guest may have written to them: they leave by the safe protocol.
            let mut err = MarkError::new(err);
            if batch.first() > pages.first() {
                err.done
                    .extend(GfnRange::new(pages.first(), batch.first() - 1));
            }
            err.unknown.push(batch);
            if batch.last() < pages.last()
                && let Ok(rest) = GfnRange::new(batch.last() + 1, pages.last())
            {
                core.pages.remove(rest);
                err.untouched.push(rest);
            }
            self.leave(core, batch, &leaving_route(route));
            return Err(err);
        }
        Ok(())
    }

    /// See [`PageTracker::replace`](super::PageTracker::replace).
    pub(crate) fn replace<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        route: &Arc<Counted<PageRoute>>,
    ) -> Result<()> {
        self.open(core)?;
        let tracked = |gfn| {
            core.pages
                .route_of(gfn)
                .is_some_and(|old| !old.is_leaving())
        };
        if let Some(gfn) = pages.iter().find(|gfn| !tracked(*gfn)) {
            let err = core.error(Op::Route, ErrorKind::NoSuchRoute);
            return Err(err.about(GfnRange::from(gfn)));
        }
        core.pages.replace(pages, route)
    }

    /// See [`PageTracker::untrack`](super::PageTracker::untrack): of `pages`, those that are tracked by `tracker`'s routes
    /// (by anybody's, without one) start to leave.
    pub(crate) fn untrack<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        leaving: &Arc<Counted<PageRoute>>,
    ) -> Result<()> {
        self.open(core)?;
        for run in core.pages.ranges_in(pages) {
            for part in parts_of(core, run) {
                if !part.leaving {
                    self.leave(core, part.pages, leaving);
                }
            }
        }
        Ok(())
    }

    /// Everything starts to leave.
    pub(crate) fn untrack_all<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        leaving: &Arc<Counted<PageRoute>>,
    ) {
        for run in core.pages.ranges() {
            // Pages in the queue already are queued twice, and passed over the second time.
            self.leave(core, run, leaving);
        }
    }

    fn leave<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        leaving: &Arc<Counted<PageRoute>>,
    ) {
        match core.pages.replace(pages, leaving) {
            Ok(()) => self.unmarker.push(pages),
            Err(err) => tracing::error!(%err, "a tracked page has no route"),
        }
    }

    /// One step of the unmark protocol.
    pub(crate) fn step<H: Hypervisor>(&mut self, core: &Core<H>) -> Step {
        let env = Env {
            core,
            authority: self.authority.as_ref(),
        };
        self.unmarker.step(&env)
    }
}

/// A run of pages that are all leaving, or all unknown.
struct Part {
    pages: GfnRange,
    leaving: bool,
}

/// Cuts `pages` into runs that are leaving and runs that are not tracked; a tracked page is a conflict.
fn split<H: Hypervisor>(core: &Core<H>, pages: GfnRange, route: &PageRoute) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut next = pages.first();
    for run in core.pages.ranges_in(pages) {
        for part in parts_of(core, run) {
            if !part.leaving {
                let existing = core.pages.route_of(Gfn(part.pages.first()));
                let existing =
                    existing.map_or_else(String::new, |old| old.tracker.name.to_string());
                let err = core.error(Op::Mark, ErrorKind::RouteConflict);
                return Err(err.conflict(
                    format!("{pages} of {:?}", route.tracker.name),
                    format!("{} of {existing:?}", part.pages),
                ));
            }
        }
        if next < run.first() {
            parts.extend(GfnRange::new(next, run.first() - 1).map(|pages| Part {
                pages,
                leaving: false,
            }));
        }
        parts.push(Part {
            pages: run,
            leaving: true,
        });
        next = run.last() + 1;
    }
    if next <= pages.last() {
        parts.extend(GfnRange::new(next, pages.last()).map(|pages| Part {
            pages,
            leaving: false,
        }));
    }
    Ok(parts)
}

/// Cuts a run of known pages into leaving and tracked runs.
fn parts_of<H: Hypervisor>(core: &Core<H>, run: GfnRange) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for gfn in run.iter() {
        let leaving = core
            .pages
            .route_of(gfn)
            .is_none_or(|route| route.is_leaving());
        match parts.last_mut() {
            Some(last) if last.leaving == leaving => {
                if let Ok(longer) = GfnRange::new(last.pages.first(), gfn.0) {
                    last.pages = longer;
                }
            }
            _ => parts.push(Part {
                pages: gfn.into(),
                leaving,
            }),
        }
    }
    parts
}

/// The route of the same tracker's pages that leave.
fn leaving_route(route: &PageRoute) -> Arc<Counted<PageRoute>> {
    let tracker = Arc::clone(&route.tracker);
    Counted::new(PageRoute {
        handler: None,
        fallback: route.fallback,
        tracker,
    })
}

fn untouched(err: Error, pages: GfnRange) -> MarkError {
    let mut err = MarkError::new(err);
    err.untouched.push(pages);
    err
}

/// The unmark protocol's world: this server.
struct Env<'a, H: Hypervisor> {
    core: &'a Core<H>,
    authority: Option<&'a MarkAuthority>,
}

impl<H: Hypervisor> UnmarkEnv for Env<'_, H> {
    fn park(&self, gfn: Gfn) -> bool {
        self.core.pages.park(gfn)
    }

    fn unpark(&self, gfn: Gfn) {
        self.core.pages.unpark(gfn);
        self.core.wake_parked();
    }

    fn is_leaving(&self, gfn: Gfn) -> bool {
        self.core
            .pages
            .route_of(gfn)
            .is_some_and(|route| route.is_leaving())
    }

    fn look(&self, seen: &mut dyn FnMut(Look)) {
        self.core.look(seen);
    }

    fn grace(&self) -> Result<()> {
        self.core.hv.set_server_state(self.core.id, true)
    }

    fn set_type(&self, ty: P2mType, pages: GfnRange) -> Result<()> {
        match self.authority {
            Some(authority) => self.core.hv.set_mem_type(authority, ty, pages),
            None => Err(self.core.error(Op::SetMemType, ErrorKind::WrongState)),
        }
    }

    fn forget(&self, gfn: Gfn) {
        self.core.pages.remove(gfn.into());
    }
}
