// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages that are to be tracked: which routes they get, and how they stand now, in runs.

use std::sync::Arc;

use crate::dispatch::{Counted, PageRoute, TrackerShared};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::hypervisor::Hypervisor;
use crate::ids::Gfn;
use crate::range::GfnRange;
use crate::server::Core;

/// A page with the route that it gets.
pub(super) type Routed = (Gfn, Arc<Counted<PageRoute>>);

/// The routes that pages get.
#[derive(Clone, Copy)]
pub(super) enum Routes<'a> {
    /// One for all.
    Shared(&'a Arc<Counted<PageRoute>>),
    /// Each its own; pages ascend.
    Each(&'a [Routed]),
}

impl<'a> Routes<'a> {
    /// The route of a page, or of the first that has one.
    pub(super) fn of(self, gfn: u64) -> Option<&'a Arc<Counted<PageRoute>>> {
        match self {
            Routes::Shared(route) => Some(route),
            Routes::Each(all) => {
                let at = all.partition_point(|(other, _)| other.0 < gfn);
                all.get(at).map(|(_, route)| route)
            }
        }
    }

    /// Calls `with` for the longest parts of `pages` that get one route, up to the first error; says where that was.
    pub(super) fn for_each(
        self,
        pages: GfnRange,
        mut with: impl FnMut(GfnRange, &Arc<Counted<PageRoute>>) -> Result<()>,
    ) -> Result<(), (GfnRange, Error)> {
        match self {
            Routes::Shared(route) => with(pages, route).map_err(|err| (pages, err)),
            Routes::Each(_) => pages.iter().try_for_each(|gfn| match self.of(gfn.0) {
                Some(route) => with(gfn.into(), route).map_err(|err| (gfn.into(), err)),
                None => Ok(()),
            }),
        }
    }
}

/// The longest runs of ascending pages.
///
/// # Errors
/// The page that does not ascend: it is there twice.
pub(super) fn runs_of(pages: &[Routed]) -> Result<Vec<GfnRange>, Gfn> {
    let mut runs: Vec<GfnRange> = Vec::new();
    for (gfn, _) in pages {
        let longer = match runs.last() {
            Some(run) if gfn.0 <= run.last() => return Err(*gfn),
            Some(run) if gfn.0 == run.last() + 1 => GfnRange::new(run.first(), gfn.0).ok(),
            _ => None,
        };
        match (longer, runs.last_mut()) {
            (Some(longer), Some(last)) => *last = longer,
            _ => runs.push((*gfn).into()),
        }
    }
    Ok(runs)
}

/// A run of pages that stand alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) pages: GfnRange,
    /// They are on their way out; else they are tracked, or of no concern, as the context has it.
    pub(super) leaving: bool,
}

/// Cuts `pages` into runs that are leaving and runs that are not tracked; a tracked page is a conflict.
pub(super) fn split<H: Hypervisor>(
    core: &Core<H>,
    pages: GfnRange,
    routes: Routes<'_>,
) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut next = pages.first();
    for run in core.pages.ranges_in(pages) {
        for part in parts_of(core, run, None) {
            if !part.leaving {
                return Err(conflict(core, part.pages, pages, routes));
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

/// `tracked`, of `pages`, have a handler already.
fn conflict<H: Hypervisor>(
    core: &Core<H>,
    tracked: GfnRange,
    pages: GfnRange,
    routes: Routes<'_>,
) -> Error {
    let name = |route: Option<&PageRoute>| {
        route.map_or_else(String::new, |route| route.tracker.name.to_string())
    };
    let new = name(routes.of(pages.first()).map(|route| &***route));
    let existing = core.pages.route_of(Gfn(tracked.first()));
    let existing = name(existing.as_deref().map(|route| &**route));
    let err = core.error(Op::Mark, ErrorKind::RouteConflict);
    err.conflict(
        format!("{pages} of {new:?}"),
        format!("{tracked} of {existing:?}"),
    )
}

/// Cuts a run of known pages into tracked runs, by `tracker` if one is given, and others.
pub(super) fn parts_of<H: Hypervisor>(
    core: &Core<H>,
    run: GfnRange,
    tracker: Option<&Arc<TrackerShared>>,
) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for gfn in run.iter() {
        let tracked = core.pages.route_of(gfn).is_some_and(|route| {
            !route.is_leaving() && tracker.is_none_or(|tracker| route.is_of(tracker))
        });
        let leaving = !tracked;
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
