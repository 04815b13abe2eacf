// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The claim on the memory type.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{MarkError, Tracker};
use crate::dispatch::TrackerShared;
use crate::error::{ErrorKind, Op, Result};
use crate::handler::scope;
use crate::hypervisor::Hypervisor;
use crate::range::GfnRange;
use crate::server::Core;
use crate::stats::PerWorker;

/// How long a claim that is dropped goes on unmarking before it gives the type up with pages outstanding.
const DROP_BOUND: Duration = Duration::from_secs(5);

/// What became of the pages that were to be unmarked.
///
/// ```
/// let report = ioreq_core::claim::UnmarkReport::default();
/// assert!(report.deferred.is_empty());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnmarkReport {
    /// Pages unmarked since the claim was made.
    pub unmarked: u64,
    /// Of these, pages that the guest was writing: after they had started to leave, a trapped write to them was served, or seen in
    /// flight.
    pub contended: u64,
    /// Pages still marked: the guest kept writing them. Their writes are applied as written, and they are tried again in
    /// the background.
    pub deferred: Vec<GfnRange>,
}

/// Ownership of `p2m_ioreq_server` for one server. Made by [`IoreqServer::claim_mem_type`]; it keeps the server alive.
///
/// Dropping it unmarks every page by the safe protocol, then disclaims. That can take as long as the guest keeps writing to
/// the pages, 5 seconds at most; what is still marked then goes back to ordinary RAM all at once, which a guest in the middle
/// of a write may not survive. Call [`settle`](Self::settle) first to know.
///
/// [`IoreqServer::claim_mem_type`]: crate::server::IoreqServer::claim_mem_type
///
/// ```
/// use ioreq_core::{ErrorKind, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
/// use std::time::Duration;
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let claim = server.claim_mem_type()?;
/// // One owner at a time, and no end of the server before the end of its claim.
/// assert_eq!(server.claim_mem_type().unwrap_err().kind(), ErrorKind::AlreadyClaimed);
/// let server = server.destroy().unwrap_err().server;
///
/// assert_eq!(claim.marked_pages(), 0);
/// assert!(claim.settle(Duration::from_secs(1))?.deferred.is_empty());
/// drop(claim); // disclaims
/// server.destroy()?;
/// assert!(domain.leaks().is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MemTypeClaim<H: Hypervisor> {
    core: Option<Arc<Core<H>>>,
}

impl<H: Hypervisor> MemTypeClaim<H> {
    pub(crate) fn new(core: &Arc<Core<H>>) -> Result<Self> {
        core.ledger().claim(core)?;
        Ok(MemTypeClaim {
            core: Some(Arc::clone(core)),
        })
    }

    fn core(&self) -> &Arc<Core<H>> {
        self.core.as_ref().expect("taken by drop alone")
    }

    /// A way to track pages; `name` is for errors and statistics. A server may have several, for different purposes.
    #[must_use]
    pub fn tracker(&self, name: &str) -> Tracker<H> {
        let core = self.core();
        let counters = PerWorker::new(core.worker_slots());
        let shared = Arc::new(TrackerShared {
            name: name.into(),
            counters,
        });
        core.register_tracker(&shared);
        Tracker::new(Arc::downgrade(core), shared)
    }

    /// Goes on with unmarking until nothing is queued, for at most `bound`; serves requests meanwhile where no worker does.
    ///
    /// # Errors
    /// `WouldDeadlock` from a handler.
    pub fn settle(&self, bound: Duration) -> Result<UnmarkReport> {
        let core = self.core();
        if scope::in_handler() {
            return Err(core.error(Op::Unmark, ErrorKind::WouldDeadlock));
        }
        Ok(core.settle(bound))
    }

    /// Suspends tracking: unmarks all pages by the safe protocol, for at most `bound`, and remembers them with their handlers. For
    /// what cannot be had while pages are marked: Xen does not turn log-dirty mode on then (EBUSY), and lets no page be marked
    /// while it is on, so a live migration begins with this. Requests are served as before, by workers or by this call.
    ///
    /// When nothing is left ([`marked_pages`](Self::marked_pages) is 0), log-dirty mode can be turned on; else call it again,
    /// or [`resume`](Self::resume). Until then nothing can be tracked (`Busy`); what is untracked is forgotten.
    ///
    /// ```
    /// use ioreq_core::{ErrorKind, Gfn, server::IoreqServer};
    /// use ioreq_core::claim::PageTracker;
    /// use ioreq_sim::{DomainConfig, Machine};
    /// # use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite};
    /// # struct Watch;
    /// # impl PageHandler for Watch {
    /// #     fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
    /// #         PageOutcome::Apply
    /// #     }
    /// # }
    /// # use std::{sync::Arc, time::Duration};
    ///
    /// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    /// let server = IoreqServer::builder(domain.hypervisor()).build()?;
    /// let claim = server.claim_mem_type()?;
    /// let tracker = claim.tracker("watch");
    /// tracker.track(Gfn(0x10).into(), Arc::new(Watch))?;
    ///
    /// assert_eq!(domain.set_log_dirty(true).unwrap_err().kind(), ErrorKind::Busy);
    /// claim.suspend(Duration::from_secs(5))?;
    /// domain.set_log_dirty(true)?;
    /// server.set_dirty_logging(true)?;
    /// // … the migration fails after all
    /// server.set_dirty_logging(false)?;
    /// domain.set_log_dirty(false)?;
    /// claim.resume()?;
    /// assert_eq!(claim.marked_pages(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `WouldDeadlock` from a handler.
    pub fn suspend(&self, bound: Duration) -> Result<UnmarkReport> {
        let core = self.core();
        if scope::in_handler() {
            return Err(core.error(Op::Unmark, ErrorKind::WouldDeadlock));
        }
        core.ledger().suspend(core)?;
        core.wake_control();
        Ok(core.settle_all(bound))
    }

    /// Tracks all pages again that were tracked when tracking was [suspended](Self::suspend), with the same handlers. The guest
    /// may have written to them meanwhile: what a handler derives from its pages it has to read again, after this.
    ///
    /// # Errors
    /// As [`PageTracker::track`](super::PageTracker::track), `WrongState` while log-dirty mode is on: of what became of every page
    /// the [`MarkError`] tells. Tracking stays suspended then; call it again.
    pub fn resume(&self) -> Result<(), MarkError> {
        let core = self.core();
        let result = core.ledger().resume(core);
        core.grace.collect();
        core.wake_control();
        result
    }

    /// Whether tracking is suspended.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.core().ledger().is_suspended()
    }

    /// What has been unmarked so far, without waiting.
    #[must_use]
    pub fn unmark_report(&self) -> UnmarkReport {
        self.core().unmark_report()
    }

    /// Pages that are marked now, those that are leaving included.
    #[must_use]
    pub fn marked_pages(&self) -> u64 {
        self.core().pages.len()
    }

    /// The most pages that were marked at a time.
    #[must_use]
    pub fn marked_pages_peak(&self) -> u64 {
        self.core().pages.peak()
    }
}

impl<H: Hypervisor> Drop for MemTypeClaim<H> {
    fn drop(&mut self) {
        let Some(core) = self.core.take() else { return };
        core.ledger().close();
        let finish = move || core.finish_claim(DROP_BOUND);
        if scope::in_handler() {
            // This thread's own request may be in the way: let another thread wait for it.
            std::thread::spawn(finish);
        } else {
            finish();
        }
    }
}

impl<H: Hypervisor> fmt::Debug for MemTypeClaim<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemTypeClaim")
            .field("marked_pages", &self.marked_pages())
            .finish()
    }
}

/// The claim's server, if it still lives.
pub(super) fn upgrade<H: Hypervisor>(core: &Weak<Core<H>>) -> Result<Arc<Core<H>>> {
    core.upgrade().ok_or_else(|| {
        crate::Error::new(Op::Mark, ErrorKind::WrongState).about("the server is gone")
    })
}
