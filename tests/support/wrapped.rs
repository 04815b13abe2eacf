// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A hypervisor handle of the model's that tests have a hand in.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ioreq::hypervisor::{Intx, SharedPage};
use ioreq::memory::MappedRegion;
use ioreq::sim::{Domain, SimEvents, SimHypervisor, SimMemory};
use ioreq::{
    BufIoreq, DomId, DomainState, GfnRange, GuestMap, Interrupts, IoRange, MarkAuthority, MemTypes,
    P2mType, Result, Sbdf, ServerId, ServerInfo, Transport,
};
use vm_memory::GuestRegionCollection;

/// Something to do once.
pub(crate) type Hook = Mutex<Option<Box<dyn FnOnce() + Send>>>;

fn call(hook: &Hook) {
    let hook = hook.lock().unwrap_or_else(PoisonError::into_inner).take();
    hook.into_iter().for_each(|hook| hook());
}

/// The model, but its guest memory is replaced as Xen's backend replaces it, and a test may act at two moments.
pub(crate) struct Wrapped {
    sim: SimHypervisor,
    current: Mutex<Arc<Memory>>,
    generation: AtomicU64,
    /// By the next worker that looks: between its check whether it is to stop and its sleep.
    pub(crate) on_look: Hook,
    /// Before the next pages become RAM again.
    pub(crate) before_unmark: Hook,
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped").finish_non_exhaustive()
    }
}

pub(crate) type Memory = GuestRegionCollection<MappedRegion>;

impl Wrapped {
    pub(crate) fn new(domain: &Domain) -> Self {
        let sim = domain.hypervisor();
        let current = Mutex::new(fresh(&sim));
        Wrapped {
            sim,
            current,
            generation: AtomicU64::new(0),
            on_look: Mutex::default(),
            before_unmark: Mutex::default(),
        }
    }

    /// Replaces the memory; gives what is left of the old one.
    pub(crate) fn replace(&self) -> Weak<Memory> {
        let mut current = self.current.lock().unwrap();
        let old = std::mem::replace(&mut *current, fresh(&self.sim));
        // Release: pairs with `memory_generation`.
        self.generation.fetch_add(1, Ordering::Release);
        Arc::downgrade(&old)
    }
}

/// A value of its own for the same memory.
fn fresh(sim: &SimHypervisor) -> Arc<Memory> {
    let memory: Arc<SimMemory> = sim.memory();
    Arc::new(SimMemory::clone(&memory))
}

impl GuestMap for Wrapped {
    type Memory = Memory;

    fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.current.lock().unwrap())
    }

    fn memory_generation(&self) -> u64 {
        let worker = std::thread::current()
            .name()
            .is_some_and(|name| name.ends_with("-w0"));
        if worker {
            call(&self.on_look);
        }
        // Acquire: pairs with `replace`.
        self.generation.load(Ordering::Acquire)
    }
}

impl Transport for Wrapped {
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
        let state = self.sim.domain_state()?;
        if state == DomainState::Gone {
            self.replace();
        }
        Ok(state)
    }
}

impl MemTypes for Wrapped {
    fn claim_mem_type(&self, id: ServerId) -> Result<()> {
        self.sim.claim_mem_type(id)
    }
    fn disclaim_mem_type(&self, id: ServerId) -> Result<()> {
        self.sim.disclaim_mem_type(id)
    }
    fn set_mem_type(&self, authority: &MarkAuthority, ty: P2mType, pages: GfnRange) -> Result<()> {
        if ty == P2mType::RamRw {
            call(&self.before_unmark);
        }
        self.sim.set_mem_type(authority, ty, pages)
    }
}

impl Interrupts for Wrapped {
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
