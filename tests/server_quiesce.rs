// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Coming to rest and going on: tracking that is suspended, a server at rest, one that is left to another process.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
use ioreq::claim::{MemTypeClaim, PageState, PageTracker, Tracker};
use ioreq::handler::{
    Access, Completion, Context, Handler, PageHandler, PageOutcome, PageWrite, ReadOutcome,
    Verdict, WriteOutcome,
};
use ioreq::server::{Budget, IoreqServer};
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor};
use ioreq::{
    BufIoreq, Error, ErrorKind, Gfn, GfnRange, GuestRam, MmioRange, Op, P2mType, PortRange, VcpuId,
};
use vm_memory::GuestAddress;

const PORT: u16 = 0x500;
const BOUND: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(20);

/// Counts the writes to its pages.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl PageHandler for Count {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        PageOutcome::Apply
    }
}

fn pages(first: u64, count: u64) -> GfnRange {
    GfnRange::sized(first, count).unwrap()
}

fn ports() -> PortRange {
    PortRange::sized(PORT, 4).unwrap()
}

struct Rig {
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    claim: MemTypeClaim<SimHypervisor>,
    tracker: Tracker<SimHypervisor>,
}

fn rig() -> Rig {
    let domain = Machine::new().create_domain(DomainConfig::new(2)).unwrap();
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("watch");
    Rig {
        domain,
        server,
        claim,
        tracker,
    }
}

impl Rig {
    /// A guest's store, served by workers.
    fn store(&self, gfn: u64, value: u32) {
        let running = self.server.start().unwrap();
        let store = move |cpu: &mut ioreq::sim::Cpu| cpu.store32(gfn << 12, value);
        self.domain.spawn(VcpuId(0), store).unwrap().join().unwrap();
        running.stop().unwrap();
    }

    fn marked(&self) -> Vec<u64> {
        let is = |gfn: &u64| self.domain.mem_type(*gfn) == Some(P2mType::IoreqServer);
        (0..0x800).filter(is).collect()
    }

    fn ram(&self, gfn: u64) -> u64 {
        let at = GuestAddress(gfn << 12);
        self.domain.memory().load(at, ioreq::Width::B4).unwrap()
    }
}

#[test]
fn suspended_pages_are_ordinary_memory_and_come_back_with_their_handlers() {
    let rig = rig();
    let (a, b) = (Arc::new(Count::default()), Arc::new(Count::default()));
    rig.tracker.track(pages(0x10, 3), a.clone()).unwrap();
    rig.tracker.track(pages(0x13, 1), b.clone()).unwrap();
    rig.tracker.track(pages(0x20, 1), b.clone()).unwrap();
    assert!(!rig.claim.is_suspended());
    let report = rig.claim.suspend(BOUND).unwrap();
    assert_eq!((report.unmarked, report.deferred.len()), (5, 0));
    assert!(rig.claim.is_suspended());
    assert_eq!((rig.claim.marked_pages(), rig.marked()), (0, vec![]));
    assert_eq!(rig.tracker.state(Gfn(0x10)), PageState::Untracked);
    rig.store(0x11, 5);
    assert_eq!((rig.ram(0x11), a.get()), (5, 0));
    // Once more does no harm.
    rig.claim.suspend(BOUND).unwrap();
    rig.claim.resume().unwrap();
    assert!(!rig.claim.is_suspended());
    assert_eq!(rig.marked(), [0x10, 0x11, 0x12, 0x13, 0x20]);
    rig.store(0x11, 6);
    rig.store(0x13, 7);
    rig.store(0x20, 8);
    assert_eq!((a.get(), b.get()), (1, 2));
    assert_eq!((rig.ram(0x11), rig.ram(0x20)), (6, 8));
    rig.claim.resume().unwrap(); // nothing to do
    assert_eq!(rig.claim.marked_pages(), 5);
}

#[test]
fn while_suspended_nothing_is_tracked_but_much_is_changed() {
    let rig = rig();
    let (a, b) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let other = rig.claim.tracker("other");
    rig.tracker.track(pages(0x10, 4), a.clone()).unwrap();
    other.track(pages(0x14, 2), a.clone()).unwrap();
    rig.claim.suspend(BOUND).unwrap();
    let busy = |err: Error| assert_eq!(err.kind(), ErrorKind::Busy, "{err}");
    busy(
        rig.tracker
            .track(pages(0x30, 1), a.clone())
            .unwrap_err()
            .into(),
    );
    busy(rig.tracker.adopt(pages(0x30, 1), a.clone()).unwrap_err());
    let each: Vec<(Gfn, Arc<dyn PageHandler>)> = vec![(Gfn(0x30), a.clone())];
    busy(rig.tracker.track_each(each).unwrap_err().into());
    // Of another tracker, and of nobody.
    for page in [0x14, 0x30] {
        let err = rig.tracker.replace(pages(page, 1), b.clone()).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NoSuchRoute);
    }
    rig.tracker.replace(pages(0x12, 2), b.clone()).unwrap();
    rig.tracker.untrack(pages(0x11, 4)).unwrap(); // of which 0x14 is not its own
    rig.claim.resume().unwrap();
    assert_eq!(rig.marked(), [0x10, 0x14, 0x15]);
    rig.tracker.untrack(pages(0x10, 1)).unwrap();
    rig.claim.settle(BOUND).unwrap();
    rig.claim.suspend(BOUND).unwrap();
    other.replace(pages(0x14, 1), b.clone()).unwrap();
    rig.claim.resume().unwrap();
    rig.store(0x14, 1);
    rig.store(0x15, 1);
    assert_eq!((a.get(), b.get()), (1, 1));
}

/// Untracks a page when it is freed.
struct Untracks(Tracker<SimHypervisor>, mpsc::Sender<()>);

impl PageHandler for Untracks {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

impl Drop for Untracks {
    fn drop(&mut self) {
        let _gone = self.0.untrack(pages(0x40, 1));
        self.1.send(()).unwrap();
    }
}

#[test]
fn a_suspended_pages_handler_may_untrack_when_it_is_freed() {
    let rig = rig();
    let (freed, is_freed) = mpsc::channel();
    let handler = || Arc::new(Untracks(rig.tracker.clone(), freed.clone()));
    let take = || is_freed.try_iter().count();
    rig.tracker.track(pages(0x10, 1), handler()).unwrap();
    rig.tracker.track(pages(0x11, 1), handler()).unwrap();
    rig.tracker.track(pages(0x12, 1), handler()).unwrap();
    rig.claim.suspend(BOUND).unwrap();
    rig.tracker.untrack(pages(0x10, 1)).unwrap();
    rig.tracker
        .replace(pages(0x11, 1), Arc::new(Count::default()))
        .unwrap();
    rig.claim.settle(BOUND).unwrap();
    assert_eq!(take(), 2);
    drop(rig.claim);
    assert_eq!(take(), 1);
}

#[test]
fn resuming_in_log_dirty_mode_fails_and_can_be_tried_again() {
    let rig = rig();
    let a = Arc::new(Count::default());
    rig.tracker.track(pages(0x10, 4), a.clone()).unwrap();
    rig.tracker.track(pages(0x20, 1), a.clone()).unwrap();
    rig.claim.suspend(BOUND).unwrap();
    rig.domain.set_log_dirty(true).unwrap();
    let err = rig.claim.resume().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::WrongState);
    assert_eq!((err.done, err.unknown), (vec![], vec![pages(0x10, 4)]));
    assert_eq!(err.untouched, [pages(0x20, 1)]);
    assert!(rig.claim.is_suspended());
    rig.domain.set_log_dirty(false).unwrap();
    // What may be marked is unmarked first.
    rig.claim.settle(BOUND).unwrap();
    rig.claim.resume().unwrap();
    assert_eq!(rig.marked(), [0x10, 0x11, 0x12, 0x13, 0x20]);
}

#[test]
fn what_was_resumed_before_it_failed_stays() {
    let rig = rig();
    let a = Arc::new(Count::default());
    for first in [0x10, 0x20, 0x30] {
        rig.tracker.track(pages(first, 4), a.clone()).unwrap();
    }
    rig.claim.suspend(BOUND).unwrap();
    let running = rig.server.start().unwrap();
    let gives = rig.domain.spawn(VcpuId(0), |cpu| cpu.give_back(Gfn(0x22)));
    gives.unwrap().join().unwrap();
    running.stop().unwrap();
    for _ in 0..2 {
        let err = rig.claim.resume().unwrap_err();
        assert_eq!(err.kind(), ErrorKind::WrongState);
        assert_eq!(
            (err.unknown, err.untouched),
            (vec![pages(0x20, 4)], vec![pages(0x30, 4)])
        );
        rig.claim.settle(BOUND).unwrap();
        assert_eq!(rig.marked(), [0x10, 0x11, 0x12, 0x13]);
        assert!(rig.claim.is_suspended());
    }
    // Tracked and remembered ones can be left alike.
    rig.tracker.untrack(pages(0x12, 0x11)).unwrap();
    rig.claim.settle(BOUND).unwrap();
    rig.claim.resume().unwrap();
    assert_eq!(rig.marked(), [0x10, 0x11, 0x23, 0x30, 0x31, 0x32, 0x33]);
}

/// Pages 0x10 to 0x13 are tracked again; 0x20, 0x21 and 0x23 are remembered.
fn half_resumed() -> Rig {
    let rig = rig();
    for first in [0x10, 0x20] {
        let handler = Arc::new(Count::default());
        rig.tracker.track(pages(first, 4), handler).unwrap();
    }
    rig.claim.suspend(BOUND).unwrap();
    let running = rig.server.start().unwrap();
    let gives = rig.domain.spawn(VcpuId(0), |cpu| cpu.give_back(Gfn(0x22)));
    gives.unwrap().join().unwrap();
    running.stop().unwrap();
    let err = rig.claim.resume().unwrap_err();
    assert_eq!(err.done, [pages(0x10, 4)]);
    rig.tracker.untrack(pages(0x22, 1)).unwrap();
    rig.claim.settle(BOUND).unwrap();
    assert_eq!(rig.marked(), [0x10, 0x11, 0x12, 0x13]);
    assert!(rig.claim.is_suspended());
    rig
}

#[test]
fn what_was_resumed_before_it_failed_is_suspended_again() {
    let rig = half_resumed();
    rig.claim.suspend(BOUND).unwrap();
    assert_eq!(rig.marked(), [0_u64; 0]);
    rig.domain.set_log_dirty(true).unwrap();
    rig.domain.set_log_dirty(false).unwrap();
    rig.claim.resume().unwrap();
    assert_eq!(rig.claim.marked_pages(), 7);
}

#[test]
fn a_server_whose_pages_were_resumed_in_part_comes_to_rest() {
    let rig = half_resumed();
    let quiesced = rig.server.quiesce(BOUND).unwrap();
    assert_eq!(rig.marked(), [0_u64; 0]);
    let saved: Vec<_> = quiesced.save().pages("watch").collect();
    assert_eq!(saved.iter().map(|pages| pages.pages()).sum::<u64>(), 7);
    quiesced.resume().unwrap();
    assert_eq!(rig.claim.marked_pages(), 7);
}

#[test]
fn pages_with_a_handler_each_come_back_in_few_calls() {
    let rig = rig();
    let each = |gfn| -> (Gfn, Arc<dyn PageHandler>) { (Gfn(gfn), Arc::new(Count::default())) };
    rig.tracker
        .track_each((0x100..0x500).map(each).collect())
        .unwrap();
    rig.tracker
        .track(pages(0x500, 0x100), Arc::new(Count::default()))
        .unwrap();
    rig.tracker
        .track_each((0x600..0x700).map(each).collect())
        .unwrap();
    rig.claim.suspend(BOUND).unwrap();
    let before = rig.domain.counts().dmop(Op::SetMemType);
    rig.claim.resume().unwrap();
    assert_eq!(rig.domain.counts().dmop(Op::SetMemType) - before, 3);
    assert_eq!(rig.claim.marked_pages(), 0x600);
}

/// The guest never stops writing: pages are unmarked between two of its writes. (One that does nothing else but write to a single
/// page keeps it from coming to rest.)
#[test]
fn tracking_is_suspended_and_resumed_under_a_guest_that_writes() {
    let rig = rig();
    let count = Arc::new(Count::default());
    rig.tracker.track(pages(0x10, 8), count.clone()).unwrap();
    let running = rig.server.start().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let guests = [0_u32, 1].map(|vcpu| {
        let stop = Arc::clone(&stop);
        let guest = rig.domain.spawn(VcpuId(vcpu), move |cpu| {
            let mut rounds = 0;
            while !stop.load(Ordering::SeqCst) {
                rounds += 1;
                std::thread::sleep(Duration::from_micros(200));
                for gfn in 0x10..0x18_u64 {
                    cpu.store32((gfn << 12) + 8 * u64::from(vcpu), rounds)?;
                    assert_eq!(cpu.load32((gfn << 12) + 8 * u64::from(vcpu))?, rounds);
                }
            }
            Ok(rounds)
        });
        guest.unwrap()
    });
    for _ in 0..20 {
        rig.claim.suspend(BOUND).unwrap();
        assert_eq!(rig.claim.marked_pages(), 0);
        rig.domain.set_log_dirty(true).unwrap();
        rig.domain.set_log_dirty(false).unwrap();
        rig.claim.resume().unwrap();
        let (before, wanted) = (count.get(), 5);
        while count.get() < before + wanted {
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::SeqCst);
    for (vcpu, guest) in (0..).zip(guests) {
        let rounds = guest.join().unwrap();
        let at = GuestAddress(0x1_7000 + 8 * vcpu);
        let last = rig.domain.memory().load(at, ioreq::Width::B4).unwrap();
        assert_eq!(last, u64::from(rounds));
    }
    running.stop().unwrap();
    drop((rig.tracker, rig.claim));
    rig.server.destroy().unwrap();
    assert!(rig.domain.leaks().is_clean());
}

/// Defers everything.
struct Later {
    reads: Mutex<mpsc::Sender<Completion<u64>>>,
    pages: Mutex<mpsc::Sender<Completion<Verdict>>>,
}

impl Later {
    #[allow(clippy::type_complexity, reason = "two ends of two channels")]
    fn new() -> (
        Arc<Self>,
        mpsc::Receiver<Completion<u64>>,
        mpsc::Receiver<Completion<Verdict>>,
    ) {
        let ((reads, read), (pages, page)) = (mpsc::channel(), mpsc::channel());
        let (reads, pages) = (Mutex::new(reads), Mutex::new(pages));
        (Arc::new(Later { reads, pages }), read, page)
    }
}

impl Handler for Later {
    fn read(&self, cx: &Context<'_>, _: Access) -> ReadOutcome {
        let (deferred, completion) = cx.defer_read(Duration::from_secs(60));
        self.reads.lock().unwrap().send(completion).unwrap();
        ReadOutcome::Defer(deferred)
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

impl PageHandler for Later {
    fn write(&self, cx: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        let (deferred, completion) = cx.defer_page(Duration::from_secs(60));
        self.pages.lock().unwrap().send(completion).unwrap();
        PageOutcome::Defer(deferred)
    }
}

/// Serves in this thread until `ready` gives something.
fn served<T>(server: &IoreqServer<SimHypervisor>, ready: &mpsc::Receiver<T>) -> T {
    loop {
        server.poll().unwrap();
        if let Ok(value) = ready.try_recv() {
            return value;
        }
        std::thread::yield_now();
    }
}

#[test]
fn rest_comes_when_deferred_requests_are_completed() {
    let rig = rig();
    let (later, reads, _) = Later::new();
    rig.server.route("later", ports(), later).unwrap();
    // One of several elements, which the worker has to go on with.
    let first = rig.domain.spawn(VcpuId(0), |cpu| cpu.inb(PORT)).unwrap();
    let one = served(&rig.server, &reads);
    let second = rig.domain.spawn(VcpuId(1), |cpu| {
        cpu.rep_ins(PORT, 0x5000, ioreq::Width::B1, 2)?;
        cpu.load16(0x5000)
    });
    let second = second.unwrap();
    let two = served(&rig.server, &reads);
    let completing = std::thread::spawn(move || {
        std::thread::sleep(SHORT);
        one.complete(7);
        two.complete(8);
        reads.recv().unwrap().complete(9);
    });
    let quiesced = rig.server.quiesce(BOUND).unwrap();
    assert_eq!(quiesced.expired(), 0);
    // Answered already: nobody serves now.
    assert_eq!((first.join().unwrap(), second.join().unwrap()), (7, 0x0908));
    completing.join().unwrap();
    quiesced.resume().unwrap();
}

#[test]
fn a_completion_that_does_not_come_is_not_waited_for() {
    let rig = rig();
    let (later, reads, _) = Later::new();
    rig.server.route("later", ports(), later).unwrap();
    let first = rig.domain.spawn(VcpuId(0), |cpu| cpu.inb(PORT)).unwrap();
    let one = served(&rig.server, &reads);
    let second = rig.domain.spawn(VcpuId(1), |cpu| {
        cpu.rep_ins(PORT, 0x5000, ioreq::Width::B1, 2)?;
        cpu.load16(0x5000)
    });
    let second = second.unwrap();
    let two = served(&rig.server, &reads);
    let quiesced = rig.server.quiesce(SHORT).unwrap();
    // The second element was deferred, too.
    assert_eq!(quiesced.expired(), 3);
    assert_eq!(
        (first.join().unwrap(), second.join().unwrap()),
        (0xff, 0xffff)
    );
    assert!(!one.complete(1) && !two.complete(1), "too late");
}

#[test]
fn at_rest_requests_wait_and_nobody_takes_them() {
    let rig = rig();
    struct Seven;
    impl Handler for Seven {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            7.into()
        }
        fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
            WriteOutcome::Done
        }
    }
    rig.server.route("seven", ports(), Seven).unwrap();
    let count = Arc::new(Count::default());
    rig.tracker.track(pages(0x10, 1), count.clone()).unwrap();
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(rig.server.subscriber(Budget::default()).unwrap());
    manager.run_with_timeout(0).unwrap();

    let quiesced = rig.server.quiesce(BOUND).unwrap();
    assert!(rig.marked().is_empty());
    let again = rig.server.quiesce(BOUND).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::WrongState);
    let started = rig.server.start().unwrap_err();
    assert_eq!(started.kind(), ErrorKind::WrongState);
    let guest = rig.domain.spawn(VcpuId(0), |cpu| {
        let value = cpu.inb(PORT)?;
        cpu.store32(0x1_0000, value.into())?;
        Ok(value)
    });
    let guest = guest.unwrap();
    while rig.domain.counts().port == 0 {
        std::thread::yield_now();
    }
    for _ in 0..5 {
        assert_eq!(rig.server.poll().unwrap(), 0);
        manager.run_with_timeout(5).unwrap();
    }
    assert_eq!(rig.server.stats().requests(), 0);
    assert!(!guest.is_finished());
    quiesced.resume().unwrap();
    while !guest.is_finished() {
        manager.run_with_timeout(5).unwrap();
    }
    assert_eq!(guest.join().unwrap(), 7);
    assert_eq!((rig.ram(0x10), count.get()), (7, 1), "marked again");
    // Dropped is resumed.
    drop(rig.server.quiesce(BOUND).unwrap());
    assert_eq!(rig.marked(), [0x10]);
    rig.server.start().unwrap().stop().unwrap();
}

#[test]
fn workers_have_to_be_stopped_first() {
    let rig = rig();
    rig.tracker
        .track(pages(0x10, 1), Arc::new(Count::default()))
        .unwrap();
    let running = rig.server.start().unwrap();
    let err = rig.server.quiesce(BOUND).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::StillInUse);
    assert!(!rig.claim.is_suspended());
    let store = rig.domain.spawn(VcpuId(0), |cpu| cpu.store32(0x1_0000, 3));
    store.unwrap().join().unwrap();
    assert_eq!(rig.ram(0x10), 3, "they go on");
    running.stop().unwrap();
    rig.server.quiesce(BOUND).unwrap();
}

#[test]
fn a_page_that_does_not_come_to_rest_keeps_the_server_going() {
    let rig = rig();
    let (later, _, verdicts) = Later::new();
    rig.tracker.track(pages(0x10, 2), later).unwrap();
    let guest = rig
        .domain
        .spawn(VcpuId(0), |cpu| cpu.store32(0x1_0000, 3))
        .unwrap();
    let verdict = served(&rig.server, &verdicts);
    let err = rig.server.quiesce(SHORT).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Deferred);
    assert!(!rig.claim.is_suspended());
    assert_eq!(rig.marked(), [0x10, 0x11]);
    verdict.complete(Verdict::Replace(4));
    while !guest.is_finished() {
        rig.server.poll().unwrap();
    }
    guest.join().unwrap();
    assert_eq!(rig.ram(0x10), 4);
    let quiesced = rig.server.quiesce(BOUND).unwrap();
    assert!(rig.marked().is_empty());
    assert!(rig.claim.is_suspended());
    drop(quiesced);
}

type Owned = (Arc<IoreqServer<SimHypervisor>>, MemTypeClaim<SimHypervisor>);

/// Comes to rest from inside.
struct FromInside(Mutex<mpsc::Receiver<Owned>>);

impl Handler for FromInside {
    fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
        let (server, claim) = self.0.lock().unwrap().recv().unwrap();
        let kinds = [
            server.quiesce(SHORT).unwrap_err().kind(),
            claim.suspend(SHORT).unwrap_err().kind(),
        ];
        u64::from(kinds == [ErrorKind::WouldDeadlock; 2]).into()
    }
    fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
        WriteOutcome::Done
    }
}

#[test]
fn a_handler_that_wants_rest_would_wait_for_itself() {
    let rig = rig();
    let (to, from) = mpsc::channel();
    rig.server
        .route("inside", ports(), FromInside(Mutex::new(from)))
        .unwrap();
    let server = Arc::new(rig.server);
    to.send((Arc::clone(&server), rig.claim)).unwrap();
    let running = server.start().unwrap();
    let guest = rig.domain.spawn(VcpuId(0), |cpu| cpu.inb(PORT)).unwrap();
    assert_eq!(guest.join().unwrap(), 1);
    running.stop().unwrap();
    server.quiesce(BOUND).unwrap();
}

#[test]
fn what_was_posted_is_served_before_rest() {
    let config = DomainConfig::new(1).vga(true).memory(pages(0, 0xa0));
    let domain = Machine::new().create_domain(config).unwrap();
    let builder = IoreqServer::builder(domain.hypervisor()).buffered(BufIoreq::Atomic);
    let server = builder.build().unwrap();
    #[derive(Default)]
    struct Sum(AtomicU64);
    impl Handler for Sum {
        fn read(&self, _: &Context<'_>, _: Access) -> ReadOutcome {
            0.into()
        }
        fn write(&self, _: &Context<'_>, _: Access, value: u64) -> WriteOutcome {
            self.0.fetch_add(value, Ordering::SeqCst);
            WriteOutcome::Done
        }
    }
    let sum = Arc::new(Sum::default());
    let vga = MmioRange::new(0xa_0000, 0xb_ffff).unwrap();
    server.route("vga", vga, Arc::clone(&sum)).unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        (1..=20).try_for_each(|value| cpu.store8(0xa_0000, value))
    });
    guest.unwrap().join().unwrap();
    let quiesced = server.quiesce(BOUND).unwrap();
    assert_eq!(sum.0.load(Ordering::SeqCst), 210);
    assert!(quiesced.save().buffered());
}

#[test]
fn the_saved_state_names_routes_and_pages() {
    let rig = rig();
    let other = rig.claim.tracker("other");
    let (later, ..) = Later::new();
    rig.server.route("ports", ports(), later.clone()).unwrap();
    let mmio = MmioRange::sized(0xe000_0000, 0x1000).unwrap();
    rig.server.route("mmio", mmio, later).unwrap();
    let (a, b) = (Arc::new(Count::default()), Arc::new(Count::default()));
    other.track(pages(0x40, 2), a.clone()).unwrap();
    rig.tracker.track(pages(0x30, 2), a.clone()).unwrap();
    rig.tracker.track(pages(0x32, 2), b.clone()).unwrap();
    rig.tracker.track(pages(0x20, 1), b).unwrap();
    let quiesced = rig.server.quiesce(BOUND).unwrap();
    let saved = quiesced.save();
    assert!(saved.claimed() && !saved.buffered());
    let routes: Vec<_> = saved.routes().collect();
    assert_eq!(routes, [("ports", ports().into()), ("mmio", mmio.into())]);
    assert_eq!(saved.trackers().collect::<Vec<_>>(), ["watch", "other"]);
    let of = |name| saved.pages(name).collect::<Vec<_>>();
    assert_eq!(
        of("watch"),
        [pages(0x20, 1), pages(0x30, 2), pages(0x32, 2)]
    );
    assert_eq!(of("other"), [pages(0x40, 2)]);
    assert!(of("nobody").is_empty());
    quiesced.resume().unwrap();
    drop((rig.tracker, other, rig.claim));
    assert!(!rig.server.quiesce(BOUND).unwrap().save().claimed());
    // A server without a ring cannot take the place of one with it.
    let posted = IoreqServer::builder(rig.domain.hypervisor()).buffered(BufIoreq::Atomic);
    let posted = posted.build().unwrap().quiesce(BOUND).unwrap().save();
    let err = posted.restore_routes(&rig.server, |_, _| None).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_server_without_a_record_is_not_left_to_anybody() {
    let rig = rig();
    rig.tracker
        .track(pages(0x10, 1), Arc::new(Count::default()))
        .unwrap();
    let err = rig.server.quiesce(BOUND).unwrap().leave().unwrap_err();
    assert_eq!(err.kind(), ErrorKind::WrongState);
    assert_eq!(rig.marked(), [0x10], "it goes on");
    rig.store(0x10, 1);
    drop((rig.tracker, rig.claim));
    rig.server.destroy().unwrap();
    assert!(rig.domain.leaks().is_clean());
}

#[test]
fn a_claim_is_not_given_up_while_a_write_is_in_flight() {
    let rig = rig();
    let (later, _, verdicts) = Later::new();
    rig.tracker.track(pages(0x10, 1), later).unwrap();
    let guest = rig.domain.spawn(VcpuId(0), |cpu| {
        cpu.store32(0x1_0000, 3)?;
        cpu.store32(0x1_0000, 5)
    });
    let running = rig.server.start().unwrap();
    let verdict = verdicts.recv().unwrap();
    let dropped = std::thread::spawn(move || drop(rig.claim));
    // Longer than a page is tried before it counts as one that does not come to rest.
    std::thread::sleep(Duration::from_millis(400));
    assert!(!dropped.is_finished());
    verdict.complete(Verdict::Apply);
    dropped.join().unwrap();
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    assert!(rig.domain.leaks().marked_pages == 0 && rig.domain.crash_reason().is_none());
}
