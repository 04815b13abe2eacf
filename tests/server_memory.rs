// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory that is replaced while a server runs: workers take the new one up, and nobody keeps the old one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use ioreq::handler::{Access, Context, MutHandler, ReadOutcome, WriteOutcome};
use ioreq::hypervisor::{Intx, SharedPage};
use ioreq::memory::MappedRegion;
use ioreq::server::{Exit, IoreqServer, Polling};
use ioreq::sim::{Domain, DomainConfig, Machine, SimEvents, SimHypervisor, SimMemory};
use ioreq::{
    BufIoreq, DomId, DomainState, GfnRange, GuestMap, Interrupts, IoRange, MarkAuthority, MemTypes,
    MmioRange, P2mType, Result, Sbdf, ServerId, ServerInfo, Transport, VcpuId,
};
use vm_memory::GuestRegionCollection;

/// The model, but its guest memory is replaced as Xen's backend replaces it.
struct Replacing {
    sim: SimHypervisor,
    current: Mutex<Arc<Memory>>,
    generation: AtomicU64,
    /// Run once, by the next worker that looks: between its check whether it is to stop and its sleep.
    hook: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

type Memory = GuestRegionCollection<MappedRegion>;

impl Replacing {
    fn new(domain: &Domain) -> Self {
        let sim = domain.hypervisor();
        let current = Mutex::new(fresh(&sim));
        Replacing {
            sim,
            current,
            generation: AtomicU64::new(0),
            hook: Mutex::new(None),
        }
    }

    /// Replaces the memory; gives what is left of the old one.
    fn replace(&self) -> Weak<Memory> {
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

impl GuestMap for Replacing {
    type Memory = Memory;

    fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.current.lock().unwrap())
    }

    fn memory_generation(&self) -> u64 {
        let worker = std::thread::current()
            .name()
            .is_some_and(|name| name.ends_with("-w0"));
        if worker && let Some(hook) = self.hook.lock().unwrap().take() {
            hook();
        }
        // Acquire: pairs with `replace`.
        self.generation.load(Ordering::Acquire)
    }
}

impl Transport for Replacing {
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

impl MemTypes for Replacing {
    fn claim_mem_type(&self, id: ServerId) -> Result<()> {
        self.sim.claim_mem_type(id)
    }
    fn disclaim_mem_type(&self, id: ServerId) -> Result<()> {
        self.sim.disclaim_mem_type(id)
    }
    fn set_mem_type(&self, authority: &MarkAuthority, ty: P2mType, pages: GfnRange) -> Result<()> {
        self.sim.set_mem_type(authority, ty, pages)
    }
}

impl Interrupts for Replacing {
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

struct Nothing;

impl MutHandler for Nothing {
    fn read(&mut self, _: &Context<'_>, _: Access) -> ReadOutcome {
        0.into()
    }
    fn write(&mut self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

fn goes(old: &Weak<Memory>) -> bool {
    // A bound for a test that fails; how long it takes does not matter.
    let end = Instant::now() + Duration::from_secs(20);
    while old.strong_count() > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    old.strong_count() == 0
}

fn server(vcpus: u32) -> (Domain, Arc<Replacing>, IoreqServer<Replacing>) {
    let domain = Machine::new()
        .create_domain(DomainConfig::new(vcpus))
        .unwrap();
    let hv = Arc::new(Replacing::new(&domain));
    let server = IoreqServer::<Replacing>::builder(Arc::clone(&hv))
        .polling(Polling::off())
        .build()
        .unwrap();
    let range = MmioRange::sized(0xe000_0000, 8).unwrap();
    server.route("nothing", range, Mutex::new(Nothing)).unwrap();
    (domain, hv, server)
}

#[test]
fn workers_that_sleep_let_go_of_memory_that_was_replaced() {
    let (_domain, hv, server) = server(2);
    let running = server.start().unwrap();
    assert!(goes(&hv.replace()));
    assert!(goes(&hv.replace()), "not the first time only");
    running.stop().unwrap();
}

#[test]
fn a_caller_that_polls_takes_the_new_memory_up_at_its_next_look() {
    let (_domain, hv, server) = server(1);
    let old = hv.replace();
    assert!(old.strong_count() > 0, "the group has it");
    server.poll().unwrap();
    assert_eq!(old.strong_count(), 0);
}

/// The wake-up that a stop sends is consumed by the last look before the sleep; the stop must not be.
#[test]
fn a_stop_in_the_middle_of_a_look_is_not_slept_through() {
    let (_domain, hv, server) = server(1);
    let running = server.start().unwrap();
    // Binding made its event channel pending: past that, nothing but a wake-up wakes the worker.
    assert!(goes(&hv.replace()));
    std::thread::sleep(Duration::from_millis(50));
    let (looking, looked) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    *hv.hook.lock().unwrap() = Some(Box::new(move || {
        looking.send(()).unwrap();
        let _until = goes_on.recv();
    }));
    // Wakes the worker: it has the hook in its first look, when it has seen that it is not to stop.
    hv.replace();
    looked.recv().unwrap();
    let stopping = std::thread::spawn(move || running.stop().map(drop));
    // Stop has set its flag and woken the worker by then; if it has not, this tests less, and does not fail.
    std::thread::sleep(Duration::from_millis(50));
    go_on.send(()).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !stopping.is_finished() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(stopping.is_finished(), "the worker sleeps");
    stopping.join().unwrap().unwrap();
}

/// The mappings of a domain that is gone would keep it as a zombie: the server may stay, they may not.
#[test]
fn when_the_domain_is_gone_no_worker_keeps_its_memory() {
    let (domain, hv, server) = server(2);
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.store32(0xe000_0000, 1));
    guest.unwrap().join().unwrap();
    let last = Arc::downgrade(&hv.memory());
    domain.destroy();
    assert!(goes(&last), "before anybody asks how it ended");
    assert_eq!(running.wait().unwrap(), Exit::DomainGone);
    drop(server);
}
