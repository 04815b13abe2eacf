// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The server as its owner holds it, and the handle that handlers hold.

use std::fmt;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::builder::Builder;
use super::core::Core;
use super::dma::Dma;
use super::quiesce::Quiesced;
use super::run::Running;
use super::subscriber::{Budget, Subscriber};
use super::watchdog::SlowHandler;
use crate::abi::{STATE_IOREQ_INPROCESS, STATE_IOREQ_READY};
use crate::claim::MemTypeClaim;
use crate::error::{Error, ErrorKind, Op, Result};
use crate::handler::{Handler, scope};
use crate::hypervisor::Hypervisor;
use crate::ids::{DomId, ServerId, VcpuId};
use crate::range::IoRange;
use crate::routes::{RouteId, Routes};
use crate::stats::{Report, RouteStats, ServerStats};

/// An ioreq server of one domain.
///
/// Dropping it, and all that was made from it ([`Running`], [`Subscriber`], [`MemTypeClaim`]), destroys the server. A claim
/// holds the server, so it can never be destroyed with pages still marked, which would leave them stuck.
///
/// ```
/// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
/// use ioreq_core::{PortRange, VcpuId, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// /// Reads give the port.
/// struct Echo;
/// impl Handler for Echo {
///     fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
///         access.addr.into()
///     }
///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
///         WriteOutcome::Done
///     }
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// server.route("echo", PortRange::new(0x500, 0x50f)?, Echo)?;
/// let running = server.start()?;
/// let guest = domain.spawn(VcpuId(0), |cpu| cpu.inb(0x502))?;
/// assert_eq!(guest.join()?, 0x02);
/// running.stop()?;
/// assert_eq!(server.stats().requests(), 1);
/// server.destroy()?;
/// assert!(domain.leaks().is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct IoreqServer<H: Hypervisor> {
    core: Arc<Core<H>>,
}

impl<H: Hypervisor> IoreqServer<H> {
    /// Starts to build a server on a hypervisor's domain.
    pub fn builder(hypervisor: impl Into<Arc<H>>) -> Builder<H> {
        Builder::new(hypervisor.into())
    }

    pub(super) fn new(core: Arc<Core<H>>) -> Self {
        core.control.set_inline(true);
        IoreqServer { core }
    }

    pub(super) fn core(&self) -> &Core<H> {
        &self.core
    }

    /// The server's id, as the hypervisor gave it.
    #[must_use]
    pub fn id(&self) -> ServerId {
        self.core.id
    }

    /// The domain.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.core.hv.domid()
    }

    /// The hypervisor handle the server was built on.
    #[must_use]
    pub fn hypervisor(&self) -> &Arc<H> {
        &self.core.hv
    }

    /// Routes a range to a handler. `name` is for errors and statistics.
    ///
    /// The route stays until it is retracted or the server goes.
    ///
    /// # Errors
    /// `RouteConflict`, naming both routes, if it overlaps one; `TooManyRanges` and the like from the hypervisor.
    pub fn route(
        &self,
        name: &str,
        range: impl Into<IoRange>,
        handler: impl Handler + 'static,
    ) -> Result<RouteId> {
        self.core.add_route(name, range.into(), Arc::new(handler))
    }

    /// A handle on routes and statistics that handlers may hold: it does not keep the server alive.
    #[must_use]
    pub fn control(&self) -> Control<H> {
        Control {
            core: Arc::downgrade(&self.core),
            id: self.core.id,
            domid: self.core.hv.domid(),
        }
    }

    /// Waits until no handler of a retracted or replaced route runs any more: what it used may be freed then.
    ///
    /// # Errors
    /// `WouldDeadlock` from a handler: it would wait for itself.
    pub fn synchronize(&self) -> Result<()> {
        if scope::in_handler() {
            return Err(self.core.error(Op::Synchronize, ErrorKind::WouldDeadlock));
        }
        self.core.grace.synchronize()
    }

    /// Claims the write-tracking memory type for this server.
    ///
    /// # Errors
    /// `AlreadyClaimed` when this or another server owns it, `NoHap` for a domain without hardware-assisted paging.
    pub fn claim_mem_type(&self) -> Result<MemTypeClaim<H>> {
        MemTypeClaim::new(&self.core)
    }

    /// Tells `listener` when the guest sets its clock: by how many seconds it is off the host's. Needs a buffered ring on Xen.
    pub fn on_time_offset(&self, listener: impl Fn(i64) + Send + Sync + 'static) {
        let mut clock = self
            .core
            .clock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *clock = Some(Arc::new(listener));
    }

    /// Tells `listener` of handlers that run for longer than their [budget](super::Builder::handler_budget), while they run; without
    /// a budget, of none. Called by the control thread.
    pub fn on_slow_handler(&self, listener: impl Fn(&SlowHandler) + Send + Sync + 'static) {
        if let Some(watchdog) = &self.core.watchdog {
            let old = watchdog.listener.lock();
            *old.unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(listener));
        }
    }

    /// Access to guest memory as a device has it: stores reach the handlers of tracked pages.
    #[must_use]
    pub fn dma(&self) -> Dma<H> {
        Dma::new(&self.core)
    }

    /// Says whether the hypervisor logs which pages are written: log-dirty mode of a live migration, tracked video memory.
    /// Xen does not tell a device model; its toolstack does, once the mode is on. From then on every store that this server
    /// makes into guest memory is told to Xen (`XEN_DMOP_modified_memory`) before the request that caused it is answered:
    /// data of repeated instructions, writes applied to pages, [`Dma`], and what handlers store through
    /// [`Context::ram`](crate::handler::Context::ram). What a device stores into memory that it mapped itself
    /// ([`GuestMap::memory`](crate::GuestMap::memory)) it has to tell itself ([`GuestMap::modified`](crate::GuestMap::modified)).
    ///
    /// When this returns after turning it on, no store is under way that is not told. It waits for handlers that run. While
    /// off, which it is at first, it costs nothing but a look. How many pages could not be told is in
    /// [`ServerStats::dirty_faults`].
    ///
    /// ```
    /// use ioreq_core::{Gfn, server::IoreqServer};
    /// use ioreq_sim::{DomainConfig, Machine};
    /// use vm_memory::GuestAddress;
    ///
    /// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
    /// let server = IoreqServer::builder(domain.hypervisor()).build()?;
    /// domain.set_log_dirty(true)?; // the toolstack, for a migration
    /// server.set_dirty_logging(true)?;
    /// server.dma().write(GuestAddress(0x7ffc), &[1; 8])?;
    /// assert_eq!(domain.take_modified(), [Gfn(7), Gfn(8)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `WouldDeadlock` from a handler, which would wait for itself: it is on or off all the same, but stores that are under way
    /// may not be told.
    pub fn set_dirty_logging(&self, on: bool) -> Result<()> {
        self.core.dirty.set(on);
        if on { self.synchronize() } else { Ok(()) }
    }

    /// Starts the worker threads.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(&self) -> Result<Running<H>> {
        Running::start(&self.core)
    }

    /// Brings the server to rest, so that its state can be saved: everything is unmarked by the safe protocol, all that is in
    /// flight is answered, deferred requests when they are completed, and then no request is taken any more. The calling thread serves
    /// until then; workers have to be [stopped](Running::stop) before, and devices must not store by [`Dma`].
    ///
    /// A live migration comes to this when the domain is suspended already ([`Exit::Shutdown`](super::Exit::Shutdown) with
    /// `Suspend`): Xen suspends a domain only when its requests are answered, so a server that rests before would be in the way. Its
    /// pages are unmarked earlier, before log-dirty mode: [`MemTypeClaim::suspend`].
    ///
    /// # Errors
    /// `StillInUse` while workers serve, `Deferred` if pages are marked still when `bound` is over, because the guest keeps writing
    /// them, `WrongState` if it rests already, `WouldDeadlock` from a handler. The server goes on as before then.
    /// Requests that are not completed within `bound` are no error: they are answered as if their handler had failed, and
    /// [counted](Quiesced::expired).
    pub fn quiesce(&self, bound: Duration) -> Result<Quiesced<H>> {
        self.core.quiesce(bound)
    }

    /// Service inside a user's own `event-manager` EventManager.
    ///
    /// # Errors
    /// When the kernel refuses a file descriptor.
    pub fn subscriber(&self, budget: Budget) -> Result<Subscriber<H>> {
        Subscriber::new(&self.core, budget)
    }

    /// Serves what is there now in the calling thread, and does one step of background work. Returns the number of requests
    /// served. Groups that a worker serves are left to it.
    ///
    /// # Errors
    /// `WouldDeadlock` from a handler.
    pub fn poll(&self) -> Result<usize> {
        if scope::in_handler() {
            return Err(self.core.error(Op::Serve, ErrorKind::WouldDeadlock));
        }
        let served = self.core.serve_unserved();
        self.core.step_unmark();
        Ok(served)
    }

    /// What the server has done so far.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        self.core.stats()
    }

    /// Every route's, and every tracker's, name and statistics.
    #[must_use]
    pub fn route_stats(&self) -> Vec<(Arc<str>, RouteStats)> {
        let mut stats = self.core.route_stats();
        stats.extend(self.core.tracker_stats());
        stats
    }

    /// All of that, and how the server is at this moment.
    #[must_use]
    pub fn report(&self) -> Report {
        let slots = &self.core.slots;
        let waits = |vcpu| {
            let state = slots.get(VcpuId(vcpu)).map(|slot| slot.state());
            matches!(state, Some(STATE_IOREQ_READY | STATE_IOREQ_INPROCESS))
        };
        Report {
            domid: self.core.hv.domid(),
            server: self.core.id,
            vcpus: (0..slots.vcpus()).map(waits).collect(),
            tracked_pages: self.core.pages.len(),
            stats: self.stats(),
            routes: self.route_stats(),
        }
    }

    /// Destroys the server now, and says whether that worked.
    ///
    /// # Errors
    /// `StillInUse` while a claim, workers or a subscriber of the server live; the server is handed back.
    pub fn destroy(self) -> Result<(), DestroyError<H>> {
        match Arc::try_unwrap(self.core) {
            Ok(core) => {
                drop(core);
                Ok(())
            }
            Err(core) => {
                let error = core.error(Op::DestroyServer, ErrorKind::StillInUse);
                Err(DestroyError {
                    error,
                    server: IoreqServer { core },
                })
            }
        }
    }
}

impl<H: Hypervisor> fmt::Debug for IoreqServer<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoreqServer")
            .field("core", &self.core)
            .finish()
    }
}

/// The server could not be destroyed yet, and why; it is still there.
///
/// ```
/// use ioreq_core::{ErrorKind, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let running = server.start()?;
/// let refused = server.destroy().unwrap_err();
/// assert_eq!(refused.error.kind(), ErrorKind::StillInUse);
/// running.stop()?;
/// refused.server.destroy()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DestroyError<H: Hypervisor> {
    /// Why.
    pub error: Error,
    /// The server.
    pub server: IoreqServer<H>,
}

impl<H: Hypervisor> fmt::Debug for DestroyError<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DestroyError").field(&self.error).finish()
    }
}

impl<H: Hypervisor> fmt::Display for DestroyError<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<H: Hypervisor> std::error::Error for DestroyError<H> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

/// Adds and retracts routes of a server that it does not keep alive. For handlers, and for devices that move their ranges.
///
/// ```
/// use ioreq_core::{ErrorKind, routes::{RouteId, Routes}, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let control = server.control();
/// let unknown = RouteId::from_raw(77);
/// assert_eq!(control.retract(unknown).unwrap_err().kind(), ErrorKind::NoSuchRoute);
/// drop(server); // a handler that holds a `Control` is no reason for the server to stay
/// assert_eq!(control.retract(unknown).unwrap_err().kind(), ErrorKind::NoSuchServer);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Control<H: Hypervisor> {
    core: Weak<Core<H>>,
    id: ServerId,
    domid: DomId,
}

impl<H: Hypervisor> Control<H> {
    fn core(&self, op: Op) -> Result<Arc<Core<H>>> {
        self.core.upgrade().ok_or_else(|| {
            Error::new(op, ErrorKind::NoSuchServer)
                .domain(self.domid)
                .server(self.id)
        })
    }
}

impl<H: Hypervisor> Routes for Control<H> {
    fn add(&self, name: &str, range: IoRange, handler: Arc<dyn Handler>) -> Result<RouteId> {
        self.core(Op::Route)?.add_route(name, range, handler)
    }

    fn replace(&self, route: RouteId, handler: Arc<dyn Handler>) -> Result<()> {
        self.core(Op::Route)?.replace_route(route, handler)
    }

    fn retract(&self, route: RouteId) -> Result<()> {
        self.core(Op::Route)?.retract_route(route)
    }
}

impl<H: Hypervisor> Clone for Control<H> {
    fn clone(&self) -> Self {
        Control {
            core: Weak::clone(&self.core),
            id: self.id,
            domid: self.domid,
        }
    }
}

impl<H: Hypervisor> fmt::Debug for Control<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control({} {})", self.domid, self.id)
    }
}
