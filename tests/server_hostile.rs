// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest that has its slot in its hands, in one thread, so that every look is known: what it costs others, and what becomes of what
//! it asks. Slots that are rewritten while they are served are `server_loops.rs`'s, the soak's and the fuzz targets'.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ioreq::claim::PageTracker;
use ioreq::handler::{
    Access, Batch, BatchOutcome, Context, Handler, PageHandler, PageOutcome, PageWrite,
    ReadOutcome, WriteOutcome,
};
use ioreq::server::{Exit, IoreqServer, Workers};
use ioreq::sim::{Domain, DomainConfig, HostileSlots, Machine, SimHypervisor};
use ioreq::{Gfn, GuestRam, MmioRange, PortRange, VcpuId, Width, abi};
use vm_memory::GuestAddress;

const MMIO: u64 = 0xe000_0000;
/// Beyond the guest's 16 MiB.
const NOWHERE: u64 = 0x4000_0000;

/// Reads give 7.
struct Seven;

impl Handler for Seven {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        7.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

struct Rig {
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    slots: HostileSlots,
}

/// A request: type, flags, address, data, count, size.
type Raw = (u8, u8, u64, u64, u32, u32);

impl Rig {
    fn new(vcpus: u32) -> Self {
        let domain = Machine::new()
            .create_domain(DomainConfig::new(vcpus))
            .unwrap();
        let server = IoreqServer::builder(domain.hypervisor());
        let server = server.workers(Workers::Count(1)).build().unwrap();
        let mmio = MmioRange::sized(MMIO, 0x1000).unwrap();
        server.route("seven", mmio, Seven).unwrap();
        let slots = domain.hostile().slots(server.id()).unwrap();
        Rig {
            domain,
            server,
            slots,
        }
    }

    fn ask(&self, vcpu: u32, (kind, flags, addr, data, count, size): Raw) {
        let slot = self.slots.slot(VcpuId(vcpu)).unwrap();
        slot.addr.store(addr, Ordering::Relaxed);
        slot.data.store(data, Ordering::Relaxed);
        slot.count.store(count, Ordering::Relaxed);
        slot.size.store(size, Ordering::Relaxed);
        slot.kind.store(kind, Ordering::Relaxed);
        slot.flags
            .store(flags | abi::STATE_IOREQ_READY, Ordering::Release);
    }

    /// What a vCPU finds: None unless it is answered.
    fn answer(&self, vcpu: u32) -> Option<u64> {
        let slot = self.slots.slot(VcpuId(vcpu)).unwrap();
        let state = slot.flags.load(Ordering::Acquire) & abi::IOREQ_STATE_MASK;
        (state == abi::STATE_IORESP_READY).then(|| slot.data.load(Ordering::Relaxed))
    }

    fn word(&self, addr: u64) -> u64 {
        self.domain
            .memory()
            .load(GuestAddress(addr), Width::B4)
            .unwrap()
    }
}

const READ: Raw = (abi::IOREQ_TYPE_COPY, abi::IOREQ_DIR_READ, MMIO, 0, 1, 4);

/// Three hostile vCPUs with the longest requests that there are, READY again as soon as they are answered, and one with a single
/// read: it is answered in the same look, whatever the others ask.
#[test]
fn each_vcpu_has_one_request_a_look() {
    let rig = Rig::new(4);
    for turn in 0..100_u32 {
        for hostile in [0, 1, 3] {
            let longest = (
                abi::IOREQ_TYPE_COPY,
                abi::IOREQ_DATA_IS_PTR,
                MMIO,
                NOWHERE,
                4096,
                1,
            );
            let absurd = (abi::IOREQ_TYPE_PIO, 0, u64::MAX, 0, u32::MAX, 8);
            rig.ask(hostile, if turn % 2 == 0 { longest } else { absurd });
        }
        rig.ask(2, READ);
        assert_eq!(rig.server.poll().unwrap(), 4);
        assert_eq!(rig.answer(2), Some(7), "turn {turn}");
    }
    let stats = rig.server.stats();
    assert_eq!(stats.malformed, 150);
    assert_eq!(
        stats.notifies, 400,
        "one system call a request, whoever makes it"
    );
}

/// Elements whose data is nowhere are dropped; those that are somewhere are done.
#[test]
fn data_outside_memory_is_dropped_and_counted() {
    let rig = Rig::new(1);
    let flags = abi::IOREQ_DIR_READ | abi::IOREQ_DATA_IS_PTR;
    rig.ask(0, (abi::IOREQ_TYPE_COPY, flags, MMIO, NOWHERE, 5, 4));
    rig.server.poll().unwrap();
    assert!(rig.answer(0).is_some());
    assert_eq!(rig.server.stats().data_faults, 5);
    // The last two of them end beyond memory.
    let end = 0x100_0000 - 12;
    rig.ask(0, (abi::IOREQ_TYPE_COPY, flags, MMIO, end, 5, 4));
    rig.server.poll().unwrap();
    assert_eq!(rig.server.stats().data_faults, 7);
    assert_eq!([0, 4, 8].map(|at| rig.word(end + at)), [7; 3]);
    // A pointer that goes round the end of all addresses is no request.
    rig.ask(0, (abi::IOREQ_TYPE_COPY, flags, MMIO, u64::MAX - 7, 5, 4));
    rig.server.poll().unwrap();
    assert!(rig.answer(0).is_some());
    assert_eq!(
        (rig.server.stats().data_faults, rig.server.stats().malformed),
        (7, 1)
    );
}

/// Writes to memory that nobody tracks are the guest's own; requests of types that there are not are answered.
#[test]
fn stale_and_odd_requests_are_answered_and_counted() {
    let rig = Rig::new(1);
    rig.ask(0, (abi::IOREQ_TYPE_COPY, 0, 0x5004, 0x1234, 1, 4));
    rig.server.poll().unwrap();
    assert!(rig.answer(0).is_some());
    assert_eq!(
        (rig.word(0x5004), rig.server.stats().stale_writes),
        (0x1234, 1)
    );
    for kind in [3, 4, 6, 9, 200] {
        rig.ask(0, (kind, abi::IOREQ_DIR_READ, MMIO, 0, 1, 4));
        rig.server.poll().unwrap();
        assert_eq!(rig.answer(0), Some(u64::MAX), "type {kind}");
    }
    rig.ask(
        0,
        (abi::IOREQ_TYPE_COPY, abi::IOREQ_DIR_READ, NOWHERE, 0, 1, 4),
    );
    rig.server.poll().unwrap();
    assert_eq!(rig.answer(0), Some(0xffff_ffff), "nobody's");
    let stats = rig.server.stats();
    assert_eq!((stats.unknown, stats.unclaimed), (5, 1));
}

/// Does not answer before it is let go.
struct Holds(Mutex<(mpsc::Sender<()>, mpsc::Receiver<()>)>);

impl Handler for Holds {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        let both = self.0.lock().unwrap();
        both.0.send(()).unwrap();
        both.1.recv().unwrap();
        9.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

/// Who polls, or waits for pages to be unmarked, may be in the middle of it when workers start: they wait for their turn.
#[test]
fn workers_that_start_while_somebody_polls_serve_after_that() {
    let rig = Rig::new(2);
    let ((entered, is_in), (let_go, wait)) = (mpsc::channel(), mpsc::channel());
    let holds = Holds(Mutex::new((entered, wait)));
    let port = PortRange::new(0x500, 0x500).unwrap();
    rig.server.route("holds", port, holds).unwrap();
    rig.ask(
        0,
        (abi::IOREQ_TYPE_PIO, abi::IOREQ_DIR_READ, 0x500, 0, 1, 1),
    );
    let running = std::thread::scope(|scope| {
        let polls = scope.spawn(|| rig.server.poll().unwrap());
        is_in.recv().unwrap();
        let running = rig.server.start().unwrap();
        // Long enough for a worker that would give up.
        std::thread::sleep(Duration::from_millis(30));
        let_go.send(()).unwrap();
        assert_eq!(polls.join().unwrap(), 1);
        assert!(!running.is_finished(), "the service ended");
        running
    });
    assert_eq!(rig.answer(0), Some(9));
    let guest = rig.domain.spawn(VcpuId(1), |cpu| cpu.load32(MMIO));
    assert_eq!(guest.unwrap().join().unwrap(), 7);
    assert_eq!(running.stop().unwrap(), Exit::Stopped);
}

/// Takes whatever it is given, in batches.
struct Greedy;

impl Handler for Greedy {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        0.into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
    fn write_batch(&self, _: &Context<'_>, _: &Batch, _: &[u64]) -> BatchOutcome {
        BatchOutcome::Done
    }
}

/// Lets every write through.
struct Through;

impl PageHandler for Through {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

/// A device's range may lie over a page that is tracked: a guest's single writes and its repeated ones are the page's.
#[test]
fn a_tracked_page_comes_before_a_device_over_it() {
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let over = MmioRange::sized(0x1_0000, 0x3000).unwrap();
    server.route("over", over, Greedy).unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("page");
    tracker.track(Gfn(0x11).into(), Arc::new(Through)).unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        cpu.store32(0x1_1000, 1)?;
        cpu.rep_stos(0x1_1010, Width::B4, 2, 5)?;
        cpu.set_df(true);
        cpu.rep_stos(0x1_1034, Width::B4, 3, 2)
    });
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    let words = [0x000, 0x010, 0x020, 0x030, 0x034].map(|at| {
        let at = GuestAddress(0x1_1000 + at);
        domain.memory().load(at, Width::B4).unwrap()
    });
    assert_eq!((words, tracker.stats().writes), ([1, 2, 2, 3, 3], 8));
}

/// Xen sends writes to tracked pages one by one. A slot may say that many go to a device's range that lies over one: those that begin
/// in the page, and those that end in it, are the page's all the same.
#[test]
fn repeated_writes_to_a_tracked_page_below_a_device_are_the_pages() {
    let rig = Rig::new(1);
    let over = MmioRange::sized(0x1_0000, 0x3000).unwrap();
    rig.server.route("over", over, Greedy).unwrap();
    let claim = rig.server.claim_mem_type().unwrap();
    let tracker = claim.tracker("page");
    tracker.track(Gfn(0x11).into(), Arc::new(Through)).unwrap();
    let (copy, down) = (abi::IOREQ_TYPE_COPY, abi::IOREQ_DF);
    for (at, flags, writes) in [
        (0x1_1010, 0, 5),
        (0x1_1040, down, 5),
        (0x1_0ff8, 0, 3),
        (0x1_2008, down, 2),
    ] {
        let before = tracker.stats().writes;
        rig.ask(0, (copy, flags, at, 6, 5, 4));
        rig.server.poll().unwrap();
        assert_eq!(tracker.stats().writes - before, writes, "{at:#x}");
    }
    assert_eq!(
        [0x1_1020, 0x1_1030, 0x1_1008, 0x1_1ff8].map(|at| rig.word(at)),
        [6; 4]
    );
}
