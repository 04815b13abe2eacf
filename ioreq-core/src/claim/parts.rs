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
pub(super) type Routed = (Gfn, Counted<PageRoute>);

/// The routes that pages get.
#[derive(Clone, Copy)]
pub(super) enum Routes<'a> {
    /// One for all.
    Shared(&'a Counted<PageRoute>),
    /// Each its own; pages ascend.
    Each(&'a [Routed]),
}

impl<'a> Routes<'a> {
    /// The route of a page, or of the first that has one.
    pub(super) fn of(self, gfn: u64) -> Option<&'a Counted<PageRoute>> {
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
        mut with: impl FnMut(GfnRange, &Counted<PageRoute>) -> Result<()>,
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
        if runs.last().is_some_and(|run| gfn.0 <= run.last()) {
            return Err(*gfn);
        }
        join(&mut runs, *gfn);
    }
    Ok(runs)
}

/// Adds a page beyond all of `runs`: to the last one if they are neighbours.
fn join(runs: &mut Vec<GfnRange>, gfn: Gfn) {
    let neighbour = runs.last_mut().filter(|run| run.last() + 1 == gfn.0);
    match neighbour.map(|run| (GfnRange::new(run.first(), gfn.0), run)) {
        Some((Ok(longer), run)) => *run = longer,
        _ => runs.push(gfn.into()),
    }
}

/// A run of pages to be tracked that stand alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) pages: GfnRange,
    /// They are on their way out, and so still marked; else the framework does not know them.
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
        if let Some(tracked) = tracked_in(core, run, None).first() {
            return Err(conflict(core, *tracked, pages, routes));
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
    let new = name(routes.of(pages.first()).map(|route| &**route));
    let existing = core.pages.route_of(Gfn(tracked.first()));
    let existing = name(existing.as_deref());
    let err = core.error(Op::Mark, ErrorKind::RouteConflict);
    err.conflict(
        format!("{pages} of {new:?}"),
        format!("{tracked} of {existing:?}"),
    )
}

/// Those of `pages` that have a handler, by `tracker` if one is given, in runs.
pub(super) fn tracked_in<H: Hypervisor>(
    core: &Core<H>,
    pages: GfnRange,
    tracker: Option<&Arc<TrackerShared>>,
) -> Vec<GfnRange> {
    let mut runs: Vec<GfnRange> = Vec::new();
    for gfn in pages.iter() {
        let tracked = core.pages.route_of(gfn).is_some_and(|route| {
            !route.is_leaving() && tracker.is_none_or(|tracker| route.is_of(tracker))
        });
        if tracked {
            join(&mut runs, gfn);
        }
    }
    runs
}
