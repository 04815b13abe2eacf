// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control side of tracking: one lock under which pages are marked, taken back and unmarked.
//!
//! The lock is held across hypercalls, never while waiting for a vCPU, a worker or a handler, so handlers may take it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::MarkError;
use super::parts::{Routed, Routes, runs_of, split, tracked_in};
use super::suspended::{Run, Suspended};
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
/// Pages with a handler each that are tracked again together.
const TOGETHER: usize = 1024;

/// What the claim knows of its pages beyond the page map.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The proof that the claim lives; pages can be marked while it is here.
    authority: Option<MarkAuthority>,
    /// The claim is being dropped: no new pages.
    closing: bool,
    pub(crate) unmarker: Unmarker,
    /// Pages that leave because marking them failed: they may be marked or not.
    unknown: BTreeSet<u64>,
    /// Pages that are tracked in intention only, while tracking is suspended.
    suspended: Option<Suspended>,
}

impl Ledger {
    /// Claims the type. One claim a server.
    pub(crate) fn claim<H: Hypervisor>(&mut self, core: &Core<H>) -> Result<()> {
        if self.authority.is_some() {
            return Err(core.error(Op::ClaimMemType, ErrorKind::AlreadyClaimed));
        }
        let inherits = core.inherits_claim();
        core.record_claim(true)?;
        match core.hv.claim_mem_type(core.id) {
            // By the process that died: the server owns it.
            Err(err) if inherits && err.kind() == ErrorKind::AlreadyClaimed => {}
            Err(err) => {
                core.record_claim(inherits)?;
                return Err(err);
            }
            Ok(()) => {}
        }
        self.authority = Some(MarkAuthority::new());
        self.closing = false;
        Ok(())
    }

    /// Finishes what a process that died while it was unmarking could not: a write that trapped before its page's type was changed is
    /// still in its slot, and its vCPU looks at the type once more when it is answered. So its page is marked again; whoever takes
    /// over finds it as one that was never unmarked. Before anything is served.
    pub(crate) fn mend<H: Hypervisor>(&self, core: &Core<H>) {
        let mut written = BTreeSet::new();
        core.look(&mut |look| {
            if let Look::Waiting(gfn) | Look::Serving(gfn) | Look::Answered(gfn) = look {
                written.insert(gfn.0);
            }
        });
        // The dead process's claim is the server's still.
        let authority = MarkAuthority::new();
        for gfn in written.into_iter().map(Gfn) {
            // Refused for the normal cases: a page that is still marked, and an address that is no RAM.
            let _marked = core
                .hv
                .set_mem_type(&authority, P2mType::IoreqServer, gfn.into());
        }
    }

    /// From now on no page can be tracked.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Gives the type up, with whatever is still marked.
    pub(crate) fn disclaim<H: Hypervisor>(&mut self, core: &Core<H>) -> Result<()> {
        self.unknown.clear();
        match self.authority.take() {
            Some(_) => core.hv.disclaim_mem_type(core.id)?,
            None => return Ok(()),
        }
        core.record_claim(false)
    }

    fn open<H: Hypervisor>(&self, core: &Core<H>) -> Result<()> {
        if self.authority.is_none() || self.closing {
            let err = core.error(Op::Mark, ErrorKind::WrongState);
            return Err(err.about("the claim on the memory type is gone"));
        }
        Ok(())
    }

    /// Open, and pages can be marked.
    fn marking<H: Hypervisor>(&self, core: &Core<H>) -> Result<()> {
        self.open(core)?;
        if self.suspended.is_some() {
            let err = core.error(Op::Mark, ErrorKind::Busy);
            return Err(err.about("tracking is suspended: resume it first"));
        }
        Ok(())
    }

    /// Whether there is a claim, and it is not about to end.
    pub(crate) fn is_claimed(&self) -> bool {
        self.authority.is_some() && !self.closing
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// Everything starts to leave, and is remembered. Nothing can be tracked until [`resume`](Self::resume). Where that failed in the
    /// middle, the pages that it did leave again.
    pub(crate) fn suspend<H: Hypervisor>(&mut self, core: &Core<H>) -> Result<()> {
        self.open(core)?;
        let mut tracked = Suspended::default();
        for gfn in core.pages.ranges().iter().flat_map(GfnRange::iter) {
            let route = core.pages.route_of(gfn);
            if let Some(route) = route.filter(|route| !route.is_leaving()) {
                tracked.add(gfn, route);
            }
        }
        for (pages, route) in tracked.runs() {
            self.leave(core, *pages, &leaving_route(route));
        }
        self.suspended.get_or_insert_default().extend(tracked);
        Ok(())
    }

    /// Tracks again what was tracked when tracking was suspended. If that fails it stays suspended, and what is not tracked yet stays
    /// remembered.
    pub(crate) fn resume<H: Hypervisor>(&mut self, core: &Core<H>) -> Result<(), MarkError> {
        let Some(mut suspended) = self.suspended.take() else {
            return Ok(());
        };
        let result = self.track_again(core, &suspended);
        let done = match &result {
            Ok(()) => suspended.runs().map(|(pages, _)| *pages).collect(),
            Err(err) => err.done.clone(),
        };
        for pages in done {
            free_later(core, suspended.take(pages, None));
        }
        if result.is_err() {
            self.suspended = Some(suspended);
        }
        result
    }

    fn track_again<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        suspended: &Suspended,
    ) -> Result<(), MarkError> {
        let runs: Vec<&Run> = suspended.runs().collect();
        let mut done = 0;
        while let Some((pages, route)) = runs.get(done) {
            // Long runs by themselves, what is between them together: few hypercalls either way.
            let short = runs.iter().skip(done).take(TOGETHER);
            let single: Vec<Routed> = short
                .take_while(|(pages, _)| pages.pages() == 1)
                .map(|(pages, route)| (Gfn(pages.first()), route.clone()))
                .collect();
            let (count, result) = match single.len() {
                0 => (1, self.track(core, *pages, route)),
                count => (count, self.track_each(core, &single)),
            };
            if let Err(mut err) = result {
                let pages = |(pages, _): &&Run| *pages;
                let before = runs.iter().take(done).map(pages);
                err.done.splice(0..0, before);
                let after = runs.iter().skip(done + count).map(pages);
                err.untouched.extend(after);
                return Err(err);
            }
            done += count;
        }
        Ok(())
    }

    /// What would be tracked if tracking were not suspended, with the name of its tracker; in order. At rest that is all: see
    /// [`quiesce`](crate::server::IoreqServer::quiesce).
    pub(crate) fn tracked(&self) -> impl Iterator<Item = (&Arc<str>, GfnRange)> {
        let runs = self.suspended.iter().flat_map(Suspended::runs);
        runs.map(|(pages, route)| (&route.tracker.name, *pages))
    }

    /// The claim is gone, and nothing is to be tracked again.
    pub(crate) fn forget_suspended(&mut self) -> Option<Suspended> {
        self.suspended.take()
    }

    /// See [`PageTracker::track`](super::PageTracker::track).
    pub(crate) fn track<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        route: &Counted<PageRoute>,
    ) -> Result<(), MarkError> {
        self.track_runs(core, &[pages], Routes::Shared(route))
    }

    /// See [`PageTracker::track_each`](super::PageTracker::track_each); `pages` ascend.
    pub(crate) fn track_each<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: &[Routed],
    ) -> Result<(), MarkError> {
        let runs = runs_of(pages).map_err(|twice| {
            let err = core.error(Op::Mark, ErrorKind::InvalidArgument);
            let all = pages.iter().map(|(gfn, _)| GfnRange::from(*gfn));
            untouched(err.about(format!("{twice} twice in one call")), all)
        })?;
        self.track_runs(core, &runs, Routes::Each(pages))
    }

    /// All runs are looked at before any is changed.
    fn track_runs<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        runs: &[GfnRange],
        routes: Routes<'_>,
    ) -> Result<(), MarkError> {
        let refused = |err| untouched(err, runs.iter().copied());
        self.marking(core).map_err(refused)?;
        let mut parts = Vec::new();
        for run in runs {
            parts.extend(split(core, *run, routes).map_err(refused)?);
        }
        let leaving = parts.iter().filter(|part| part.leaving);
        for part in leaving {
            self.check_known(core, part.pages).map_err(refused)?;
        }
        for (index, part) in parts.iter().enumerate() {
            let result = if part.leaving {
                self.take_back(core, part.pages, routes)
            } else {
                self.mark(core, part.pages, routes)
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

    /// See [`Tracker::adopt`](super::Tracker::adopt).
    pub(crate) fn adopt<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        route: &Counted<PageRoute>,
    ) -> Result<()> {
        self.marking(core)?;
        core.pages.insert(pages, route)?;
        // SeqCst: as at the end of `track_runs`.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// A page that leaves because marking it failed may not be marked at all, so it cannot simply be taken back.
    fn check_known<H: Hypervisor>(&self, core: &Core<H>, pages: GfnRange) -> Result<()> {
        let mut unknown = self.unknown.range(pages.first()..=pages.last());
        let Some(gfn) = unknown.next() else {
            return Ok(());
        };
        let err = core.error(Op::Mark, ErrorKind::Retry);
        Err(err.about(format!(
            "marking {} failed before, and it is still being unmarked",
            Gfn(*gfn)
        )))
    }

    /// Pages that are leaving, and so still marked, go on being tracked.
    fn take_back<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        routes: Routes<'_>,
    ) -> Result<(), MarkError> {
        let replaced = routes.for_each(pages, |part, route| core.pages.replace(part, route));
        replaced.map_err(|(_, err)| untouched(err, [pages]))?;
        let env = Env {
            core,
            authority: self.authority.as_ref(),
        };
        for gfn in pages.iter() {
            self.unmarker.cancel(gfn, &env);
        }
        Ok(())
    }

    /// Publishes the routes, then marks: a write that traps finds its handler.
    fn mark<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        routes: Routes<'_>,
    ) -> Result<(), MarkError> {
        let Some(authority) = &self.authority else {
            return Ok(());
        };
        let mut edit = core.pages.edit();
        let inserted = routes.for_each(pages, |part, route| edit.insert(part, route));
        inserted.map_err(|(at, err)| {
            if let Some(before) = range(pages.first(), at.first().checked_sub(1)) {
                edit.remove(before);
            }
            untouched(err, [pages])
        })?;
        drop(edit);
        for batch in pages.batches(MARK_BATCH) {
            let Err(err) = core.hv.set_mem_type(authority, P2mType::IoreqServer, batch) else {
                continue;
            };
            // Some pages of the batch may be marked, and the guest may have written to them: they leave by the safe protocol.
            let mut err = MarkError::new(err);
            err.done
                .extend(range(pages.first(), batch.first().checked_sub(1)));
            err.unknown.push(batch);
            if let Some(rest) = range(batch.last() + 1, Some(pages.last())) {
                core.pages.remove(rest);
                err.untouched.push(rest);
            }
            self.unknown.extend(batch.first()..=batch.last());
            let left = routes.for_each(batch, |part, route| {
                self.leave(core, part, &leaving_route(route));
                Ok(())
            });
            debug_assert!(left.is_ok(), "leaving does not fail");
            return Err(err);
        }
        Ok(())
    }

    /// See [`PageTracker::replace`](super::PageTracker::replace).
    pub(crate) fn replace<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        route: &Counted<PageRoute>,
    ) -> Result<()> {
        self.open(core)?;
        let suspended = self.suspended.as_mut();
        if let Some(old) = suspended.and_then(|suspended| suspended.replace(pages, route)) {
            free_later(core, old);
            return Ok(());
        }
        let tracked = |gfn| {
            let old = core.pages.route_of(gfn);
            old.is_some_and(|old| !old.is_leaving() && old.is_of(&route.tracker))
        };
        if let Some(gfn) = pages.iter().find(|gfn| !tracked(*gfn)) {
            let err = core.error(Op::Route, ErrorKind::NoSuchRoute);
            return Err(err.about(GfnRange::from(gfn)));
        }
        core.pages.replace(pages, route)
    }

    /// See [`PageTracker::untrack`](super::PageTracker::untrack): of `pages`, those that the tracker of `leaving` tracks start
    /// to leave.
    pub(crate) fn untrack<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        pages: GfnRange,
        leaving: &Counted<PageRoute>,
    ) -> Result<()> {
        self.open(core)?;
        if let Some(suspended) = &mut self.suspended {
            free_later(core, suspended.take(pages, Some(&leaving.tracker)));
        }
        for run in core.pages.ranges_in(pages) {
            for tracked in tracked_in(core, run, Some(&leaving.tracker)) {
                self.leave(core, tracked, leaving);
            }
        }
        Ok(())
    }

    /// Everything starts to leave.
    pub(crate) fn untrack_all<H: Hypervisor>(
        &mut self,
        core: &Core<H>,
        leaving: &Counted<PageRoute>,
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
        leaving: &Counted<PageRoute>,
    ) {
        core.forget_late(pages);
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
        let step = self.unmarker.step(&env);
        // One that has no route any more has been unmarked.
        if !self.unknown.is_empty() {
            self.unknown
                .retain(|gfn| core.pages.route_of(Gfn(*gfn)).is_some());
        }
        step
    }
}

/// The route of the same tracker's pages that leave.
fn leaving_route(route: &PageRoute) -> Counted<PageRoute> {
    let tracker = Arc::clone(&route.tracker);
    Counted::new(PageRoute {
        handler: None,
        leaving: true,
        fallback: route.fallback,
        tracker,
    })
}

/// Frees routes where their handlers' end may untrack pages: not under the ledger's lock.
fn free_later<H: Hypervisor>(core: &Core<H>, routes: Vec<Run>) {
    if !routes.is_empty() {
        core.grace.retire(move || drop(routes));
    }
}

fn untouched(err: Error, pages: impl IntoIterator<Item = GfnRange>) -> MarkError {
    let mut err = MarkError::new(err);
    err.untouched.extend(pages);
    err
}

/// `first` to `last`, if there is anything between.
fn range(first: u64, last: Option<u64>) -> Option<GfnRange> {
    GfnRange::new(first, last?).ok()
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
        self.core.unpark(gfn);
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

    fn forget(&self, pages: GfnRange) {
        self.core.pages.remove(pages);
    }
}
