// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Dirty logging: every store that the server makes into guest memory is told to the hypervisor before its request is answered.

use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use ioreq::claim::PageTracker;
use ioreq::handler::{
    Access, Completion, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome,
    Verdict, WriteOutcome,
};
use ioreq::server::{IoreqServer, Running};
use ioreq::sim::{Cpu, CpuFault, Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{
    BufIoreq, ErrorKind, Gfn, GfnRange, MmioRange, Op, PortRange, Transport, VcpuId, Width,
};
use vm_memory::GuestAddress;

const PORT: u16 = 0x500;
const MMIO: u64 = 0xe000_0000;
/// Of guest memory.
const PAGES: u64 = 0x400;

/// Reads give a number; a write stores its value into the page of that number, and into the next one.
struct Storing;

impl Handler for Storing {
    fn read(&self, _: &Context<'_>, access: Access) -> ReadOutcome {
        access.addr.into()
    }
    fn write(&self, cx: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
        let page = value << 12;
        cx.ram()
            .store(GuestAddress(page + 8), Width::B4, value)
            .ok();
        cx.ram().write(GuestAddress(page + 0xfff), &[1, 2, 3]).ok();
        WriteOutcome::Done
    }
}

struct Rig {
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    running: Option<Running<SimHypervisor>>,
}

fn rig(handler: impl Handler + 'static) -> Rig {
    rig_with(PAGES, handler)
}

fn rig_with(pages: u64, handler: impl Handler + 'static) -> Rig {
    let memory = GfnRange::sized(0, pages).unwrap();
    let config = DomainConfig::new(1).memory(memory).vga(true);
    let domain = Machine::new().create_domain(config).unwrap();
    let builder = IoreqServer::builder(domain.hypervisor()).buffered(BufIoreq::Atomic);
    let server = builder.build().unwrap();
    let handler = Arc::new(handler);
    let ports = PortRange::sized(PORT, 8).unwrap();
    let mmio = MmioRange::sized(MMIO, 0x1000).unwrap();
    let vga = MmioRange::new(0xa_0000, 0xb_ffff).unwrap();
    server.route("ports", ports, Arc::clone(&handler)).unwrap();
    server.route("mmio", mmio, Arc::clone(&handler)).unwrap();
    server.route("vga", vga, handler).unwrap();
    let running = Some(server.start().unwrap());
    Rig {
        domain,
        server,
        running,
    }
}

impl Rig {
    /// What was told by the time the guest's instructions were over, and in how many calls.
    fn told(
        &self,
        program: impl FnOnce(&mut Cpu) -> Result<(), CpuFault> + Send + 'static,
    ) -> (Vec<Gfn>, u64) {
        let before = self.calls();
        let domain = self.domain.clone();
        let guest = self.domain.spawn(VcpuId(0), move |cpu| {
            program(cpu)?;
            Ok(domain.take_modified())
        });
        let modified = guest.unwrap().join().unwrap();
        (modified, self.calls() - before)
    }

    fn calls(&self) -> u64 {
        self.domain.counts().dmop(Op::ModifiedMemory)
    }

    fn faults(&self) -> u64 {
        self.server.stats().dirty_faults
    }
}

fn gfns(all: &[u64]) -> Vec<Gfn> {
    all.iter().copied().map(Gfn).collect()
}

#[test]
fn stores_of_one_request_are_told_at_once_and_only_while_it_is_on() {
    let rig = rig(Storing);
    rig.domain.set_log_dirty(true).unwrap();
    let ins = |cpu: &mut Cpu| cpu.rep_ins(PORT, 0x10_0ff0, Width::B4, 8);
    assert_eq!(rig.told(ins), (vec![], 0), "off at first");
    rig.server.set_dirty_logging(true).unwrap();
    // Two pages are two requests: Xen splits a repeated access at a page's end.
    assert_eq!(rig.told(ins), (gfns(&[0x100, 0x101]), 2));
    let movs = |cpu: &mut Cpu| cpu.rep_movs(0x12_0000, MMIO, Width::B4, 64);
    assert_eq!(rig.told(movs), (gfns(&[0x120]), 1));
    let down = |cpu: &mut Cpu| {
        cpu.set_df(true);
        cpu.rep_ins(PORT, 0x12_0100, Width::B2, 3)
    };
    assert_eq!(rig.told(down), (gfns(&[0x120]), 1));
    // A handler's own stores, by both ways that the framework's memory has.
    assert_eq!(
        rig.told(|cpu| cpu.outb(PORT, 0x20)),
        (gfns(&[0x20, 0x21]), 1)
    );
    assert_eq!(
        rig.told(|cpu| cpu.store32(MMIO, 0x30)),
        (gfns(&[0x30, 0x31]), 1)
    );
    // No store, nothing to tell.
    assert_eq!(rig.told(|cpu| cpu.inb(PORT).map(drop)), (vec![], 0));
    rig.server.set_dirty_logging(false).unwrap();
    assert_eq!(rig.told(ins), (vec![], 0));
    assert_eq!(rig.faults(), 0);
}

#[test]
fn posted_writes_are_told_before_what_comes_after_them() {
    let rig = rig_with(0xa0, Storing);
    rig.domain.set_log_dirty(true).unwrap();
    rig.server.set_dirty_logging(true).unwrap();
    // The read is served after the ring, and its answer comes after both.
    let (modified, _) = rig.told(|cpu| {
        cpu.store8(0xa_0000, 0x44)?;
        cpu.inb(PORT).map(drop)
    });
    assert_eq!(modified, gfns(&[0x44, 0x45]));
}

/// Stores all over memory.
struct Scatter;

impl Handler for Scatter {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        0.into()
    }
    fn write(&self, cx: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        for page in 0..300 {
            let at = GuestAddress(page << 13);
            // Reads are none of its business.
            cx.ram().load(GuestAddress(at.0 + 0x1000), Width::B8).ok();
            cx.ram().store(at, Width::B8, page).ok();
            cx.ram().store(at, Width::B1, page).ok();
        }
        WriteOutcome::Done
    }
}

#[test]
fn more_pages_than_a_call_takes_are_all_told() {
    let memory = GfnRange::sized(0, 700).unwrap();
    let domain = Machine::new()
        .create_domain(DomainConfig::new(1).memory(memory))
        .unwrap();
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let ports = PortRange::sized(PORT, 8).unwrap();
    server.route("ports", ports, Scatter).unwrap();
    domain.set_log_dirty(true).unwrap();
    server.set_dirty_logging(true).unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| cpu.outb(PORT, 1)).unwrap();
    guest.join().unwrap();
    running.stop().unwrap();
    let every_other: Vec<u64> = (0..300).map(|page| 2 * page).collect();
    assert_eq!(domain.take_modified(), gfns(&every_other));
    assert_eq!(domain.counts().dmop(Op::ModifiedMemory), 2);
}

/// Xen cannot be told of a domain's last page, and refuses the whole call.
#[test]
fn a_page_that_cannot_be_told_is_counted_and_costs_no_other() {
    let rig = rig(Storing);
    rig.domain.set_log_dirty(true).unwrap();
    rig.server.set_dirty_logging(true).unwrap();
    let store = |page: u64| move |cpu: &mut Cpu| cpu.rep_ins(PORT, page << 12, Width::B4, 4);
    assert_eq!(rig.told(store(PAGES - 1)).0, gfns(&[]));
    assert_eq!(rig.faults(), 1);
    let mut dma = rig.server.dma();
    dma.write(GuestAddress((PAGES - 3) << 12), &[7; 0x3000])
        .unwrap();
    assert_eq!(rig.domain.take_modified(), gfns(&[PAGES - 3, PAGES - 2]));
    assert_eq!(rig.faults(), 2);
}

#[test]
fn of_a_store_that_fails_only_memory_is_told() {
    let rig = rig(Storing);
    rig.domain.set_log_dirty(true).unwrap();
    rig.server.set_dirty_logging(true).unwrap();
    let mut dma = rig.server.dma();
    let end = GuestAddress((PAGES << 12) - 0x2800);
    dma.write(end, &[7; 0x4000]).unwrap_err();
    // Of the last page the model says that it cannot be told.
    assert_eq!(rig.domain.take_modified(), gfns(&[PAGES - 3, PAGES - 2]));
    assert_eq!(rig.faults(), 1);
    assert!(dma.write(GuestAddress(1 << 40), &[7; 16]).is_err());
    assert_eq!(rig.faults(), 1, "nothing was stored");
    // The same through a handler: of its last bytes some are memory.
    rig.told(|cpu| cpu.outl(PORT, 0x3ff));
    assert_eq!(rig.faults(), 2);
}

#[test]
fn a_devices_store_is_told_in_one_call() {
    let rig = rig(Storing);
    rig.domain.set_log_dirty(true).unwrap();
    let mut dma = rig.server.dma();
    dma.write(GuestAddress(0x5_0000), &[1; 0x8000]).unwrap();
    assert_eq!(rig.calls(), 0, "off");
    rig.server.set_dirty_logging(true).unwrap();
    dma.write(GuestAddress(0x5_0010), &[1; 0x3000]).unwrap();
    assert_eq!(rig.calls(), 1);
    assert_eq!(rig.domain.take_modified(), gfns(&[0x50, 0x51, 0x52, 0x53]));
    dma.read(GuestAddress(0x5_0010), &mut [0; 16]).unwrap();
    dma.write(GuestAddress(0x5_0010), &[]).unwrap();
    assert_eq!(rig.calls(), 1);
}

/// What to do with writes to a tracked page.
enum Page {
    Apply,
    Store,
    Drop,
    Defer(Mutex<mpsc::Sender<Completion<Verdict>>>),
}

impl PageHandler for Page {
    fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        match self {
            Page::Apply => PageOutcome::Apply,
            Page::Store => write.apply(),
            Page::Drop => PageOutcome::Drop,
            Page::Defer(to) => {
                let (deferred, completion) = cx.defer_page(Duration::from_secs(60));
                to.lock().unwrap().send(completion).unwrap();
                PageOutcome::Defer(deferred)
            }
        }
    }
}

/// With video memory logged, pages can be marked at the same time. (With all of memory logged, Xen marks none.)
#[test]
fn writes_to_tracked_pages_are_told_when_they_are_stored() {
    let rig = rig(Storing);
    let claim = rig.server.claim_mem_type().unwrap();
    let tracker = claim.tracker("pages");
    let (to, deferred) = mpsc::channel();
    let pages = [
        Page::Apply,
        Page::Store,
        Page::Drop,
        Page::Defer(Mutex::new(to)),
    ];
    for (gfn, page) in (0x80..).zip(pages) {
        tracker.track(Gfn(gfn).into(), Arc::new(page)).unwrap();
    }
    rig.server.set_dirty_logging(true).unwrap();
    let store = |gfn: u64| move |cpu: &mut Cpu| cpu.store32(gfn << 12, 5);
    assert_eq!(rig.told(store(0x80)).1, 1, "applied");
    assert_eq!(rig.told(store(0x81)).1, 1, "stored by the handler");
    assert_eq!(rig.told(store(0x82)).1, 0, "dropped");
    // Later, by the worker.
    let answer = std::thread::spawn(move || {
        let completion: Completion<Verdict> = deferred.recv().unwrap();
        completion.complete(Verdict::Replace(9));
        deferred
    });
    assert_eq!(rig.told(store(0x83)).1, 1, "deferred");
    let deferred = answer.join().unwrap();
    // Later, by the thread that decides: nobody waits for a device's store.
    let mut dma = rig.server.dma();
    dma.write(GuestAddress(0x8_3010), &[3; 4]).unwrap();
    let before = rig.calls();
    deferred.recv().unwrap().complete(Verdict::Apply);
    assert_eq!(rig.calls() - before, 1);
    dma.write(GuestAddress(0x8_3010), &[4; 4]).unwrap();
    deferred.recv().unwrap().complete(Verdict::Drop);
    rig.server.set_dirty_logging(false).unwrap();
    dma.write(GuestAddress(0x8_3010), &[5; 4]).unwrap();
    deferred.recv().unwrap().complete(Verdict::Apply);
    assert_eq!(rig.calls() - before, 1, "dropped, and off");
}

/// A write that trapped and finds no route: applied as the guest made it.
#[test]
fn a_write_to_a_page_that_nobody_knows_is_told() {
    let rig = rig(Storing);
    let claim = rig.server.claim_mem_type().unwrap();
    rig.server.set_dirty_logging(true).unwrap();
    let raw = rig.server.hypervisor().raw();
    raw.set_mem_type(4, 0, 0x90, 1).unwrap();
    assert_eq!(rig.told(|cpu| cpu.store32(0x9_0000, 5)).1, 1);
    assert_eq!(rig.server.stats().stale_writes, 1);
    raw.set_mem_type(0, 0, 0x90, 1).unwrap();
    drop(claim);
}

/// Waits for its turn twice: when it is called, and before it stores.
struct Slow(Arc<Barrier>);

impl Handler for Slow {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        0.into()
    }
    fn write(&self, cx: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        self.0.wait();
        self.0.wait();
        cx.ram().store(GuestAddress(0x3000), Width::B4, 1).unwrap();
        WriteOutcome::Done
    }
}

#[test]
fn turning_it_on_waits_for_stores_under_way() {
    let barrier = Arc::new(Barrier::new(2));
    let mut rig = rig(Slow(Arc::clone(&barrier)));
    rig.domain.set_log_dirty(true).unwrap();
    let guest = rig
        .domain
        .spawn(VcpuId(0), |cpu| cpu.outb(PORT, 1))
        .unwrap();
    barrier.wait();
    std::thread::scope(|scope| {
        let on = scope.spawn(|| rig.server.set_dirty_logging(true).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!on.is_finished(), "a store that is not told is to come");
        barrier.wait();
        on.join().unwrap();
    });
    let mut word = [0];
    rig.server
        .dma()
        .read(GuestAddress(0x3000), &mut word)
        .unwrap();
    assert_eq!(word, [1], "it was made before the call returned");
    guest.join().unwrap();
    rig.running.take().map(Running::stop);
}

/// Turns it on from inside.
struct FromInside(Mutex<mpsc::Receiver<Arc<IoreqServer<SimHypervisor>>>>);

impl Handler for FromInside {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        let server = self.0.lock().unwrap().recv().unwrap();
        let kind = server.set_dirty_logging(true).unwrap_err().kind();
        u64::from(kind == ErrorKind::WouldDeadlock && server.set_dirty_logging(false).is_ok())
            .into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

#[test]
fn a_handler_that_turns_it_on_would_wait_for_itself() {
    let (to, from) = mpsc::channel();
    let rig = rig(FromInside(Mutex::new(from)));
    let server = Arc::new(rig.server);
    to.send(Arc::clone(&server)).unwrap();
    let guest = rig.domain.spawn(VcpuId(0), |cpu| cpu.inb(PORT)).unwrap();
    assert_eq!(guest.join().unwrap(), 1);
    assert_eq!(server.hypervisor().vcpus().unwrap(), 1);
}
