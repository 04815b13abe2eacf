// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sets a server up in the one order that is safe: create, acquire both pages, enable, bind, and only then ranges and claims.
//!
//! Why the order: an enabled server whose ioreq page was never acquired makes Xen panic at its first request, and a page
//! acquired after enabling has no event-channel ports in it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::group::{Group, GroupParts};
use super::ioreq_server::IoreqServer;
use super::panics::{self, PanicPolicy, Panics};
use super::polling::Polling;
use super::record::RecordFile;
use super::waker::Waker;
use super::watch::DomainNotice;
use super::watchdog::Watchdog;
use crate::abi::IOREQ_SLOTS;
use crate::dispatch::{Dispatcher, Grace, PageMap};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::hypervisor::{BufIoreq, Hypervisor};
use crate::ids::{Gfn, ServerId, VcpuId};
use crate::journal::Journal;
use crate::ring::BufferedRing;
use crate::slot::Slots;
use crate::stats::PerWorker;

/// How vCPUs are shared out among workers.
///
/// ```
/// use ioreq_core::server::Workers;
/// assert_eq!(Workers::PerVcpu.count(4), 4);
/// assert_eq!(Workers::Count(2).count(4), 2);
/// assert_eq!(Workers::Count(9).count(4), 4); // never more than vCPUs
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Workers {
    /// A worker for each vCPU.
    PerVcpu,
    /// So many workers, vCPUs dealt out in turn. 1 is the right number for a user's own event loop.
    Count(usize),
    /// A worker for each vCPU, at most one for each CPU of this machine.
    #[default]
    Auto,
}

impl Workers {
    /// The number of workers for a domain with `vcpus` vCPUs.
    #[must_use]
    pub fn count(self, vcpus: usize) -> usize {
        let most = match self {
            Workers::PerVcpu => vcpus,
            Workers::Count(count) => count,
            Workers::Auto => std::thread::available_parallelism().map_or(1, usize::from),
        };
        most.min(vcpus).max(1)
    }
}

/// Builds an [`IoreqServer`]; made by [`IoreqServer::builder`].
///
/// ```
/// use ioreq_core::server::{IoreqServer, Polling, Workers};
/// use ioreq_core::BufIoreq;
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(8))?;
/// let server = IoreqServer::builder(domain.hypervisor())
///     .buffered(BufIoreq::Atomic)
///     .workers(Workers::Count(2))
///     .polling(Polling::default())
///     .build()?;
/// assert!(IoreqServer::builder(domain.hypervisor()).workers(Workers::Count(0)).build().is_err());
/// drop(server);
/// assert!(domain.leaks().is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Builder<H: Hypervisor> {
    hv: Arc<H>,
    bufioreq: BufIoreq,
    workers: Workers,
    polling: Polling,
    sample_every: u32,
    last_gfn: Gfn,
    record: Option<PathBuf>,
    identity: Option<String>,
    take_over: bool,
    notice: Option<DomainNotice>,
    handler_budget: Option<Duration>,
    panics: PanicPolicy,
    journal: Option<Arc<dyn Journal>>,
}

impl<H: Hypervisor> Builder<H> {
    pub(super) fn new(hv: Arc<H>) -> Self {
        Builder {
            hv,
            bufioreq: BufIoreq::Off,
            workers: Workers::default(),
            polling: Polling::default(),
            sample_every: 16,
            last_gfn: Gfn((1 << 28) - 1),
            record: None,
            identity: None,
            take_over: false,
            notice: None,
            handler_budget: None,
            panics: PanicPolicy::default(),
            journal: None,
        }
    }

    /// With a buffered ring, for guests that write to the VGA window or set their clock. Off by default.
    #[must_use]
    pub fn buffered(mut self, bufioreq: BufIoreq) -> Self {
        self.bufioreq = bufioreq;
        self
    }

    /// How vCPUs are shared out among workers.
    #[must_use]
    pub fn workers(mut self, workers: Workers) -> Self {
        self.workers = workers;
        self
    }

    /// How workers wait.
    #[must_use]
    pub fn polling(mut self, polling: Polling) -> Self {
        self.polling = polling;
        self
    }

    /// Measures the latency of one request in `requests`; 16 by default, 1 measures all, 0 none. Reading the clock twice
    /// costs more than the rest of the framework's work on a request.
    #[must_use]
    pub fn sample_latency(mut self, requests: u32) -> Self {
        self.sample_every = requests;
        self
    }

    /// The last guest frame that can be tracked; 2^28 - 1 (1 TiB of guest memory) by default. Costs 18 bytes of address
    /// space per 512 frames, and memory only where pages are tracked.
    #[must_use]
    pub fn last_gfn(mut self, gfn: Gfn) -> Self {
        self.last_gfn = gfn;
        self
    }

    /// Records the server in a file before it is enabled, for [`take_over`](Self::take_over) after a crash of this process.
    /// The file goes with the server. One file a server, on storage that outlives the process, not the machine.
    #[must_use]
    pub fn record(mut self, path: impl AsRef<Path>) -> Self {
        self.record = Some(path.as_ref().to_owned());
        self
    }

    /// Takes over the server that a process recorded and left behind when it died, instead of creating one: Xen still has it,
    /// with its ranges, its claim and its marked pages, and vCPUs may be waiting for answers. It is recorded from then on.
    ///
    /// Add the routes again, claim the memory type again and [`adopt`](crate::claim::Tracker::adopt) the pages that are
    /// marked; only then serve. What was under way is served at the first look: requests that the dead process had taken are
    /// served *again* (at least once, so handlers should bear it), answers that it gave but did not notify are notified. A
    /// write to a marked page that was not adopted is applied as the guest made it. A page that the dead process had just unmarked,
    /// with a write to it still in its slot, is marked again, so look for marked pages after this is built. Ranges that are not routed again stay
    /// registered, and are answered as nobody's.
    #[must_use]
    pub fn take_over(mut self, path: impl AsRef<Path>) -> Self {
        self.take_over = true;
        self.record(path)
    }

    /// What tells the domain from one that gets its id later, e.g. its UUID as the toolstack knows it: one line. Needed with
    /// [`record`](Self::record) where the hypervisor handle cannot tell (a restricted one cannot).
    #[must_use]
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = Some(identity.into());
        self
    }

    /// Says by whom the server is told that the domain shut down or is gone, where its own handle cannot tell: a restricted one tells of
    /// the domain's death only, not of a shutdown, reboot, crash or suspension. What either tells counts.
    #[must_use]
    pub fn domain_notice(mut self, notice: DomainNotice) -> Self {
        self.notice = Some(notice);
        self
    }

    /// How long one call of a handler may take. One that runs longer is told of while it runs, once: in the log, to
    /// [`on_slow_handler`](IoreqServer::on_slow_handler), and in
    /// [`ServerStats::slow_handlers`](crate::stats::ServerStats::slow_handlers). It goes on all the same: nothing can interrupt it, and
    /// the vCPUs of its worker wait. Told by the control thread of [`start`](IoreqServer::start), at half the budget's distance and
    /// not more often than each millisecond; a thread that serves by itself cannot tell of its own handlers.
    ///
    /// ```
    /// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
    /// use ioreq_core::{PortRange, VcpuId, server::IoreqServer};
    /// use ioreq_sim::{DomainConfig, Machine};
    /// use std::sync::{Mutex, mpsc};
    /// use std::time::Duration;
    ///
    /// /// Does not return before it is let go.
    /// struct Stuck(Mutex<mpsc::Receiver<()>>);
    /// impl Handler for Stuck {
    ///     fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
    ///         self.0.lock().unwrap().recv().ok();
    ///         7.into()
    ///     }
    ///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
    ///         WriteOutcome::Done
    ///     }
    /// }
    ///
    /// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    /// let server = IoreqServer::builder(domain.hypervisor())
    ///     .handler_budget(Duration::from_millis(10))
    ///     .build()?;
    /// let (let_go, wait) = mpsc::channel();
    /// server.route("stuck", PortRange::new(0x500, 0x500)?, Stuck(Mutex::new(wait)))?;
    /// let (told, slow) = mpsc::channel();
    /// server.on_slow_handler(move |slow| told.send(slow.clone()).unwrap());
    /// let running = server.start()?;
    /// let guest = domain.spawn(VcpuId(0), |cpu| cpu.inb(0x500))?;
    /// let slow = slow.recv()?; // the handler still runs
    /// assert_eq!((&*slow.handler, slow.vcpu, slow.addr), ("stuck", VcpuId(0), 0x500));
    /// let_go.send(())?;
    /// assert_eq!(guest.join()?, 7);
    /// running.stop()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn handler_budget(mut self, budget: Duration) -> Self {
        self.handler_budget = Some(budget);
        self
    }

    /// What becomes of a handler that panicked. The access that it failed is answered either way.
    #[must_use]
    pub fn on_panic(mut self, policy: PanicPolicy) -> Self {
        self.panics = policy;
        self
    }

    /// Tells `journal` of every request, what is read of guest memory for it, and its answer. All of the server's requests go the way of the
    /// few then, and as slowly as the journal is; without one they pay nothing.
    #[must_use]
    pub fn journal(mut self, journal: Arc<dyn Journal>) -> Self {
        self.journal = Some(journal);
        self
    }

    /// Creates and enables the server. From here on it answers requests as soon as somebody serves it.
    ///
    /// # Errors
    /// `TooManyServers`, `NotPermitted`, `DomainGone` and the like from the hypervisor; `InvalidArgument` for a domain with
    /// more than 128 vCPUs or a bad option. Nothing is left behind; but a server that was to be taken over stays as it was.
    /// With [`take_over`](Self::take_over): `NoSuchServer` without a record, or when Xen has destroyed the server;
    /// `InvalidArgument` when the record is of another boot, domain, or incarnation of the domain id, and while the process that
    /// made it still lives.
    pub fn build(mut self) -> Result<IoreqServer<H>> {
        let vcpus = self.hv.vcpus()?;
        let bad = |what: String| {
            let err = Error::new(Op::Configure, ErrorKind::InvalidArgument);
            err.domain(self.hv.domid()).about(what)
        };
        if vcpus == 0 || vcpus as usize > IOREQ_SLOTS {
            return Err(bad(format!(
                "{vcpus} vCPUs: an ioreq page has 1 to {IOREQ_SLOTS} slots"
            )));
        }
        if self.workers == Workers::Count(0) {
            return Err(bad("0 workers: at least one is needed".into()));
        }
        if let Some(warning) = panics::warning(cfg!(panic = "abort")) {
            tracing::warn!(domid = %self.hv.domid(), warning);
        }
        let record = self.recorded()?;
        if self.take_over
            && let Some(found) = &record
        {
            let core = self.set_up(found.record().server, vcpus, record)?;
            if core.inherits_claim() {
                core.ledger().mend(&core);
            }
            return Ok(IoreqServer::new(Arc::new(core)));
        }
        let hv = Arc::clone(&self.hv);
        let created = Created {
            hv: &*hv,
            id: hv.create_server(self.bufioreq)?,
            keep: false,
        };
        let core = self.set_up(created.id, vcpus, record)?;
        created.keep();
        Ok(IoreqServer::new(Arc::new(core)))
    }

    /// The record to write, or the one that was found.
    fn recorded(&mut self) -> Result<Option<RecordFile>> {
        let Some(path) = &self.record else {
            return Ok(None);
        };
        let identity = match self.identity.take() {
            Some(identity) => identity,
            None => self.hv.identity()?,
        };
        let mut record = RecordFile::of(path, self.hv.domid(), identity)?;
        if self.take_over {
            record = record.found()?;
            self.bufioreq = match record.record().buffered {
                true => BufIoreq::Atomic,
                false => BufIoreq::Off,
            };
        }
        Ok(Some(record))
    }

    fn set_up(
        &mut self,
        id: ServerId,
        vcpus: u32,
        mut record: Option<RecordFile>,
    ) -> Result<Core<H>> {
        let notice = self.notice.take();
        let hv = &self.hv;
        let slots = Arc::new(Slots::new(hv.ioreq_page(id)?, vcpus)?);
        let ring = match self.bufioreq {
            BufIoreq::Off => None,
            BufIoreq::Atomic => Some(BufferedRing::new(hv.buffered_page(id)?)),
        };
        if let Some(record) = record.as_mut().filter(|_| !self.take_over) {
            record.created(id, ring.is_some())?;
        }
        hv.set_server_state(id, true)?;

        let grace = Grace::new();
        let workers = self.workers.count(vcpus as usize);
        // Before any memory is fetched: if it changes in between, it is fetched again.
        let memory_epoch = hv.memory_generation();
        let counters = Arc::new(PerWorker::new(workers + 1));
        let mut groups = Vec::with_capacity(workers);
        let mut wakers = Vec::with_capacity(workers);
        for index in 0..workers {
            let waker = Arc::new(Waker::new()?);
            let events = hv.open_events()?;
            let mut parts = GroupParts::new(index, events, Arc::clone(&waker));
            for vcpu in (index..vcpus as usize).step_by(workers) {
                let Ok(vcpu) = u32::try_from(vcpu).map(VcpuId) else {
                    continue;
                };
                let Some(slot) = slots.get(vcpu) else {
                    continue;
                };
                parts.bind(vcpu, slot.vp_eport())?;
            }
            if index == 0
                && let Some(port) = hv.server_info(id)?.bufioreq_port
                && ring.is_some()
            {
                parts.bind_ring(port)?;
            }
            groups.push(Group::new(
                parts,
                (hv.memory(), memory_epoch),
                grace.reader(),
                &counters,
                self,
            )?);
            wakers.push(waker);
        }
        let pages = PageMap::new(self.last_gfn, Arc::clone(&grace))?;
        let routes = Dispatcher::new(&grace);
        let hv = Arc::clone(hv);
        let inherited = self.take_over;
        Ok(Core::new(
            hv,
            id,
            pages,
            routes,
            grace,
            slots,
            ring,
            counters,
            groups,
            wakers,
            record,
            inherited,
            notice,
            self.handler_budget.map(Watchdog::new),
            Panics::new(self.panics),
            self.journal.take(),
        ))
    }

    pub(super) fn polling_policy(&self) -> Polling {
        self.polling
    }

    pub(super) fn takes_over(&self) -> bool {
        self.take_over
    }

    pub(super) fn sample_every(&self) -> u32 {
        self.sample_every
    }
}

/// A server that was created and is destroyed again if the set-up fails.
struct Created<'a, H: Hypervisor> {
    hv: &'a H,
    id: ServerId,
    keep: bool,
}

impl<H: Hypervisor> Created<'_, H> {
    fn keep(mut self) {
        self.keep = true;
    }
}

impl<H: Hypervisor> Drop for Created<'_, H> {
    fn drop(&mut self) {
        if !self.keep
            && let Err(err) = self.hv.destroy_server(self.id)
        {
            tracing::warn!(%err, "a server whose set-up failed could not be destroyed");
        }
    }
}

impl<H: Hypervisor> fmt::Debug for Builder<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("domid", &self.hv.domid())
            .field("bufioreq", &self.bufioreq)
            .field("workers", &self.workers)
            .field("polling", &self.polling)
            .finish_non_exhaustive()
    }
}
