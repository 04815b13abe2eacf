// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Handlers that fail: those that run too long are told of while they run, those that panic go out of service where that is the
//! policy, and no lock that a panic poisoned stops anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ioreq::claim::PageTracker;
use ioreq::handler::{
    Access, Batch, BatchOutcome, Context, Handler, MutHandler, MutPageHandler, PageHandler,
    PageOutcome, PageWrite, ReadOutcome, Space, Verdict, WriteOutcome,
};
use ioreq::routes::Routes;
use ioreq::server::{Builder, IoreqServer, PanicPolicy, SlowHandler, Workers};
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{BufIoreq, Gfn, MmioRange, PortRange, Sbdf, VcpuId, Width};
use vm_memory::GuestAddress;

const MMIO: u64 = 0xe000_0000;
const BUDGET: Duration = Duration::from_millis(5);

fn domain(vcpus: u32) -> Domain {
    Machine::new()
        .create_domain(DomainConfig::new(vcpus))
        .unwrap()
}

fn builder(domain: &Domain) -> Builder<SimHypervisor> {
    IoreqServer::builder(domain.hypervisor()).workers(Workers::PerVcpu)
}

fn port(port: u16) -> PortRange {
    PortRange::new(port, port).unwrap()
}

fn mmio() -> MmioRange {
    MmioRange::sized(MMIO, 0x1000).unwrap()
}

/// Does not return before it is let go.
struct Stuck(Mutex<Receiver<()>>);

impl Stuck {
    fn new() -> (Self, Sender<()>) {
        let (let_go, wait) = channel();
        (Stuck(Mutex::new(wait)), let_go)
    }
    fn wait(&self) {
        self.0.lock().unwrap().recv().unwrap();
    }
}

impl Handler for Stuck {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.wait();
        7.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        self.wait();
        WriteOutcome::Done
    }
}

impl PageHandler for Stuck {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.wait();
        PageOutcome::Apply
    }
}

/// Answers at once.
struct Quick;
impl Handler for Quick {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        5.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

fn told(server: &IoreqServer<SimHypervisor>) -> Receiver<SlowHandler> {
    let (send, slow) = channel();
    server.on_slow_handler(move |slow| send.send(slow.clone()).unwrap());
    slow
}

/// Ports, MMIO, PCI and pages: who, which vCPU and where, while the handler runs and other vCPUs are served.
#[test]
fn a_slow_handler_is_told_of_while_it_runs() {
    let domain = domain(3);
    let server = builder(&domain).handler_budget(BUDGET).build().unwrap();
    let claim = server.claim_mem_type().unwrap();
    let sbdf = Sbdf::new(0, 0, 3, 1).unwrap();
    let (port_stuck, port_go) = Stuck::new();
    let (mmio_stuck, mmio_go) = Stuck::new();
    let (pci_stuck, pci_go) = Stuck::new();
    let (page_stuck, page_go) = Stuck::new();
    server.route("a port", port(0x500), port_stuck).unwrap();
    server.route("memory", mmio(), mmio_stuck).unwrap();
    server.route("a function", sbdf, pci_stuck).unwrap();
    server.route("quick", port(0x600), Quick).unwrap();
    let tracker = claim.tracker("pages");
    tracker
        .track(Gfn(0x10).into(), Arc::new(page_stuck))
        .unwrap();
    let slow = told(&server);
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(2), |cpu| {
        cpu.inb(0x500)?;
        cpu.store32(MMIO + 0x20, 1)?;
        cpu.outl(0xcf8, 0x8000_1910)?;
        cpu.outw(0xcfe, 1)?;
        cpu.store64(0x1_0008, 9)
    });
    let guest = guest.unwrap();
    let expect = |name: &str, space, addr, go: &Sender<()>| {
        let told = slow.recv().unwrap();
        assert_eq!(
            (&*told.handler, told.vcpu, told.space, told.addr),
            (name, VcpuId(2), space, addr)
        );
        assert!(told.running >= BUDGET);
        let other = domain.spawn(VcpuId(0), |cpu| cpu.inb(0x600)).unwrap();
        assert_eq!(other.join().unwrap(), 5, "others are served meanwhile");
        go.send(()).unwrap();
    };
    expect("a port", Space::Port, 0x500, &port_go);
    expect("memory", Space::Mmio, MMIO + 0x20, &mmio_go);
    expect("a function", Space::Pci, 0x12, &pci_go);
    expect("pages", Space::Mmio, 0x1_0008, &page_go);
    guest.join().unwrap();
    running.stop().unwrap();
    assert_eq!(server.stats().slow_handlers, 4, "each is told once");
    assert!(slow.try_recv().is_err());
}

/// A stop waits for its handlers, and says so.
#[test]
fn a_slow_handler_that_a_stop_waits_for_is_told_of() {
    let domain = domain(1);
    let server = builder(&domain).handler_budget(BUDGET).build().unwrap();
    let (begins, begun) = channel();
    let (stuck, let_go) = Stuck::new();
    struct Begins(Sender<()>, Stuck);
    impl Handler for Begins {
        fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome {
            self.0.send(()).unwrap();
            self.1.read(cx, access)
        }
        fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
            WriteOutcome::Done
        }
    }
    server
        .route("stuck", port(0x500), Begins(begins, stuck))
        .unwrap();
    let slow = told(&server);
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.inb(0x500)).unwrap();
    begun.recv().unwrap();
    let stops = std::thread::spawn(move || running.stop().unwrap());
    assert_eq!(&*slow.recv().unwrap().handler, "stuck");
    let_go.send(()).unwrap();
    stops.join().unwrap();
    assert_eq!(guest.join().unwrap(), 7);
}

/// A listener that panics is no reason to tell of no more.
#[test]
fn a_listener_that_panics_is_called_again() {
    let domain = domain(1);
    let server = builder(&domain).handler_budget(BUDGET).build().unwrap();
    let (stuck, let_go) = Stuck::new();
    server.route("stuck", port(0x500), stuck).unwrap();
    let (send, slow) = channel();
    server.on_slow_handler(move |_| {
        send.send(()).unwrap();
        panic!("the listener panics")
    });
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| Ok((cpu.inb(0x500)?, cpu.inb(0x500)?)));
    for _ in 0..2 {
        slow.recv().unwrap();
        let_go.send(()).unwrap();
    }
    assert_eq!(guest.unwrap().join().unwrap(), (7, 7));
    running.stop().unwrap();
}

/// Panics at every call, and counts them.
#[derive(Default)]
struct Panics(AtomicU64);

impl Panics {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn panic(&self) -> ! {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("the handler panics")
    }
}

impl Handler for Panics {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.panic()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        self.panic()
    }
    fn read_batch(&self, _: &Context<'_>, _: &Batch, _: &mut [u64]) -> BatchOutcome {
        self.panic()
    }
}

/// The same, of pages whose failed writes get this verdict.
struct PanicsOn(Panics, Verdict);
impl PageHandler for PanicsOn {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.panic()
    }
    fn fallback(&self) -> Verdict {
        self.1
    }
}

#[test]
fn a_route_whose_handler_panicked_is_broken_by_policy_and_whole_again_when_replaced() {
    for policy in [PanicPolicy::KeepServing, PanicPolicy::BreakRoute] {
        let breaks = policy == PanicPolicy::BreakRoute;
        let domain = domain(1);
        let server = builder(&domain).on_panic(policy).build().unwrap();
        let panics = Arc::new(Panics::default());
        let route = server.route("panics", mmio(), Arc::clone(&panics)).unwrap();
        server.route("quick", port(0x600), Quick).unwrap();
        let running = server.start().unwrap();
        let run = || {
            let guest = domain.spawn(VcpuId(0), |cpu| {
                cpu.store32(MMIO, 1)?;
                Ok((cpu.load32(MMIO)?, cpu.load8(MMIO)?, cpu.inb(0x600)?))
            });
            guest.unwrap().join().unwrap()
        };
        assert_eq!(run(), (u32::MAX, 0xff, 5));
        let stats = server.stats();
        let (calls, unclaimed) = if breaks { (1, 2) } else { (3, 0) };
        assert_eq!((panics.count(), stats.panics), (calls, calls));
        assert_eq!(
            (stats.unclaimed, stats.broken_routes, stats.refused),
            (unclaimed, u64::from(breaks), 0)
        );
        server.control().replace(route, Arc::new(Quick)).unwrap();
        assert_eq!(run(), (5, 5, 5), "repaired");
        running.stop().unwrap();
        assert_eq!(server.stats().broken_routes, u64::from(breaks));
    }
}

#[test]
fn a_broken_route_answers_repeated_instructions_too() {
    let domain = domain(1);
    let server = builder(&domain).on_panic(PanicPolicy::BreakRoute);
    let server = server.build().unwrap();
    let panics = Arc::new(Panics::default());
    server
        .route("panics", port(0x500), Arc::clone(&panics))
        .unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        cpu.rep_ins(0x500, 0x2000, Width::B1, 4)?;
        cpu.rep_ins(0x500, 0x2004, Width::B1, 4)?;
        cpu.load64(0x2000)
    });
    assert_eq!(guest.unwrap().join().unwrap(), u64::MAX);
    running.stop().unwrap();
    assert_eq!(panics.count(), 1);
}

/// Writes to the pages of a broken handler get its fallback; other pages of the tracker have their own handlers.
#[test]
fn broken_pages_get_their_fallback() {
    let verdicts = [Verdict::Apply, Verdict::Replace(0x77), Verdict::Drop];
    let domain = domain(1);
    let server = builder(&domain).on_panic(PanicPolicy::BreakRoute);
    let server = server.build().unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("pages");
    let handlers = verdicts.map(|verdict| Arc::new(PanicsOn(Panics::default(), verdict)));
    for (gfn, handler) in (0x10..).zip(&handlers) {
        tracker
            .track(Gfn(gfn).into(), Arc::clone(handler) as _)
            .unwrap();
    }
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        let mut seen = Vec::new();
        for gfn in 0x10..0x13_u64 {
            for offset in [0, 8] {
                cpu.store64((gfn << 12) + offset, 0x55)?;
                seen.push(cpu.load64((gfn << 12) + offset)?);
            }
        }
        Ok(seen)
    });
    assert_eq!(
        guest.unwrap().join().unwrap(),
        [0x55, 0x55, 0x77, 0x77, 0, 0]
    );
    running.stop().unwrap();
    assert_eq!(handlers.each_ref().map(|handler| handler.0.count()), [1; 3]);
    let stats = server.stats();
    assert_eq!(
        (stats.broken_routes, stats.panics, stats.page_writes),
        (3, 3, 6)
    );
}

/// Panics at the first call of each kind, with its lock held.
#[derive(Default)]
struct Once {
    calls: u64,
}

impl Once {
    fn call(&mut self) -> u64 {
        self.calls += 1;
        assert_ne!(self.calls, 1, "the first call panics");
        self.calls
    }
}

impl MutHandler for Once {
    fn read(&mut self, _: &Context<'_>, _: Access) -> ReadOutcome {
        self.call().into()
    }
    fn write(&mut self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        self.call();
        WriteOutcome::Done
    }
}

impl MutPageHandler for Once {
    fn write(&mut self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Replace(self.call())
    }
}

/// Handlers' mutexes, a device's DMA, the clock's listener, a handler whose end panics: each panics once under a lock, and the
/// server and the device go on.
#[test]
fn no_poisoned_lock_stops_the_server() {
    struct PanicsWhenFreed;
    impl Drop for PanicsWhenFreed {
        fn drop(&mut self) {
            panic!("a handler's end panics")
        }
    }
    impl Handler for PanicsWhenFreed {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            3.into()
        }
        fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
            WriteOutcome::Done
        }
    }
    let config = DomainConfig::new(2).vga(true);
    let domain = Machine::new().create_domain(config).unwrap();
    let server = builder(&domain).buffered(BufIoreq::Atomic);
    let server = server.build().unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("pages");
    let once = || Mutex::new(Once::default());
    server.route("once", port(0x500), once()).unwrap();
    let freed = server.route("freed", port(0x501), PanicsWhenFreed).unwrap();
    for gfn in [0x10, 0x11] {
        tracker.track(Gfn(gfn).into(), Arc::new(once())).unwrap();
    }
    let offsets = Arc::new(AtomicU64::new(0));
    let listener = Arc::clone(&offsets);
    server.on_time_offset(move |_| {
        assert_ne!(listener.fetch_add(1, Ordering::Relaxed), 0, "the first");
    });
    let running = server.start().unwrap();
    let mut dma = server.dma();
    for value in [0x55, 0x66] {
        dma.write(GuestAddress(0x1_1000), &[value]).unwrap();
    }
    server.control().retract(freed).unwrap();
    server.synchronize().unwrap();
    let guest = domain.spawn(VcpuId(1), |cpu| {
        cpu.rtc_set(1)?;
        cpu.rtc_set(2)?;
        let reads = (cpu.inb(0x500)?, cpu.inb(0x500)?, cpu.inb(0x501)?);
        cpu.store8(0x1_0000, 0x55)?;
        let first = cpu.load8(0x1_0000)?;
        cpu.store8(0x1_0000, 0x55)?;
        Ok((reads, first, cpu.load8(0x1_0000)?, cpu.load8(0x1_1000)?))
    });
    assert_eq!(
        guest.unwrap().join().unwrap(),
        ((0xff, 2, 0xff), 0x55, 2, 2)
    );
    assert_eq!(offsets.load(Ordering::Relaxed), 2, "told again");
    assert!(
        claim
            .settle(Duration::from_secs(60))
            .unwrap()
            .deferred
            .is_empty()
    );
    running.stop().unwrap();
    assert_eq!(server.stats().panics, 3);
    drop(claim);
    server.destroy().unwrap();
    assert!(domain.leaks().is_clean());
}
