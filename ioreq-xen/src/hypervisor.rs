// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ioreq-core`'s hypervisor traits on Xen.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ioreq_core::abi::{XENMEM_RESOURCE_FRAME_BUFIOREQ, XENMEM_RESOURCE_FRAME_IOREQ};
use ioreq_core::hypervisor::{InjectedEvent, Intx, SharedPage};
use ioreq_core::{
    BufIoreq, DomId, DomainState, Error, ErrorKind, Gfn, GfnRange, GuestMap, Interrupts, IoRange,
    MarkAuthority, MemTypes, Op, P2mType, Result, Sbdf, ServerId, ServerInfo, Transport, VcpuId,
};

use crate::builder::Builder;
use crate::dm::DeviceModel;
use crate::events::XenEvents;
use crate::handles::EventHandles;
use crate::memory::{Cache, XenMemory};
use crate::state;
use crate::sys::{AcquiredPage, Privcmd};

/// One domain on the real hypervisor: all of [`Hypervisor`](ioreq_core::Hypervisor), and what servers are built on.
///
/// ```no_run
/// use std::sync::Mutex;
/// use ioreq_core::handler::{Access, Context, MutHandler, ReadOutcome, WriteOutcome};
/// use ioreq_core::server::IoreqServer;
/// use ioreq_core::{DomId, PortRange};
/// use ioreq_xen::XenHypervisor;
///
/// struct Scratch(u64);
///
/// impl MutHandler for Scratch {
///     fn read(&mut self, _: &Context<'_>, _: Access) -> ReadOutcome {
///         self.0.into()
///     }
///     fn write(&mut self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
///         self.0 = value;
///         WriteOutcome::Done
///     }
/// }
///
/// let server = IoreqServer::builder(XenHypervisor::open(DomId(1))?).build()?;
/// server.route("scratch", PortRange::sized(0x5658, 4)?, Mutex::new(Scratch(0)))?;
/// let running = server.start()?;
/// println!("the domain ended: {:?}", running.wait());
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
pub struct XenHypervisor {
    pub(crate) dm: DeviceModel,
    pub(crate) privcmd: Arc<Privcmd>,
    pub(crate) events: EventHandles,
    pub(crate) cache: Cache,
    /// What to say where Xen cannot.
    pub(crate) vcpus: Option<u32>,
    pub(crate) restricted: bool,
    /// Servers made or taken over through this handle: when Xen has destroyed them, the domain is going.
    pub(crate) servers: Mutex<Vec<ServerId>>,
    /// Pages that are to be given back when the domain is gone: each keeps it as a zombie.
    pub(crate) acquired: Mutex<Vec<AcquiredPage>>,
}

impl XenHypervisor {
    /// The domain, through devices that this opens, its memory mapped as it is used.
    ///
    /// # Errors
    /// `NotSupported` where there is no `/dev/xen`, `NotPermitted`, `DomainGone`.
    pub fn open(domid: DomId) -> Result<Self> {
        Self::builder(domid).build()
    }

    /// The domain, with choices.
    pub fn builder(domid: DomId) -> Builder {
        Builder::new(domid)
    }

    /// All device-model operations on the domain, for those that the framework has no use for itself.
    #[must_use]
    pub fn device_model(&self) -> &DeviceModel {
        &self.dm
    }

    /// The handle that operations and mappings go through.
    #[must_use]
    pub fn privcmd(&self) -> &Arc<Privcmd> {
        &self.privcmd
    }

    /// Whether this handle gave up what is not about its domain.
    #[must_use]
    pub fn is_restricted(&self) -> bool {
        self.restricted
    }

    /// The domain's highest frame that may be memory: where [`marked_pages`](Self::marked_pages) of all of it ends.
    ///
    /// # Errors
    /// `NotPermitted` with a restricted handle, `DomainGone`.
    pub fn maximum_gfn(&self) -> Result<Gfn> {
        maximum_gfn(&self.privcmd, self.domid())
    }

    fn servers(&self) -> MutexGuard<'_, Vec<ServerId>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acquire(&self, id: ServerId, frame: u64) -> Result<SharedPage> {
        let frame = u32::try_from(frame).unwrap_or(u32::MAX);
        let domid = self.domid();
        let (page, acquired) =
            self.privcmd
                .acquire_revocable(domid, id.0, frame)
                .map_err(|errno| {
                    Error::from_errno(Op::AcquireResource, errno)
                        .domain(domid)
                        .server(id)
                        .about(format!("frame {frame}"))
                })?;
        let mut known = self.acquired();
        known.retain(AcquiredPage::is_used);
        known.push(acquired);
        drop(known);
        // One that was taken over was not made through this handle.
        let mut servers = self.servers();
        if !servers.contains(&id) {
            servers.push(id);
        }
        Ok(page)
    }

    fn acquired(&self) -> MutexGuard<'_, Vec<AcquiredPage>> {
        self.acquired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of everything that would keep a domain that is gone as a zombie: guest memory, and the servers' pages.
    fn let_go(&self) {
        self.cache.close();
        for page in self.acquired().drain(..) {
            if let Err(errno) = page.revoke() {
                tracing::warn!(domid = %self.domid(), errno, "a page of a domain that is gone stays mapped");
            }
        }
    }
}

/// `XENMEM_maximum_gpfn`
pub(crate) fn maximum_gfn(privcmd: &Privcmd, domid: DomId) -> Result<Gfn> {
    let result = privcmd.maximum_gfn(domid);
    result.map_err(|errno| Error::from_errno(Op::MaximumGpfn, errno).domain(domid))
}

impl Transport for XenHypervisor {
    type Events = XenEvents;

    fn domid(&self) -> DomId {
        self.dm.domid()
    }

    /// The domain's UUID, by Xen's toolstack interface: not through a restricted handle, and not for a domain made without one.
    fn identity(&self) -> Result<String> {
        state::identity(&self.privcmd, self.domid())
    }

    fn vcpus(&self) -> Result<u32> {
        match (self.dm.vcpus(), self.vcpus) {
            (Err(err), Some(vcpus)) if err.kind() == ErrorKind::NotSupported => Ok(vcpus),
            (result, _) => result,
        }
    }

    fn create_server(&self, bufioreq: BufIoreq) -> Result<ServerId> {
        let id = self.dm.create_server(bufioreq)?;
        self.servers().push(id);
        Ok(id)
    }

    fn destroy_server(&self, id: ServerId) -> Result<()> {
        self.dm.destroy_server(id)?;
        self.servers().retain(|known| *known != id);
        Ok(())
    }

    fn set_server_state(&self, id: ServerId, enabled: bool) -> Result<()> {
        self.dm.set_server_state(id, enabled)
    }

    fn server_info(&self, id: ServerId) -> Result<ServerInfo> {
        self.dm.server_info(id)
    }

    fn map_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        self.dm.map_range(id, range)
    }

    fn unmap_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        self.dm.unmap_range(id, range)
    }

    fn ioreq_page(&self, id: ServerId) -> Result<SharedPage> {
        self.acquire(id, XENMEM_RESOURCE_FRAME_IOREQ)
    }

    fn buffered_page(&self, id: ServerId) -> Result<SharedPage> {
        self.acquire(id, XENMEM_RESOURCE_FRAME_BUFIOREQ)
    }

    fn open_events(&self) -> Result<XenEvents> {
        let evtchn = self.events.take()?;
        if self.restricted {
            evtchn.restrict(self.domid()).map_err(|errno| {
                Error::from_errno(Op::Restrict, errno)
                    .domain(self.domid())
                    .about("/dev/xen/evtchn")
            })?;
        }
        Ok(XenEvents::new(evtchn, self.domid()))
    }

    /// With an unrestricted handle, what Xen's toolstack interface says. With a restricted one, a domain that is dying or
    /// gone is noticed by its servers being gone; that it shut down, and why, is not.
    fn domain_state(&self) -> Result<DomainState> {
        let state = if self.restricted {
            self.state_by_servers()?
        } else {
            state::of(&self.privcmd, self.domid())?
        };
        if state == DomainState::Gone {
            self.let_go();
        }
        Ok(state)
    }
}

impl XenHypervisor {
    /// Xen destroys a domain's servers first of all when it kills the domain.
    fn state_by_servers(&self) -> Result<DomainState> {
        let known = self.servers().first().copied();
        let gone = match known {
            Some(id) => self.dm.server_info(id).map(drop),
            None => self.dm.vcpus().map(drop),
        };
        match gone {
            Ok(()) => Ok(DomainState::Running),
            Err(err) => match err.kind() {
                ErrorKind::DomainGone | ErrorKind::NoSuchServer => Ok(DomainState::Gone),
                ErrorKind::NotSupported => Ok(DomainState::Running),
                _ => Err(err),
            },
        }
    }
}

impl GuestMap for XenHypervisor {
    type Memory = XenMemory;

    fn memory(&self) -> Arc<XenMemory> {
        self.cache.memory()
    }

    fn memory_generation(&self) -> u64 {
        self.cache.generation()
    }

    fn invalidate(&self) -> Result<()> {
        self.cache.flush()
    }

    fn modified(&self, pages: &[GfnRange]) -> Result<()> {
        self.dm.modified_memory(pages)
    }
}

impl MemTypes for XenHypervisor {
    fn claim_mem_type(&self, id: ServerId) -> Result<()> {
        self.dm.claim_mem_type(id)
    }

    fn disclaim_mem_type(&self, id: ServerId) -> Result<()> {
        self.dm.disclaim_mem_type(id)
    }

    fn set_mem_type(&self, authority: &MarkAuthority, ty: P2mType, pages: GfnRange) -> Result<()> {
        self.dm.set_mem_type(authority, ty, pages)
    }
}

impl Interrupts for XenHypervisor {
    fn set_pci_intx(&self, function: Sbdf, pin: Intx, asserted: bool) -> Result<()> {
        self.dm.set_pci_intx(function, pin, asserted)
    }

    fn set_isa_irq(&self, irq: u8, asserted: bool) -> Result<()> {
        self.dm.set_isa_irq(irq, asserted)
    }

    fn inject_msi(&self, addr: u64, data: u32) -> Result<()> {
        self.dm.inject_msi(addr, data)
    }

    fn set_pci_link_route(&self, link: u8, irq: u8) -> Result<()> {
        self.dm.set_pci_link_route(link, irq)
    }

    fn set_irq_level(&self, irq: u32, asserted: bool) -> Result<()> {
        self.dm.set_irq_level(irq, asserted)
    }

    fn inject_event(&self, vcpu: VcpuId, event: InjectedEvent) -> Result<()> {
        self.dm.inject_event(vcpu, event)
    }
}
