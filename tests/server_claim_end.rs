// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end of a claim on the model: what is still possible while it is being given up, and after.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ioreq::claim::{PageState, PageTracker};
use ioreq::handler::{Completion, Context, PageHandler, PageOutcome, PageWrite, Verdict};
use ioreq::server::IoreqServer;
use ioreq::sim::{DomainConfig, Machine};
use ioreq::{ErrorKind, Gfn, GfnRange, P2mType, VcpuId};

struct Apply;

impl PageHandler for Apply {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        PageOutcome::Apply
    }
}

/// Says that it was called, and goes on when told to.
struct Held {
    called: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl PageHandler for Held {
    fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        self.called.send(()).expect("the test listens");
        let go_on = self.go_on.lock().unwrap_or_else(PoisonError::into_inner);
        go_on.recv().expect("the test says so");
        PageOutcome::Apply
    }
}

fn pages(first: u64, len: u64) -> GfnRange {
    GfnRange::sized(first, len).unwrap()
}

fn page(gfn: u64) -> GfnRange {
    Gfn(gfn).into()
}

#[test]
fn a_claim_that_is_being_dropped_waits_for_writes_and_takes_no_pages() {
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("test");
    let (called, calls) = channel();
    let (release, go_on) = channel();
    let go_on = Mutex::new(go_on);
    tracker
        .track(page(0x10), Arc::new(Held { called, go_on }))
        .unwrap();
    tracker.track(page(0x20), Arc::new(Apply)).unwrap();
    let running = server.start().unwrap();
    let guest = domain.spawn(VcpuId(0), |cpu| {
        cpu.store64(0x1_0000, 7)?;
        cpu.load64(0x1_0000)
    });
    let guest = guest.unwrap();
    calls.recv().unwrap();

    let dropped = std::thread::spawn(move || drop(claim));
    // The claim's end waits for the write, which waits for us.
    while tracker.state(Gfn(0x10)) == PageState::Tracked {
        std::thread::yield_now();
    }
    assert_eq!(tracker.state(Gfn(0x10)), PageState::Leaving);
    assert_eq!(domain.mem_type(Gfn(0x10)), Some(P2mType::IoreqServer));
    for gfn in [0x10, 0x20, 0x30] {
        let late = tracker.track(page(gfn), Arc::new(Apply)).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::WrongState, "{late}");
        assert_eq!(late.untouched, [page(gfn)]);
    }
    assert_eq!(domain.mem_type(Gfn(0x30)), Some(P2mType::RamRw));

    release.send(()).unwrap();
    dropped.join().unwrap();
    assert_eq!(guest.join().unwrap(), 7);
    for gfn in [0x10, 0x20] {
        assert_eq!(tracker.state(Gfn(gfn)), PageState::Untracked);
        assert_eq!(domain.mem_type(Gfn(gfn)), Some(P2mType::RamRw));
    }
    running.stop().unwrap();
    assert_eq!(tracker.stats().writes, 1);
}

/// What leaves and is wanted again, from the first frame on.
#[test]
fn pages_that_leave_are_taken_back_with_those_beside_them() {
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("test");
    for (first, len) in [(0, 2), (4, 1)] {
        tracker.track(pages(first, len), Arc::new(Apply)).unwrap();
        tracker.untrack(pages(first, len)).unwrap();
    }
    tracker.track(pages(0, 8), Arc::new(Apply)).unwrap();
    assert_eq!(claim.settle(Duration::from_secs(5)).unwrap().unmarked, 0);
    for gfn in 0..8 {
        assert_eq!(tracker.state(Gfn(gfn)), PageState::Tracked);
        assert_eq!(domain.mem_type(Gfn(gfn)), Some(P2mType::IoreqServer));
    }
}

/// Answers later.
struct Later(Mutex<Sender<Completion<Verdict>>>);

impl PageHandler for Later {
    fn write(&self, cx: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
        let (deferred, completion) = cx.defer_page(Duration::from_secs(60));
        let to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        to.send(completion).expect("the test listens");
        PageOutcome::Defer(deferred)
    }
}

#[test]
fn pages_that_the_guest_writes_while_they_leave_are_counted() {
    let domain = Machine::new().create_domain(DomainConfig::new(2)).unwrap();
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let claim = server.claim_mem_type().unwrap();
    let tracker = claim.tracker("test");
    let leave = |gfn: u64| {
        tracker.track(page(gfn), Arc::new(Apply)).unwrap();
        tracker.untrack(page(gfn)).unwrap();
        let report = claim.settle(Duration::from_secs(5)).unwrap();
        (report.unmarked, report.contended)
    };
    assert_eq!(leave(0x500), (1, 0));

    // A full batch waits for a write that is not answered; the page behind it is written meanwhile, and at rest when its turn comes.
    let (to, deferred) = channel();
    tracker
        .track(page(0x10), Arc::new(Later(Mutex::new(to))))
        .unwrap();
    tracker.track(pages(0x11, 1023), Arc::new(Apply)).unwrap();
    tracker.track(page(0x500), Arc::new(Apply)).unwrap();
    let waits = domain.spawn(VcpuId(1), |cpu| cpu.store64(0x1_0000, 7));
    let completion = loop {
        server.poll().unwrap();
        if let Ok(completion) = deferred.try_recv() {
            break completion;
        }
    };
    tracker.untrack(pages(0x10, 1024)).unwrap();
    tracker.untrack(page(0x500)).unwrap();
    let writes = domain.spawn(VcpuId(0), |cpu| cpu.store64(0x50_0000, 7));
    while server.poll().unwrap() == 0 {
        // Few turns: the batch does not wait for ever.
        std::thread::sleep(Duration::from_millis(2));
    }
    writes.unwrap().join().unwrap();
    completion.complete(Verdict::Apply);
    let report = claim.settle(Duration::from_secs(5)).unwrap();
    assert_eq!((report.unmarked, report.contended), (1026, 2));
    waits.unwrap().join().unwrap();
    for gfn in [0x501, 0x500] {
        assert_eq!(leave(gfn).1, 2, "that was another time");
    }
}

#[test]
fn the_type_can_be_claimed_and_used_again() {
    let domain = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let server = IoreqServer::builder(domain.hypervisor()).build().unwrap();
    let tracker = {
        let claim = server.claim_mem_type().unwrap();
        let tracker = claim.tracker("first");
        tracker.track(page(0x10), Arc::new(Apply)).unwrap();
        tracker
    };
    for result in [
        tracker.untrack(page(0x10)),
        tracker.replace(page(0x10), Arc::new(Apply)),
        tracker.adopt(page(0x10), Arc::new(Apply)),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::WrongState);
    }
    let claim = server.claim_mem_type().unwrap();
    let second = claim.tracker("second");
    second.track(page(0x10), Arc::new(Apply)).unwrap();
    assert_eq!(domain.mem_type(Gfn(0x10)), Some(P2mType::IoreqServer));
    second.track(pages(0x20, 3), Arc::new(Apply)).unwrap();
    // No worker takes part: they leave, and are taken back, by the claim's own doing.
    second.untrack(pages(0x20, 2)).unwrap();
    assert_eq!(second.state(Gfn(0x20)), PageState::Leaving);
    assert_eq!(claim.unmark_report().unmarked, 1, "the first claim's page");
    second.track(page(0x20), Arc::new(Apply)).unwrap();
    assert_eq!(second.state(Gfn(0x20)), PageState::Tracked);
    assert_eq!(claim.settle(Duration::from_secs(5)).unwrap().unmarked, 2);
    assert_eq!(claim.unmark_report().unmarked, 2);
    assert_eq!(second.state(Gfn(0x21)), PageState::Untracked);
    assert_eq!((claim.marked_pages(), claim.marked_pages_peak()), (3, 4));
    drop(claim);
    assert_eq!(domain.mem_type(Gfn(0x10)), Some(P2mType::RamRw));
}
