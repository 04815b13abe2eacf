// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guest does in the very moment in which its page is unmarked: a hypervisor handle that lets the guest write just before the
//! type changes.

use std::fmt;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ioreq::claim::{PageState, PageTracker};
use ioreq::handler::{Context, PageHandler, PageOutcome, PageWrite};
use ioreq::hypervisor::{Intx, SharedPage};
use ioreq::server::IoreqServer;
use ioreq::sim::{DomainConfig, Machine, SimEvents, SimHypervisor, SimMemory};
use ioreq::{
    BufIoreq, DomId, DomainState, Gfn, GfnRange, GuestMap, Interrupts, IoRange, MarkAuthority,
    MemTypes, P2mType, Result, Sbdf, ServerId, ServerInfo, Transport, VcpuId,
};

/// Calls the hook before the first page becomes RAM again.
struct Hooked {
    sim: SimHypervisor,
    hook: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl GuestMap for Hooked {
    type Memory = SimMemory;

    fn memory(&self) -> Arc<SimMemory> {
        self.sim.memory()
    }
    fn memory_generation(&self) -> u64 {
        self.sim.memory_generation()
    }
}

impl Transport for Hooked {
    type Events = SimEvents;

    fn domid(&self) -> DomId {
        self.sim.domid()
    }
    fn vcpus(&self) -> Result<u32> {
        self.sim.vcpus()
    }
    fn create_server(&self, bufioreq: BufIoreq) -> Result<ServerId> {
        self.sim.create_server(bufioreq)
    }
    fn destroy_server(&self, id: ServerId) -> Result<()> {
        self.sim.destroy_server(id)
    }
    fn set_server_state(&self, id: ServerId, enabled: bool) -> Result<()> {
        self.sim.set_server_state(id, enabled)
    }
    fn server_info(&self, id: ServerId) -> Result<ServerInfo> {
        self.sim.server_info(id)
    }
    fn map_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        self.sim.map_range(id, range)
    }
    fn unmap_range(&self, id: ServerId, range: IoRange) -> Result<()> {
        self.sim.unmap_range(id, range)
    }
    fn ioreq_page(&self, id: ServerId) -> Result<SharedPage> {
        self.sim.ioreq_page(id)
    }
    fn buffered_page(&self, id: ServerId) -> Result<SharedPage> {
        self.sim.buffered_page(id)
    }
    fn open_events(&self) -> Result<SimEvents> {
        self.sim.open_events()
    }
    fn domain_state(&self) -> Result<DomainState> {
        self.sim.domain_state()
    }
}

impl MemTypes for Hooked {
    fn claim_mem_type(&self, id: ServerId) -> Result<()> {
        self.sim.claim_mem_type(id)
    }
    fn disclaim_mem_type(&self, id: ServerId) -> Result<()> {
        self.sim.disclaim_mem_type(id)
    }
    fn set_mem_type(&self, authority: &MarkAuthority, ty: P2mType, pages: GfnRange) -> Result<()> {
        if ty == P2mType::RamRw {
            let hook = self
                .hook
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            hook.into_iter().for_each(|hook| hook());
        }
        self.sim.set_mem_type(authority, ty, pages)
    }
}

impl Interrupts for Hooked {
    fn set_pci_intx(&self, function: Sbdf, pin: Intx, asserted: bool) -> Result<()> {
        self.sim.set_pci_intx(function, pin, asserted)
    }
    fn set_isa_irq(&self, irq: u8, asserted: bool) -> Result<()> {
        self.sim.set_isa_irq(irq, asserted)
    }
    fn inject_msi(&self, addr: u64, data: u32) -> Result<()> {
        self.sim.inject_msi(addr, data)
    }
}

struct Apply;

impl PageHandler for Apply {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

/// The answer to a write that traps now would be looked at under the new type.
#[test]
fn no_write_is_answered_while_its_pages_type_changes() {
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let hv = Arc::new(Hooked {
        sim: domain.hypervisor(),
        hook: Mutex::default(),
    });
    let server = IoreqServer::<Hooked>::builder(Arc::clone(&hv))
        .build()
        .unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("test");
    let page = GfnRange::from(Gfn(0x10));
    tracker.track(page, Arc::new(Apply)).unwrap();
    let running = server.start().unwrap();

    let (done, through): (_, Receiver<u64>) = channel();
    let (tell, told) = channel();
    let guest = domain.clone();
    *hv.hook.lock().unwrap() = Some(Box::new(move || {
        let vcpu = guest.spawn(VcpuId(0), move |cpu| {
            cpu.store64(0x1_0000, 7)?;
            let _listens = done.send(cpu.load64(0x1_0000)?);
            Ok(())
        });
        tell.send((
            vcpu.unwrap(),
            through.recv_timeout(Duration::from_millis(200)).is_err(),
            through,
        ))
        .unwrap();
    }));
    tracker.untrack(page).unwrap();
    let (vcpu, waited, through) = told.recv().unwrap();
    assert!(waited, "the worker answered");
    assert_eq!(through.recv().unwrap(), 7);
    vcpu.join().unwrap();
    let report = claim.settle(Duration::from_secs(5)).unwrap();
    assert_eq!((report.unmarked, report.contended), (1, 1));
    assert_eq!(tracker.state(Gfn(0x10)), PageState::Untracked);
    running.stop().unwrap();
}
