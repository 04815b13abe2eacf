// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages that come to be tracked and leave, under a guest that writes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use ioreq::claim::{MemTypeClaim, PageState, PageTracker, Tracker};
use ioreq::handler::PageHandler;
use ioreq::{ErrorKind, Gfn, GfnRange, Hypervisor};

use crate::Failure;
use crate::device::{Later, Watch};
use crate::layout::{PAGES, RUNS, run};
use crate::tally::Tally;

/// For what must happen.
pub(super) const BOUND: Duration = Duration::from_secs(30);

/// A claim with its tracker and handler.
pub(super) struct Tracking<H: Hypervisor> {
    pub(super) claim: MemTypeClaim<H>,
    pub(super) tracker: Tracker<H>,
    pub(super) watch: Arc<Watch>,
}

impl<H: Hypervisor> Tracking<H> {
    pub(super) fn new(claim: MemTypeClaim<H>, tally: &Arc<Tally>, later: &Arc<Later>) -> Self {
        Self::over(claim, Watch::new(tally, later, None))
    }

    pub(super) fn over(claim: MemTypeClaim<H>, watch: Watch) -> Self {
        Tracking {
            tracker: claim.tracker("pages"),
            claim,
            watch: Arc::new(watch),
        }
    }

    pub(super) fn handler(&self) -> Arc<dyn PageHandler> {
        Arc::clone(&self.watch) as _
    }

    /// Untracks a run of pages that are all tracked; else tracks those of them that are not. `short` says that there may be no memory
    /// for it.
    pub(super) fn change(&self, random: &mut Rng, short: bool) -> Result<(), Failure> {
        let (first, count) = RUNS[random.usize(0..RUNS.len())];
        let mut pages = first..first + count;
        let state = |gfn| self.tracker.state(Gfn(gfn));
        if pages.clone().all(|gfn| state(gfn) == PageState::Tracked) {
            match random.u8(0..4) {
                0 => self.tracker.replace(run((first, count)), self.handler())?,
                _ => self.tracker.untrack(run((first, count)))?,
            }
            return Ok(());
        }
        if random.bool() {
            let each: Vec<_> = pages
                .filter(|gfn| state(*gfn) != PageState::Tracked)
                .map(|gfn| (Gfn(gfn), self.handler()))
                .collect();
            return bearable(self.tracker.track_each(each).map_err(Into::into), short);
        }
        while let Some(first) = pages.find(|gfn| state(*gfn) != PageState::Tracked) {
            // Once: a page that is leaving may have left at the next look.
            let of_first = state(first);
            let same = (first + 1..pages.end).take_while(|gfn| state(*gfn) == of_first);
            let some = GfnRange::sized(first, 1 + same.count() as u64)?;
            bearable(
                self.tracker.track(some, self.handler()).map_err(Into::into),
                short,
            )?;
        }
        Ok(())
    }

    /// Goes on as it was: for what [`MemTypeClaim::suspend`] did.
    pub(super) fn resume(&self, short: bool) -> Result<(), Failure> {
        let end = Instant::now() + BOUND;
        while let Err(err) = self.claim.resume() {
            if !short || Instant::now() > end {
                return Err(err.into());
            }
            self.claim.settle(BOUND)?;
        }
        Ok(())
    }

    /// Leaves all pages, and waits until none is marked. Writers may go on.
    pub(super) fn leave_all(&self) -> Result<(), Failure> {
        self.tracker
            .untrack(GfnRange::new(PAGES.start, PAGES.end - 1)?)?;
        let end = Instant::now() + BOUND;
        while self.claim.marked_pages() > 0 {
            let report = self.claim.settle(Duration::from_millis(100))?;
            if Instant::now() > end {
                return Err(format!("pages stay marked: {report:?}").into());
            }
        }
        Ok(())
    }

    /// What its handler found strange.
    pub(super) fn judge(&self) -> Result<(), Failure> {
        match self.watch.strange.load(std::sync::atomic::Ordering::SeqCst) {
            0 => Ok(()),
            strange => Err(format!("{strange} writes went to a handler of other pages").into()),
        }
    }
}

/// Marking may be refused where a page that failed before is not unmarked yet, and, if memory is `short`, for that.
fn bearable(result: ioreq::Result<()>, short: bool) -> Result<(), Failure> {
    match result {
        Err(err) if short && matches!(err.kind(), ErrorKind::OutOfMemory | ErrorKind::Retry) => {
            Ok(())
        }
        other => Ok(other?),
    }
}
