// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the parts of one server share: the hypervisor handle, the shared pages, the routes, the claim's ledger.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use crossbeam::utils::Backoff;

use super::bus::{Bus, Pause, Place};
use super::carry::Carry;
use super::control::ControlSignal;
use super::dirty::{DirtyLogging, LoggedRam};
use super::group::Group;
use super::log_limit::LogLimit;
use super::panics::Panics;
use super::record::RecordFile;
use super::vcpu::VcpuState;
use super::waker::Waker;
use super::watch::DomainNotice;
use super::watchdog::Watchdog;
use crate::claim::{Ledger, Step, UnmarkReport};
use crate::dispatch::{Counted, Dispatcher, Grace, PageMap, PageRoute, ReadGuard, TrackerShared};
use crate::error::{Error, ErrorKind, Op};
use crate::handler::scope::Scope;
use crate::handler::{Context, Verdict};
use crate::hypervisor::{DomainState, Hypervisor, ShutdownReason};
use crate::ids::{ServerId, VcpuId};
use crate::journal::{Journal, JournaledRam, Served};
use crate::memory::GuestRam;
use crate::request::{BufferedRequest, Kind};
use crate::ring::{BufferedRing, RingAnomaly};
use crate::slot::Slots;
use crate::stats::{PerWorker, RouteStats, ServerStats, WorkerCounters};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, nap, pause};

/// Told how many seconds the guest's clock is off the host's.
pub(super) type ClockListener = Arc<dyn Fn(i64) + Send + Sync>;

/// Ring entries served in one go.
const RING_BUDGET: u32 = 511;
/// How long a claim's pages are unmarked whose domain will never run again: what waits for one of its vCPUs waits for ever.
const OVER_BOUND: Duration = Duration::from_millis(50);

/// Whether no vCPU will run again. One that was suspended may; so may one of which nothing is known.
fn is_over(state: &Result<DomainState, Error>) -> bool {
    use ShutdownReason::{Crash, PowerOff, Reboot, Watchdog};
    matches!(
        state,
        Ok(DomainState::Gone | DomainState::Shutdown(PowerOff | Reboot | Crash | Watchdog))
    )
}

/// One server. Destroyed when the last owner lets go: the user's [`IoreqServer`](super::IoreqServer), running workers, a
/// subscriber, a claim.
pub(crate) struct Core<H: Hypervisor> {
    pub(crate) hv: Arc<H>,
    pub(crate) id: ServerId,
    pub(crate) pages: PageMap<PageRoute>,
    pub(super) routes: Dispatcher,
    pub(crate) grace: Arc<Grace>,
    pub(super) slots: Arc<Slots>,
    pub(super) ring: Option<BufferedRing>,
    pub(super) vcpus: PerWorker<VcpuState>,
    /// The last tick found something in the ring.
    pub(super) ring_waits: AtomicBool,
    /// Wake-ups for requests whose own did not come.
    pub(super) overlooked: AtomicU64,
    pub(super) counters: Arc<PerWorker<WorkerCounters>>,
    /// The last counter slot of every array: for devices' DMA and other threads that are no workers, under [`Self::outside`].
    pub(super) outside: Mutex<()>,
    pub(super) groups: Box<[Mutex<Group<H>>]>,
    pub(super) wakers: Box<[Arc<Waker>]>,
    pub(super) control: ControlSignal,
    /// Counts INVALIDATE requests.
    invalidations: AtomicU64,
    /// The memory epoch of which sleeping workers have been told.
    pub(super) memory_told: AtomicU64,
    pub(super) log_limit: LogLimit,
    pub(super) dirty: Arc<DirtyLogging>,
    pub(super) clock: Mutex<Option<ClockListener>>,
    /// For whoever takes the server over if this process dies.
    record: Option<Mutex<RecordFile>>,
    /// The server was taken over: its ranges and its claim are Xen's knowledge, not this process's.
    pub(super) inherited: bool,
    /// Sets of workers.
    pub(super) running: AtomicU64,
    /// Nobody takes requests.
    pub(super) quiesced: AtomicBool,
    /// The server stays with the hypervisor when this process lets go of it.
    pub(super) left: AtomicBool,
    /// Who tells of the domain's life where the hypervisor handle cannot.
    notice: Option<DomainNotice>,
    /// Tells of handlers that run too long.
    pub(super) watchdog: Option<Watchdog>,
    /// What becomes of handlers that panic.
    pub(crate) panics: Panics,
    /// Who is told of every request.
    pub(super) journal: Option<Arc<dyn Journal>>,
    ledger: Mutex<Ledger>,
    trackers: Mutex<Vec<Weak<TrackerShared>>>,
}

impl<H: Hypervisor> Core<H> {
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts are made by the builder, in the safe order"
    )]
    pub(super) fn new(
        hv: Arc<H>,
        id: ServerId,
        pages: PageMap<PageRoute>,
        routes: Dispatcher,
        grace: Arc<Grace>,
        slots: Arc<Slots>,
        ring: Option<BufferedRing>,
        counters: Arc<PerWorker<WorkerCounters>>,
        groups: Vec<Group<H>>,
        wakers: Vec<Arc<Waker>>,
        record: Option<RecordFile>,
        inherited: bool,
        notice: Option<DomainNotice>,
        watchdog: Option<Watchdog>,
        panics: Panics,
        journal: Option<Arc<dyn Journal>>,
    ) -> Self {
        let vcpus = PerWorker::new(slots.vcpus() as usize);
        Core {
            hv,
            id,
            pages,
            routes,
            grace,
            slots,
            ring,
            vcpus,
            ring_waits: AtomicBool::new(false),
            overlooked: AtomicU64::new(0),
            counters,
            outside: Mutex::new(()),
            groups: groups.into_iter().map(Mutex::new).collect(),
            wakers: wakers.into(),
            control: ControlSignal::default(),
            invalidations: AtomicU64::new(0),
            memory_told: AtomicU64::new(0),
            log_limit: LogLimit::new(),
            dirty: Arc::new(DirtyLogging::new(watchdog.is_some() || journal.is_some())),
            clock: Mutex::new(None),
            record: record.map(Mutex::new),
            inherited,
            running: AtomicU64::new(0),
            quiesced: AtomicBool::new(false),
            left: AtomicBool::new(false),
            notice,
            watchdog,
            panics,
            journal,
            ledger: Mutex::new(Ledger::default()),
            trackers: Mutex::new(Vec::new()),
        }
    }

    /// An error of this server.
    pub(crate) fn error(&self, op: Op, kind: ErrorKind) -> Error {
        Error::new(op, kind).domain(self.hv.domid()).server(self.id)
    }

    fn record(&self) -> Option<MutexGuard<'_, RecordFile>> {
        let record = self.record.as_ref()?;
        Some(record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.record.is_some()
    }

    /// Written down before claiming, and after disclaiming.
    pub(crate) fn record_claim(&self, claimed: bool) -> Result<(), Error> {
        self.record()
            .map_or(Ok(()), |mut record| record.set_claimed(claimed))
    }

    /// Whether the server that was taken over may own the memory type already.
    pub(crate) fn inherits_claim(&self) -> bool {
        self.inherited && self.record().is_some_and(|record| record.record().claimed)
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slots of per-worker counter arrays: the workers, and one for everybody else.
    pub(crate) fn worker_slots(&self) -> usize {
        self.groups.len() + 1
    }

    pub(crate) fn register_tracker(&self, tracker: &Arc<TrackerShared>) {
        let mut trackers = self.trackers.lock().unwrap_or_else(PoisonError::into_inner);
        trackers.retain(|old| old.strong_count() > 0);
        trackers.push(Arc::downgrade(tracker));
    }

    /// Every live tracker's name and statistics.
    pub(super) fn tracker_stats(&self) -> Vec<(Arc<str>, RouteStats)> {
        let trackers = self.trackers.lock().unwrap_or_else(PoisonError::into_inner);
        let live = trackers.iter().filter_map(Weak::upgrade);
        live.map(|tracker| {
            (
                Arc::clone(&tracker.name),
                RouteStats::sum(&tracker.counters),
            )
        })
        .collect()
    }

    pub(super) fn stats(&self) -> ServerStats {
        ServerStats {
            dirty_faults: self.dirty.faults(),
            slow_handlers: self.watchdog.as_ref().map_or(0, Watchdog::slow),
            broken_routes: self.panics.broken(),
            // Relaxed: a statistic.
            overlooked: self.overlooked.load(Ordering::Relaxed),
            ..ServerStats::sum(&self.counters)
        }
    }

    /// There is something for the control side to do.
    pub(crate) fn wake_control(&self) {
        self.wake_unmarking(true);
    }

    /// Pages are to be unmarked; more may come, unless there are enough.
    pub(crate) fn wake_unmarking(&self, enough: bool) {
        self.control.tell(enough);
        if self.control.is_inline()
            && let Some(waker) = self.wakers.first()
        {
            waker.wake();
        }
    }

    /// One step of the unmark protocol.
    pub(super) fn step_unmark(&self) -> Step {
        let step = self.ledger().step(self);
        // Outside the ledger's lock: a handler that is freed here may untrack pages when dropped.
        self.grace.collect();
        step
    }

    pub(crate) fn unmark_report(&self) -> UnmarkReport {
        let ledger = self.ledger();
        UnmarkReport {
            unmarked: ledger.unmarker.unmarked(),
            contended: ledger.unmarker.contended(),
            deferred: ledger.unmarker.stubborn(),
        }
    }

    /// Steps the unmark protocol until nothing is queued, at most for `bound`. Serves the groups that nobody serves, because
    /// the protocol waits for requests to be answered.
    pub(crate) fn settle(&self, bound: Duration) -> UnmarkReport {
        let started = Instant::now();
        self.ledger().unmarker.retry_stubborn();
        loop {
            match self.step_unmark() {
                Step::Idle => break,
                Step::Progress => {
                    self.serve_unserved();
                }
                Step::Waiting => {
                    self.serve_unserved();
                    nap(Duration::from_micros(20));
                }
            }
            if started.elapsed() > bound {
                break;
            }
        }
        self.unmark_report()
    }

    /// As [`settle`](Self::settle), and pages that do not come to rest are tried again until nothing is marked, or the hypervisor
    /// refuses.
    pub(crate) fn settle_all(&self, bound: Duration) -> UnmarkReport {
        let started = Instant::now();
        let refused = self.ledger().unmarker.refused();
        loop {
            let report = self.settle(bound.saturating_sub(started.elapsed()));
            let in_vain = self.ledger().unmarker.refused() > refused;
            if self.pages.is_empty() || in_vain || started.elapsed() >= bound {
                return report;
            }
            nap(Duration::from_micros(200));
        }
    }

    /// One pass over the groups that no worker is serving; none while the server is quiesced.
    pub(super) fn serve_unserved(&self) -> usize {
        let mut served = 0;
        for group in &self.groups {
            if let Some(mut group) = unserved(group)
                && !self.is_quiesced()
            {
                served += group.pass(self);
            }
        }
        served
    }

    /// Whether nobody may take a request. Under the lock of a group: see [`quiesce`](super::quiesce).
    pub(super) fn is_quiesced(&self) -> bool {
        // Relaxed: a group's lock orders it.
        self.quiesced.load(Ordering::Relaxed)
    }

    /// Unmarks everything, then gives the type up.
    pub(crate) fn finish_claim(&self, bound: Duration) {
        let leaving = Counted::new(PageRoute {
            handler: None,
            leaving: true,
            fallback: Verdict::Apply,
            tracker: Arc::new(TrackerShared {
                name: "dropped claim".into(),
                counters: PerWorker::new(self.worker_slots()),
            }),
        });
        let suspended = self.ledger().forget_suspended();
        drop(suspended);
        self.ledger().untrack_all(self, &leaving);
        let over = is_over(&self.domain_state());
        let report = self.settle_all(if over { OVER_BOUND.min(bound) } else { bound });
        let left: u64 = self.pages.len();
        // The type's end resets what is outstanding; only a domain that runs is hurt by that.
        if left > 0 && !over {
            tracing::error!(
                domid = %self.hv.domid(), server = %self.id, pages = left, ranges = ?report.deferred.len(),
                "giving the memory type up with pages outstanding: the guest never stopped writing them"
            );
        }
        let result = self.ledger().disclaim(self);
        match result {
            Ok(()) => {}
            Err(err) if err.kind() == ErrorKind::DomainGone => {}
            Err(err) => tracing::error!(%err, "the memory type could not be given up"),
        }
        self.pages.clear();
        self.grace.collect();
    }

    /// What has become of the domain: what the hypervisor says, or who is there to tell.
    pub(super) fn domain_state(&self) -> Result<DomainState, Error> {
        let state = self.hv.domain_state();
        match (&self.notice, &state) {
            (Some(notice), Ok(DomainState::Running) | Err(_)) => notice.state(),
            _ => state,
        }
    }

    /// Changes when the guest's memory has to be fetched anew: workers whose number is another one do so.
    pub(super) fn memory_epoch(&self) -> u64 {
        // Acquire: pairs with the Release in `invalidate`. Both numbers only grow, so their sum tells of either.
        let invalidations = self.invalidations.load(Ordering::Acquire);
        invalidations.wrapping_add(self.hv.memory_generation())
    }

    /// The guest set its clock.
    pub(super) fn time_offset(&self, seconds: i64) {
        let listener = self
            .clock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(listener) = listener {
            let _scope = Scope::enter(false);
            if catch_unwind(AssertUnwindSafe(|| listener(seconds))).is_err() {
                tracing::error!(domid = %self.hv.domid(), "the clock's listener panicked");
            }
        }
    }

    /// The guest's memory layout changed: mappings go before the request is answered.
    pub(super) fn invalidate(&self) {
        if let Err(err) = self.hv.invalidate() {
            tracing::error!(%err, "cached mappings of guest memory could not be dropped");
        }
        // Release: pairs with the Acquire in `memory_epoch`; the mappings were dropped before.
        self.invalidations.fetch_add(1, Ordering::Release);
    }

    /// What handlers are told of a request of that vCPU.
    pub(super) fn context<'a>(&self, vcpu: VcpuId, ram: &'a dyn GuestRam) -> Context<'a> {
        Context::detached(self.hv.domid(), vcpu, ram)
    }

    /// Serves what is in the buffered ring, unless it is empty. Whoever is about to serve a slot does so first: what the vCPU
    /// posted before comes before.
    #[inline]
    pub(super) fn drain_ring(
        &self,
        ram: &dyn GuestRam,
        guard: &ReadGuard<'_>,
        worker: usize,
    ) -> usize {
        match &self.ring {
            Some(ring) if !ring.is_empty() => self.drain(ring, ram, guard, worker),
            _ => 0,
        }
    }

    #[inline(never)]
    fn drain(
        &self,
        ring: &BufferedRing,
        ram: &dyn GuestRam,
        guard: &ReadGuard<'_>,
        worker: usize,
    ) -> usize {
        let backoff = Backoff::new();
        let mut drained = 0;
        let mut logged = LoggedRam::new(self, ram);
        // Empty means handled, by whoever consumes.
        while !ring.is_empty() {
            let Some(mut consumer) = ring.consumer() else {
                pause(&backoff);
                continue;
            };
            let Some(counters) = self.counters.of(worker) else {
                break;
            };
            let cx = self.context(VcpuId(0), logged.ram());
            let bus = Bus {
                core: self,
                cx: &cx,
                memory: None,
                guard,
                counters,
                worker,
            };
            let result = consumer.drain(RING_BUDGET, |entry| match &self.journal {
                None => self.posted(entry, &bus),
                Some(_) => self.posted_journaled(entry, bus),
            });
            drained += result.taken as usize;
            if result.more {
                // A guest that posts without end must not keep its own slots, or other groups, waiting.
                break;
            }
        }
        logged.tell();
        drained
    }

    /// Serves one buffered request, and tells of it.
    #[cold]
    #[inline(never)]
    fn posted_journaled(&self, posted: Result<BufferedRequest, RingAnomaly>, bus: Bus<'_, H>) {
        let Ok(request) = &posted else {
            return self.posted(posted, &bus);
        };
        let entry = self.journaled(Served::Posted(&request.raw()));
        let ram = JournaledRam::new(entry.journal(), bus.cx.ram());
        let cx = self.context(bus.cx.vcpu(), ram.ram());
        self.posted(posted, &Bus { cx: &cx, ..bus });
    }

    /// Serves one buffered request. Nobody waits for it.
    fn posted(&self, entry: Result<BufferedRequest, RingAnomaly>, bus: &Bus<'_, H>) {
        let counters = bus.counters;
        let request = match entry {
            Ok(request) => request,
            Err(anomaly) => {
                counters.ring_anomalies.bump();
                if self.log_limit.allow() {
                    tracing::warn!(domid = %self.hv.domid(), %anomaly, "absurd buffered ring");
                }
                return;
            }
        };
        counters.buffered.bump();
        match request.decode().map(|request| *request.kind()) {
            Ok(Kind::Io(io)) => {
                // A handler that defers it may finish it whenever it likes.
                if let Err(Pause::Deferred(pending) | Pause::Undecided(pending)) =
                    bus.watched(Place::of(&io), || Carry::new(io).run(bus))
                {
                    pending.install(Box::new(|_| ()));
                }
            }
            Ok(Kind::TimeOffset { seconds }) => {
                counters.time_offsets.bump();
                self.time_offset(seconds);
            }
            Ok(Kind::InvalidateMapCache) => self.invalidate(),
            Ok(Kind::Unknown { .. }) => counters.unknown.bump(),
            Err(malformed) => {
                counters.malformed.bump();
                if self.log_limit.allow() {
                    tracing::warn!(domid = %self.hv.domid(), %malformed, "malformed buffered request");
                }
            }
        }
    }

    /// Answers all deferred requests in their completions' place.
    pub(super) fn expire_deferred(&self) {
        for group in &self.groups {
            if let Some(mut group) = unserved(group) {
                group.expire_deferred(self);
            }
        }
    }

    /// Makes every worker and the control thread look up.
    pub(super) fn wake_all(&self) {
        for waker in &self.wakers {
            waker.wake();
        }
        self.control.wake();
    }
}

/// The group, if nobody is serving it. A group whose worker died of a defect goes on being served.
pub(super) fn unserved<H: Hypervisor>(group: &Mutex<Group<H>>) -> Option<MutexGuard<'_, Group<H>>> {
    match group.try_lock() {
        Ok(group) => Some(group),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl<H: Hypervisor> Drop for Core<H> {
    fn drop(&mut self) {
        for group in &mut self.groups {
            group
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .close();
        }
        // Relaxed: this is the last owner.
        if self.left.load(Ordering::Relaxed) {
            return;
        }
        // The claim holds the core, so it is gone by now, and its pages with it.
        match self.hv.destroy_server(self.id) {
            Ok(()) => {}
            // Another process serves it, and its record is that process's.
            Err(err) if err.kind() == ErrorKind::TakenOver => return,
            Err(err) if matches!(err.kind(), ErrorKind::DomainGone | ErrorKind::NoSuchServer) => {}
            Err(err) => {
                tracing::warn!(%err, "the server could not be destroyed");
                return;
            }
        }
        if let Some(record) = self.record() {
            record.remove();
        }
    }
}

impl<H: Hypervisor> std::fmt::Debug for Core<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("domid", &self.hv.domid())
            .field("id", &self.id)
            .field("pages", &self.pages.len())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_claim_waits_for_vcpus_that_may_run_again_and_for_no_others() {
        let waits = |state| !is_over(&state);
        for reason in [
            ShutdownReason::PowerOff,
            ShutdownReason::Reboot,
            ShutdownReason::Crash,
            ShutdownReason::Watchdog,
        ] {
            assert!(!waits(Ok(DomainState::Shutdown(reason))), "{reason:?}");
        }
        assert!(!waits(Ok(DomainState::Gone)));
        for reason in [ShutdownReason::Suspend, ShutdownReason::SoftReset] {
            assert!(waits(Ok(DomainState::Shutdown(reason))), "{reason:?}");
        }
        assert!(waits(Ok(DomainState::Running)));
        assert!(waits(Err(Error::new(Op::DomainState, ErrorKind::Other))));
    }
}
