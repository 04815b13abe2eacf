// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages whose tracking is suspended: not marked, but known with their routes, so that they can be marked again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::dispatch::{Counted, PageRoute, TrackerShared};
use crate::ids::Gfn;
use crate::range::GfnRange;

/// A page's route.
pub(super) type Shared = Counted<PageRoute>;
/// Neighbouring pages with the same route.
pub(super) type Run = (GfnRange, Shared);

/// See the module. What is taken out holds handlers: whoever takes it frees it where a handler's end may untrack pages.
#[derive(Default)]
pub(crate) struct Suspended {
    /// By their first page; without overlap.
    runs: BTreeMap<u64, Run>,
}

impl Suspended {
    /// Adds a page, not known yet.
    pub(super) fn add(&mut self, gfn: Gfn, route: Shared) {
        let before = self.runs.range_mut(..gfn.0).next_back();
        let longer = before.and_then(|(_, (run, known))| {
            let fits = run.last() + 1 == gfn.0 && known.is(&route);
            let longer = fits.then(|| GfnRange::new(run.first(), gfn.0).ok())??;
            Some((longer, run))
        });
        match longer {
            Some((longer, run)) => *run = longer,
            None => self.insert((gfn.into(), route)),
        }
    }

    /// Adds pages, none of them known yet.
    pub(super) fn extend(&mut self, more: Suspended) {
        self.runs.extend(more.runs);
    }

    fn insert(&mut self, run: Run) {
        self.runs.insert(run.0.first(), run);
    }

    /// All, in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// Takes out those of `pages` that are `tracker`'s, or anybody's.
    pub(super) fn take(
        &mut self,
        pages: GfnRange,
        tracker: Option<&Arc<TrackerShared>>,
    ) -> Vec<Run> {
        let overlapping = self.runs.range(..=pages.last()).rev();
        let overlapping = overlapping.take_while(|(_, (run, _))| run.last() >= pages.first());
        let wanted = |route: &Shared| tracker.is_none_or(|tracker| route.is_of(tracker));
        let starts: Vec<u64> = overlapping
            .filter(|(_, (_, route))| wanted(route))
            .map(|(first, _)| *first)
            .collect();
        let mut taken = Vec::new();
        for first in starts.into_iter().rev() {
            let Some((run, route)) = self.runs.remove(&first) else {
                continue;
            };
            let part = |first: u64, last: Option<u64>| GfnRange::new(first, last?).ok();
            let before = part(run.first(), pages.first().checked_sub(1));
            if let Some(before) = before {
                self.insert((before, route.clone()));
            }
            if let Some(after) = part(pages.last() + 1, Some(run.last())) {
                self.insert((after, route.clone()));
            }
            let inside = part(
                run.first().max(pages.first()),
                Some(run.last().min(pages.last())),
            );
            taken.extend(inside.map(|inside| (inside, route)));
        }
        taken
    }

    /// Gives `pages` another route of the same tracker; the old ones are given back. None, and nothing is changed, unless all of
    /// them are known and that tracker's.
    pub(super) fn replace(&mut self, pages: GfnRange, route: &Shared) -> Option<Vec<Run>> {
        let old = self.take(pages, Some(&route.tracker));
        if old.iter().map(|(run, _)| run.pages()).sum::<u64>() != pages.pages() {
            old.into_iter().for_each(|run| self.insert(run));
            return None;
        }
        self.insert((pages, route.clone()));
        Some(old)
    }
}

impl fmt::Debug for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages: u64 = self.runs().map(|(run, _)| run.pages()).sum();
        f.debug_struct("Suspended").field("pages", &pages).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::handler::Verdict;
    use crate::stats::PerWorker;

    fn tracker() -> Arc<TrackerShared> {
        Arc::new(TrackerShared {
            name: "t".into(),
            counters: PerWorker::new(1),
        })
    }

    fn route(tracker: &Arc<TrackerShared>) -> Shared {
        Counted::new(PageRoute {
            handler: None,
            leaving: true,
            fallback: Verdict::Apply,
            tracker: Arc::clone(tracker),
        })
    }

    fn range(first: u64, last: u64) -> GfnRange {
        GfnRange::new(first, last).unwrap()
    }

    fn ends<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Vec<(u64, u64)> {
        let ends = runs.into_iter().map(|(run, _)| (run.first(), run.last()));
        ends.collect()
    }

    #[test]
    fn neighbours_with_one_route_are_one_run() {
        let tracker = tracker();
        let (a, b) = (route(&tracker), route(&tracker));
        let mut pages = Suspended::default();
        for (gfn, route) in [(3, &a), (4, &a), (5, &b), (7, &b), (0, &a), (1, &b)] {
            pages.add(Gfn(gfn), route.clone());
        }
        assert_eq!(ends(pages.runs()), [(0, 0), (1, 1), (3, 4), (5, 5), (7, 7)]);
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest() {
        let (mine, other) = (tracker(), tracker());
        let (a, b) = (route(&mine), route(&other));
        let mut pages = Suspended::default();
        (2..=9).for_each(|gfn| pages.add(Gfn(gfn), a.clone()));
        (12..=15).for_each(|gfn| pages.add(Gfn(gfn), b.clone()));
        (16..=17).for_each(|gfn| pages.add(Gfn(gfn), a.clone()));
        assert_eq!(ends(&pages.take(range(10, 11), None)), []);
        assert_eq!(ends(&pages.take(range(4, 5), Some(&mine))), [(4, 5)]);
        assert_eq!(ends(pages.runs()), [(2, 3), (6, 9), (12, 15), (16, 17)]);
        assert_eq!(ends(&pages.take(range(0, 13), Some(&other))), [(12, 13)]);
        let all = range(0, Gfn::MAX.0);
        assert_eq!(
            ends(&pages.take(all, Some(&mine))),
            [(2, 3), (6, 9), (16, 17)]
        );
        assert_eq!(ends(&pages.take(range(15, 20), None)), [(15, 15)]);
        assert_eq!(ends(pages.runs()), [(14, 14)]);
    }

    #[test]
    fn routes_are_replaced_as_a_whole_or_not_at_all() {
        let (mine, other) = (tracker(), tracker());
        let (a, b, c) = (route(&mine), route(&other), route(&mine));
        let mut pages = Suspended::default();
        (2..=5).for_each(|gfn| pages.add(Gfn(gfn), a.clone()));
        pages.add(Gfn(6), b.clone());
        assert!(pages.replace(range(4, 6), &c).is_none(), "one is another's");
        assert!(pages.replace(range(1, 2), &c).is_none(), "one is unknown");
        let known = |pages: &Suspended, route| {
            let runs = pages.runs().filter(|(_, known)| known.is(route));
            runs.map(|(run, _)| run.pages()).sum::<u64>()
        };
        assert_eq!((known(&pages, &a), known(&pages, &c)), (4, 0));
        assert_eq!(ends(&pages.replace(range(4, 5), &c).unwrap()), [(4, 5)]);
        assert_eq!((known(&pages, &a), known(&pages, &c)), (2, 2));
    }
}
