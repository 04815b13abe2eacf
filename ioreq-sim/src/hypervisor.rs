// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ioreq-core`'s hypervisor traits on the model.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioreq_core::abi::{
    XEN_DMOP_IO_RANGE_MEMORY, XEN_DMOP_IO_RANGE_PCI, XEN_DMOP_IO_RANGE_PORT,
    XEN_DMOP_IOREQ_MEM_ACCESS_WRITE, XENMEM_RESOURCE_FRAME_BUFIOREQ, XENMEM_RESOURCE_FRAME_IOREQ,
};
use ioreq_core::error::Subject;
use ioreq_core::hypervisor::{InjectedEvent, Intx, SharedPage};
use ioreq_core::{
    BufIoreq, DomId, DomainState, Error, EvtchnPort, GfnRange, GuestMap, Interrupts, IoRange,
    MarkAuthority, MemTypes, Op, P2mType, Result, Sbdf, ServerId, ServerInfo, Transport, VcpuId,
};
use libc::EINVAL;

use crate::domain::{Domain, DomainInner, SimMemory};
use crate::evtchn::SimEvents;
use crate::interrupts::Injected;
use crate::raw::RawDmop;

/// A device-model process's handle on a domain: all of [`Hypervisor`](ioreq_core::Hypervisor).
///
/// Clones belong to the same process; [`Domain::hypervisor`](crate::Domain::hypervisor) starts another one.
///
/// ```
/// use ioreq_core::{BufIoreq, Transport};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let first = domain.hypervisor();
/// let id = first.create_server(BufIoreq::Off)?;
/// let page = first.ioreq_page(id)?;
/// first.kill(); // kill -9: its hypercalls fail, but Xen keeps the server …
/// assert!(first.ioreq_page(id).is_err());
/// let second = domain.hypervisor(); // … and another process finds it, with the same page
/// assert_eq!(second.ioreq_page(id)?.as_ptr(), page.as_ptr());
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SimHypervisor {
    domain: Domain,
    raw: RawDmop,
    restricted: Arc<AtomicBool>,
}

impl SimHypervisor {
    pub(crate) fn new(domain: Domain, emulator: DomId) -> Self {
        let raw = RawDmop::open(domain.domid(), Some(Arc::clone(domain.inner())), emulator);
        SimHypervisor {
            domain,
            raw,
            restricted: Arc::default(),
        }
    }

    /// Kills this process: its event bindings are gone, its later calls fail. Servers, ranges, claim and pages stay in Xen.
    ///
    /// Threads that already hold a shared page can still write it, and handlers that run go on, with whatever they do outside of the
    /// domain: the model cannot stop them. So stop the process's workers before another process takes over, and
    /// [forget](std::mem::forget) all else that it has: a dead process runs no destructor.
    pub fn kill(&self) {
        self.raw.process.kill();
    }

    /// Gives up the right to anything but device-model operations, as `PRIVCMD_RESTRICT` does: of the domain's life only its death
    /// can be told from then on, not that it shut down.
    pub fn restrict(&self) {
        // Relaxed: a flag that says nothing of other memory.
        self.restricted.store(true, Ordering::Relaxed);
    }

    /// The operations as plain numbers, by the same process.
    #[must_use]
    pub fn raw(&self) -> RawDmop {
        self.raw.clone()
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    fn inner(&self) -> &Arc<DomainInner> {
        self.domain.inner()
    }

    /// Runs a raw operation and says what failed. The clearer error goes first: a killed process, a panicked Xen.
    fn call<T>(&self, op: Op, f: impl FnOnce(&RawDmop) -> Result<T, i32>) -> Result<T> {
        let result = f(&self.raw);
        if result.is_err() {
            self.raw.process.check(op)?;
            self.inner().check_panic(op)?;
        }
        result.map_err(|e| Error::from_errno(op, e).domain(self.raw.domid))
    }

    fn on<T>(&self, op: Op, id: ServerId, f: impl FnOnce(&RawDmop) -> Result<T, i32>) -> Result<T> {
        self.call(op, f).map_err(|e| e.server(id))
    }
}

/// The DMOP's type and ends of a range.
fn numbers(range: IoRange) -> (u32, u64, u64) {
    match range {
        IoRange::Port(r) => (
            XEN_DMOP_IO_RANGE_PORT,
            u64::from(r.first()),
            u64::from(r.last()),
        ),
        IoRange::Mmio(r) => (XEN_DMOP_IO_RANGE_MEMORY, r.first(), r.last()),
        IoRange::Pci(sbdf) => {
            let bits = u64::from(sbdf.bits());
            (XEN_DMOP_IO_RANGE_PCI, bits, bits)
        }
    }
}

impl Transport for SimHypervisor {
    type Events = SimEvents;

    fn domid(&self) -> DomId {
        self.raw.domid
    }

    /// The model never gives a domain id twice.
    fn identity(&self) -> Result<String> {
        Ok(format!("model {}", self.raw.domid))
    }

    fn vcpus(&self) -> Result<u32> {
        self.call(Op::VcpuCount, RawDmop::nr_vcpus)
    }

    fn create_server(&self, bufioreq: BufIoreq) -> Result<ServerId> {
        self.call(Op::CreateServer, |raw| raw.create(bufioreq.raw(), 0))
            .map(ServerId)
    }

    fn destroy_server(&self, id: ServerId) -> Result<()> {
        self.on(Op::DestroyServer, id, |raw| raw.destroy(id.0, 0))
    }

    fn set_server_state(&self, id: ServerId, enabled: bool) -> Result<()> {
        self.on(Op::SetServerState, id, |raw| {
            raw.set_state(id.0, u8::from(enabled), 0)
        })
    }

    fn server_info(&self, id: ServerId) -> Result<ServerInfo> {
        let (_, _, port) = self.on(Op::ServerInfo, id, |raw| raw.get_info(id.0, 1))?;
        Ok(ServerInfo {
            bufioreq_port: (port != 0).then_some(EvtchnPort(port)),
        })
    }

    fn map_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        let (kind, first, last) = numbers(range);
        self.on(Op::MapRange, id, |raw| {
            raw.map_range(id.0, kind, first, last, 0)
        })
        .map_err(|e| e.about(range))
    }

    fn unmap_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        let (kind, first, last) = numbers(range);
        self.on(Op::UnmapRange, id, |raw| {
            raw.unmap_range(id.0, kind, first, last, 0)
        })
        .map_err(|e| e.about(range))
    }

    fn ioreq_page(&self, id: ServerId) -> Result<SharedPage> {
        self.on(Op::AcquireResource, id, |raw| {
            raw.acquire(id.0, XENMEM_RESOURCE_FRAME_IOREQ)
        })
    }

    fn buffered_page(&self, id: ServerId) -> Result<SharedPage> {
        self.on(Op::AcquireResource, id, |raw| {
            raw.acquire(id.0, XENMEM_RESOURCE_FRAME_BUFIOREQ)
        })
    }

    fn open_events(&self) -> Result<SimEvents> {
        self.raw.process.check(Op::EventChannel)?;
        self.inner().check_panic(Op::EventChannel)?;
        SimEvents::open(self.inner(), &self.raw.process)
    }

    fn domain_state(&self) -> Result<DomainState> {
        self.raw.process.check(Op::DomainState)?;
        self.inner().check_panic(Op::DomainState)?;
        // Relaxed: as in `restrict`.
        match self.inner().state() {
            DomainState::Shutdown(_) if self.restricted.load(Ordering::Relaxed) => {
                Ok(DomainState::Running)
            }
            state => Ok(state),
        }
    }
}

impl GuestMap for SimHypervisor {
    type Memory = SimMemory;

    fn memory(&self) -> Arc<SimMemory> {
        Arc::clone(&self.inner().memory)
    }

    /// One hypercall for all, the last extent first, as Xen takes them.
    fn modified(&self, pages: &[GfnRange]) -> Result<()> {
        self.call(Op::ModifiedMemory, |raw| {
            let domain = raw.target(11, &[])?;
            let parts = |pages: &GfnRange| pages.batches(u64::from(u32::MAX));
            let mut parts: Vec<GfnRange> = pages.iter().flat_map(parts).collect();
            parts.reverse();
            parts.iter().try_for_each(|part| {
                let nr = u32::try_from(part.pages()).map_err(|_| EINVAL)?;
                domain.modified_memory(part.first(), nr)
            })
        })
        .map_err(|err| match pages {
            [pages] => err.about(*pages),
            _ => err.about(format!("one of {} extents", pages.len())),
        })
    }
}

impl MemTypes for SimHypervisor {
    fn claim_mem_type(&self, id: ServerId) -> Result<()> {
        self.on(Op::ClaimMemType, id, |raw| {
            let ty = P2mType::IoreqServer.raw();
            let ty = u16::try_from(ty).map_err(|_| EINVAL)?;
            raw.map_mem_type(id.0, ty, XEN_DMOP_IOREQ_MEM_ACCESS_WRITE, 0)
        })
    }

    fn disclaim_mem_type(&self, id: ServerId) -> Result<()> {
        self.on(Op::DisclaimMemType, id, |raw| {
            let ty = P2mType::IoreqServer.raw();
            let ty = u16::try_from(ty).map_err(|_| EINVAL)?;
            raw.map_mem_type(id.0, ty, 0, 0)
        })
    }

    fn set_mem_type(&self, _: &MarkAuthority, ty: P2mType, pages: GfnRange) -> Result<()> {
        pages.batches(u64::from(u32::MAX)).try_for_each(|part| {
            self.call(Op::SetMemType, |raw| {
                let nr = u32::try_from(part.pages()).map_err(|_| EINVAL)?;
                raw.set_mem_type(ty.raw(), 0, part.first(), nr)
            })
            .map_err(|e| e.about(part))
        })
    }
}

impl Interrupts for SimHypervisor {
    fn set_pci_intx(&self, function: Sbdf, pin: Intx, asserted: bool) -> Result<()> {
        self.call(Op::SetPciIntx, |raw| {
            let domain = raw.target(8, &[])?;
            if function.segment() != 0 {
                return Err(EINVAL);
            }
            domain.inject(Injected::Intx {
                function,
                pin,
                asserted,
            });
            Ok(())
        })
        .map_err(|e| e.about(function.to_string()))
    }

    fn set_isa_irq(&self, irq: u8, asserted: bool) -> Result<()> {
        self.call(Op::SetIsaIrq, |raw| {
            let domain = raw.target(9, &[])?;
            if irq > 15 {
                return Err(EINVAL);
            }
            domain.inject(Injected::Isa { irq, asserted });
            Ok(())
        })
        .map_err(|e| e.about(irq_line(irq)))
    }

    fn inject_msi(&self, addr: u64, data: u32) -> Result<()> {
        self.call(Op::InjectMsi, |raw| {
            raw.target(14, &[])?.inject(Injected::Msi { addr, data });
            Ok(())
        })
    }

    fn set_pci_link_route(&self, link: u8, irq: u8) -> Result<()> {
        self.call(Op::SetPciLinkRoute, |raw| {
            let domain = raw.target(10, &[])?;
            if link > 3 || irq > 15 {
                return Err(EINVAL);
            }
            domain.inject(Injected::LinkRoute { link, irq });
            Ok(())
        })
        .map_err(|e| e.about(irq_line(irq)))
    }

    fn inject_event(&self, vcpu: VcpuId, event: InjectedEvent) -> Result<()> {
        self.call(Op::InjectEvent, |raw| {
            raw.target(13, &[])?.inject_event(vcpu, event)
        })
        .map_err(|e| e.about(vcpu.to_string()))
    }
}

fn irq_line(irq: u8) -> Subject {
    Subject::Text(format!("ISA line {irq}"))
}
