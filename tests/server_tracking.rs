// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tracked pages on the model: who sees which write, what is stored, and how marks come and go.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ioreq::claim::{MemTypeClaim, PageState, PageTracker, Tracker};
use ioreq::handler::{Context, PageHandler, PageOutcome, PageWrite, Verdict};
use ioreq::server::{DmaError, IoreqServer, Workers};
use ioreq::sim::{Domain, DomainConfig, Machine, SimHypervisor, XenVersion};
use ioreq::{ErrorKind, Gfn, GfnRange, GuestMap, GuestRam, Op, P2mType, VcpuId, Width};
use vm_memory::GuestAddress;

const VERSIONS: [XenVersion; 2] = [XenVersion::V4_17, XenVersion::V4_20];

struct Rig {
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    claim: MemTypeClaim<SimHypervisor>,
    tracker: Arc<Tracker<SimHypervisor>>,
}

impl Rig {
    fn new(version: XenVersion, vcpus: u32) -> Self {
        Self::of(version, DomainConfig::new(vcpus))
    }

    fn of(version: XenVersion, config: DomainConfig) -> Self {
        let machine = Machine::builder().version(version).build();
        let domain = machine.create_domain(config).unwrap();
        let builder = IoreqServer::builder(domain.hypervisor());
        let server = builder.workers(Workers::PerVcpu).build().unwrap();
        let claim = server.claim_mem_type().unwrap();
        let tracker = Arc::new(claim.tracker("test"));
        Rig {
            domain,
            server,
            claim,
            tracker,
        }
    }

    fn word(&self, addr: u64) -> u64 {
        let memory = self.server.hypervisor().memory();
        GuestRam::load(&*memory, GuestAddress(addr), Width::B8).unwrap()
    }
}

fn pages(first: u64, len: u64) -> GfnRange {
    GfnRange::sized(first, len).unwrap()
}

/// Counts writes, and answers as told.
struct Answer(AtomicU64, fn(&PageWrite<'_>) -> PageOutcome);

impl Answer {
    fn new(answer: fn(&PageWrite<'_>) -> PageOutcome) -> Arc<Self> {
        Arc::new(Answer(AtomicU64::new(0), answer))
    }
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl PageHandler for Answer {
    fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        self.0.fetch_add(1, Ordering::Relaxed);
        (self.1)(write)
    }
}

#[test]
fn the_handler_decides_what_is_stored() {
    let rig = Rig::new(XenVersion::V4_20, 1);
    let apply = Answer::new(|_| PageOutcome::Apply);
    let replace = Answer::new(|_| PageOutcome::Replace(0x1_0000_0077));
    let lose = Answer::new(|_| PageOutcome::Drop);
    let itself = Answer::new(|write| write.store(write.value() + 1));
    let panics = Answer::new(|_| panic!("the handler panics"));
    let handlers = [&apply, &replace, &lose, &itself, &panics];
    for (gfn, handler) in (0x10..).zip(handlers) {
        rig.tracker
            .track(Gfn(gfn).into(), Arc::<Answer>::clone(handler))
            .unwrap();
    }
    let running = rig.server.start().unwrap();
    let guest = rig.domain.spawn(VcpuId(0), |cpu| {
        (0x10..0x15).try_for_each(|gfn: u64| cpu.store32((gfn << 12) + 8, 0x55))
    });
    guest.unwrap().join().unwrap();
    running.stop().unwrap();
    let stored: Vec<u64> = (0x10..0x15).map(|gfn| rig.word((gfn << 12) + 8)).collect();
    assert_eq!(
        stored,
        [0x55, 0x77, 0, 0x56, 0x55],
        "a failed handler's write is applied"
    );
    assert!(handlers.iter().all(|handler| handler.count() == 1));
    let stats = rig.server.stats();
    assert_eq!((stats.page_writes, stats.panics), (5, 1));
    assert_eq!(stats.requests(), 5, "each is counted once");
}

#[test]
fn a_handler_may_say_what_becomes_of_a_write_that_it_failed() {
    struct Guarding;
    impl PageHandler for Guarding {
        fn write(&self, _: &Context<'_>, _: &PageWrite<'_>) -> PageOutcome {
            panic!("the handler panics")
        }
        fn fallback(&self) -> Verdict {
            Verdict::Drop
        }
    }
    let rig = Rig::new(XenVersion::V4_20, 1);
    rig.tracker
        .track(Gfn(0x10).into(), Arc::new(Guarding))
        .unwrap();
    let running = rig.server.start().unwrap();
    rig.domain
        .spawn(VcpuId(0), |cpu| cpu.store64(0x1_0000, 1))
        .unwrap()
        .join()
        .unwrap();
    running.stop().unwrap();
    assert_eq!(rig.word(0x1_0000), 0);
}

#[test]
fn a_verdict_may_come_later() {
    struct Later(Mutex<Vec<std::thread::JoinHandle<()>>>);
    impl PageHandler for Later {
        fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
            let (deferred, completion) = cx.defer_page(Duration::from_secs(60));
            let value = write.value();
            self.0.lock().unwrap().push(std::thread::spawn(move || {
                if value != 3 {
                    assert!(completion.complete(Verdict::Replace(value * 2)));
                }
            }));
            PageOutcome::Defer(deferred)
        }
    }
    let rig = Rig::new(XenVersion::V4_20, 1);
    rig.tracker
        .track(Gfn(0x10).into(), Arc::new(Later(Mutex::default())))
        .unwrap();
    let running = rig.server.start().unwrap();
    let guest = rig.domain.spawn(VcpuId(0), |cpu| {
        let mut seen = Vec::new();
        for value in 1..=3 {
            cpu.store64(0x1_0000, value)?;
            seen.push(cpu.load64(0x1_0000)?);
        }
        Ok(seen)
    });
    assert_eq!(
        guest.unwrap().join().unwrap(),
        [2, 4, 3],
        "a lost completion applies"
    );
    running.stop().unwrap();
}

#[test]
fn reads_do_not_trap_and_untracked_pages_are_the_guests() {
    let rig = Rig::new(XenVersion::V4_20, 1);
    let handler = Answer::new(|_| PageOutcome::Apply);
    rig.tracker
        .track(pages(0x10, 4), Arc::<Answer>::clone(&handler))
        .unwrap();
    assert_eq!(rig.tracker.state(Gfn(0x13)), PageState::Tracked);
    assert_eq!(rig.domain.mem_type(Gfn(0x13)), Some(P2mType::IoreqServer));
    let running = rig.server.start().unwrap();
    let guest = rig.domain.spawn(VcpuId(0), |cpu| {
        cpu.store64(0x1_3000, 5)?;
        cpu.store64(0x1_4000, 6)?;
        Ok((cpu.load64(0x1_3000)?, cpu.load64(0x1_4000)?))
    });
    assert_eq!(guest.unwrap().join().unwrap(), (5, 6));
    assert_eq!(handler.count(), 1);
    rig.tracker.untrack(pages(0x10, 4)).unwrap();
    let report = rig.claim.settle(Duration::from_secs(5)).unwrap();
    assert_eq!((report.unmarked, report.deferred.len()), (4, 0));
    assert_eq!(rig.tracker.state(Gfn(0x13)), PageState::Untracked);
    assert_eq!(rig.domain.mem_type(Gfn(0x13)), Some(P2mType::RamRw));
    running.stop().unwrap();
}

#[test]
fn claim_errors_are_told_apart() {
    let rig = Rig::new(XenVersion::V4_20, 1);
    assert_eq!(
        rig.server.claim_mem_type().unwrap_err().kind(),
        ErrorKind::AlreadyClaimed
    );
    let other = IoreqServer::builder(rig.domain.hypervisor())
        .build()
        .unwrap();
    let err = other.claim_mem_type().unwrap_err();
    assert_eq!(
        (err.kind(), err.errno()),
        (ErrorKind::AlreadyClaimed, Some(16))
    );
    let shadow_paging = Machine::new()
        .create_domain(DomainConfig::new(1).hap(false))
        .unwrap();
    let server = IoreqServer::builder(shadow_paging.hypervisor())
        .build()
        .unwrap();
    assert_eq!(
        server.claim_mem_type().unwrap_err().kind(),
        ErrorKind::NoHap
    );
    let dead = Machine::new().create_domain(DomainConfig::new(1)).unwrap();
    let server = IoreqServer::builder(dead.hypervisor()).build().unwrap();
    dead.destroy();
    assert_eq!(
        server.claim_mem_type().unwrap_err().kind(),
        ErrorKind::DomainGone
    );
}

#[test]
fn a_server_with_a_claim_cannot_be_destroyed() {
    let Rig {
        domain,
        server,
        claim,
        tracker,
    } = Rig::new(XenVersion::V4_20, 1);
    tracker
        .track(pages(0x10, 3), Answer::new(|_| PageOutcome::Apply))
        .unwrap();
    let refused = server.destroy().unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::StillInUse);
    drop(claim);
    assert_eq!(
        domain.mem_type(Gfn(0x10)),
        Some(P2mType::RamRw),
        "unmarked by the drop"
    );
    let late = tracker
        .track(pages(0x10, 1), Answer::new(|_| PageOutcome::Apply))
        .unwrap_err();
    assert_eq!(late.kind(), ErrorKind::WrongState);
    let again = refused.server.claim_mem_type().unwrap();
    drop(again);
    refused.server.destroy().unwrap();
    assert!(domain.leaks().is_clean(), "{:?}", domain.leaks());
}

#[test]
fn conflicts_name_both_and_change_nothing() {
    let rig = Rig::new(XenVersion::V4_20, 1);
    let other = rig.claim.tracker("other");
    rig.tracker
        .track(pages(0x12, 2), Answer::new(|_| PageOutcome::Apply))
        .unwrap();
    let err = other
        .track(pages(0x10, 8), Answer::new(|_| PageOutcome::Apply))
        .unwrap_err();
    assert_eq!(
        (err.kind(), err.untouched.as_slice()),
        (ErrorKind::RouteConflict, &[pages(0x10, 8)][..])
    );
    assert!(
        err.to_string().contains("\"test\"") && err.to_string().contains("\"other\""),
        "{err}"
    );
    assert_eq!(rig.domain.mem_type(Gfn(0x10)), Some(P2mType::RamRw));
    assert_eq!(rig.tracker.state(Gfn(0x10)), PageState::Untracked);
}

#[test]
fn a_failure_in_the_middle_says_what_became_of_every_page() {
    let rig = Rig::new(XenVersion::V4_20, 1);
    let handler = Answer::new(|_| PageOutcome::Apply);
    // Memory ends at frame 0x1000: the third batch of 1024 runs over its end.
    let range = pages(0x600, 0x1000);
    let err = rig
        .tracker
        .track(range, Arc::<Answer>::clone(&handler))
        .unwrap_err();
    assert_eq!(err.kind(), ErrorKind::WrongState);
    assert_eq!(err.done, [pages(0x600, 0x800)]);
    assert_eq!(err.unknown, [pages(0xe00, 0x400)]);
    assert_eq!(err.untouched, [pages(0x1200, 0x400)]);
    let running = rig.server.start().unwrap();
    let guest = rig.domain.spawn(VcpuId(0), |cpu| {
        cpu.store64(0x600 << 12, 1)?; // done
        cpu.store64(0xe00 << 12, 2)?; // unknown: applied as written, whether marked or not
        cpu.store64(0xfff << 12, 3)?;
        Ok((cpu.load64(0xe00 << 12)?, cpu.load64(0xfff << 12)?))
    });
    assert_eq!(guest.unwrap().join().unwrap(), (2, 3));
    assert_eq!(handler.count(), 1);
    rig.claim.settle(Duration::from_secs(5)).unwrap();
    assert_eq!(rig.domain.mem_type(Gfn(0xe00)), Some(P2mType::RamRw));
    assert_eq!(rig.claim.marked_pages(), 0x800);
    let again = Arc::<Answer>::clone(&handler);
    rig.tracker
        .track(pages(0xe00, 1), again)
        .expect("unmarked, and so known again");
    running.stop().unwrap();
}

#[test]
fn a_handler_untracks_its_own_page_without_hurting_the_guest() {
    struct Once {
        tracker: Arc<Tracker<SimHypervisor>>,
        seen: AtomicU64,
    }
    impl PageHandler for Once {
        fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
            self.seen.fetch_add(1, Ordering::Relaxed);
            self.tracker.untrack(write.gfn().into()).unwrap();
            assert_eq!(self.tracker.state(write.gfn()), PageState::Leaving);
            PageOutcome::Apply
        }
    }
    for version in VERSIONS {
        let rig = Rig::new(version, 1);
        let once = Arc::new(Once {
            tracker: Arc::clone(&rig.tracker),
            seen: AtomicU64::new(0),
        });
        rig.tracker
            .track(pages(0x10, 64), Arc::<Once>::clone(&once))
            .unwrap();
        let running = rig.server.start().unwrap();
        let guest = rig.domain.spawn(VcpuId(0), |cpu| {
            for round in 0..50_u64 {
                for gfn in 0x10..0x50 {
                    cpu.store64((gfn << 12) + round * 8, round)?;
                }
            }
            Ok(())
        });
        guest.unwrap().join().unwrap();
        assert_eq!(
            once.seen.load(Ordering::Relaxed),
            64,
            "one write a page reached the handler"
        );
        let report = rig.claim.settle(Duration::from_secs(5)).unwrap();
        assert_eq!(report.unmarked, 64);
        assert!(
            (0..50).all(|round| rig.word(0x1_0000 + round * 8) == round),
            "no write was lost"
        );
        running.stop().unwrap();
    }
}

/// The test of the protocol: pages come and go under vCPUs that write them all the time, in both versions.
#[test]
fn marks_come_and_go_under_tight_writers() {
    for version in VERSIONS {
        let rig = Rig::new(version, 2);
        let handler = Answer::new(|_| PageOutcome::Apply);
        let stop = Arc::new(AtomicBool::new(false));
        let running = rig.server.start().unwrap();
        let guests: Vec<_> = (0..2_u64)
            .map(|vcpu| {
                let stop = Arc::clone(&stop);
                let program = move |cpu: &mut ioreq::sim::Cpu| {
                    let mut round = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        round += 1;
                        for gfn in 0x10..0x14_u64 {
                            cpu.store64((gfn << 12) + vcpu * 8, round)?;
                            assert_eq!(
                                cpu.load64((gfn << 12) + vcpu * 8)?,
                                round,
                                "a store was lost"
                            );
                        }
                    }
                    Ok(round)
                };
                rig.domain
                    .spawn(VcpuId(u32::try_from(vcpu).unwrap()), program)
                    .unwrap()
            })
            .collect();
        for round in 0..200 {
            let range = pages(0x10 + round % 3, 2);
            rig.tracker
                .track(range, Arc::<Answer>::clone(&handler))
                .unwrap();
            let before = handler.count();
            while handler.count() == before {
                std::thread::yield_now();
            }
            rig.tracker.untrack(range).unwrap();
            if round % 4 == 0 {
                rig.claim.settle(Duration::from_millis(50)).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        for guest in guests {
            assert!(guest.join().unwrap() > 0);
        }
        let report = rig.claim.settle(Duration::from_secs(5)).unwrap();
        assert!(report.deferred.is_empty() && report.unmarked > 0);
        assert_eq!(rig.claim.marked_pages(), 0);
        assert_eq!(rig.domain.crash_reason(), None);
        running.stop().unwrap();
    }
}

#[test]
fn dropping_the_claim_under_load_leaves_a_running_guest() {
    for version in VERSIONS {
        let Rig {
            domain,
            server,
            claim,
            tracker,
        } = Rig::new(version, 1);
        tracker
            .track(pages(0x10, 16), Answer::new(|_| PageOutcome::Apply))
            .unwrap();
        let running = server.start().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let guest = domain.spawn(VcpuId(0), move |cpu| {
            let mut round = 0_u64;
            while !flag.load(Ordering::Relaxed) {
                round += 1;
                cpu.store64(0x1_0000 + round % 16 * 0x1000, round)?;
            }
            Ok(round)
        });
        let guest = guest.unwrap();
        while server.stats().page_writes < 100 {
            std::thread::yield_now();
        }
        drop(claim);
        assert_eq!(domain.mem_type(Gfn(0x10)), Some(P2mType::RamRw));
        stop.store(true, Ordering::Relaxed);
        assert!(guest.join().unwrap() > 0);
        running.stop().unwrap();
    }
}

/// Two vCPUs on one page: what a handler derives from the page agrees with it.
#[test]
fn two_writers_of_one_page_leave_memory_and_handler_in_agreement() {
    struct Mirror {
        words: Box<[AtomicU64]>,
        inside: AtomicBool,
        overlaps: AtomicU64,
    }
    impl PageHandler for Mirror {
        fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
            if self.inside.swap(true, Ordering::AcqRel) {
                self.overlaps.fetch_add(1, Ordering::Relaxed);
            }
            // Not atomic as a whole: only the page's order makes it right. Long enough for the other vCPU to come.
            self.words[usize::from(write.offset()) / 8].store(write.value(), Ordering::Relaxed);
            for _ in 0..20 {
                std::thread::yield_now();
            }
            self.inside.store(false, Ordering::Release);
            PageOutcome::Apply
        }
    }
    let rig = Rig::new(XenVersion::V4_20, 2);
    let mirror = Arc::new(Mirror {
        words: (0..512).map(|_| AtomicU64::new(0)).collect(),
        inside: AtomicBool::new(false),
        overlaps: AtomicU64::new(0),
    });
    rig.tracker
        .track(Gfn(0x10).into(), Arc::<Mirror>::clone(&mirror))
        .unwrap();
    let running = rig.server.start().unwrap();
    let guests: Vec<_> = (0..2_u64)
        .map(|vcpu| {
            let program = move |cpu: &mut ioreq::sim::Cpu| {
                (0..3000_u64)
                    .try_for_each(|round| cpu.store64(0x1_0000 + round % 4 * 8, round << 1 | vcpu))
            };
            rig.domain
                .spawn(VcpuId(u32::try_from(vcpu).unwrap()), program)
                .unwrap()
        })
        .collect();
    for guest in guests {
        guest.join().unwrap();
    }
    running.stop().unwrap();
    assert_eq!(
        mirror.overlaps.load(Ordering::Relaxed),
        0,
        "two handlers of one page at once"
    );
    for at in 0..4 {
        assert_eq!(
            rig.word(0x1_0000 + at * 8),
            mirror.words[usize::try_from(at).unwrap()].load(Ordering::Relaxed)
        );
    }
}

#[test]
fn a_devices_store_reaches_the_pages_handler() {
    let rig = Rig::new(XenVersion::V4_20, 1);
    let seen = Arc::new(Mutex::new(Vec::new()));
    /// Frame, offset, bytes, value.
    type Entry = (u64, u16, u64, u64);
    struct Log(Arc<Mutex<Vec<Entry>>>);
    impl PageHandler for Log {
        fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
            let entry = (
                write.gfn().0,
                write.offset(),
                write.width().bytes(),
                write.value(),
            );
            self.0.lock().unwrap().push(entry);
            PageOutcome::Apply
        }
    }
    rig.tracker
        .track(Gfn(0x11).into(), Arc::new(Log(Arc::clone(&seen))))
        .unwrap();
    let mut dma = rig.server.dma();
    let bytes: Vec<u8> = (0..32).collect();
    dma.write(GuestAddress(0x1_0ff0), &bytes).unwrap();
    let mut back = [0; 32];
    dma.read(GuestAddress(0x1_0ff0), &mut back).unwrap();
    assert_eq!(back, *bytes);
    let expected = [
        (0x11, 0, 8, 0x1716_1514_1312_1110),
        (0x11, 8, 8, 0x1f1e_1d1c_1b1a_1918),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
    seen.lock().unwrap().clear();
    dma.write(GuestAddress(0x1_1003), &[1, 2, 3, 4]).unwrap();
    assert_eq!(
        *seen.lock().unwrap(),
        [(0x11, 3, 1, 1), (0x11, 4, 2, 0x302), (0x11, 6, 1, 4)]
    );
    assert!(matches!(
        dma.write(GuestAddress(0x100_0000), &[1]),
        Err(DmaError::Ram(_))
    ));
}

#[test]
fn pages_that_leave_one_by_one_share_hypercalls_and_grace_periods() {
    const PAGES: u64 = 2048;
    let rig = Rig::new(XenVersion::V4_20, 1);
    let handler = Answer::new(|_| PageOutcome::Apply);
    rig.tracker.track(pages(0x100, PAGES), handler).unwrap();
    let counts = || {
        let counts = rig.domain.counts();
        (counts.dmop(Op::SetMemType), counts.dmop(Op::SetServerState))
    };
    let before = counts();
    for gfn in pages(0x100, PAGES).iter() {
        rig.tracker.untrack(gfn.into()).unwrap();
    }
    assert_eq!(counts(), before, "queued, and nothing more");
    rig.claim.settle(Duration::from_secs(10)).unwrap();
    assert_eq!(rig.claim.marked_pages(), 0);
    let changes = counts().0 - before.0;
    assert!(changes <= PAGES / 64, "{changes} for {PAGES} pages");
    assert_eq!(counts().1 - before.1, 2, "one for a batch of 1024");
}

/// The control thread lets half a millisecond pass from one batch to the next, unless that is full. So what it costs is bounded by the
/// time that it takes, however fast or slowly the pages come: with 10 µs from one to the next, 1/25 of what a batch each costs.
#[test]
fn the_control_thread_gathers_pages_that_leave_one_by_one() {
    const PAGES: u64 = 4096;
    let config = DomainConfig::new(1).memory(pages(0, 0x2000));
    let rig = Rig::of(XenVersion::V4_20, config);
    let handler = Answer::new(|_| PageOutcome::Apply);
    rig.tracker.track(pages(0x100, PAGES), handler).unwrap();
    let running = rig.server.start().unwrap();
    let counts = || {
        let counts = rig.domain.counts();
        counts.dmop(Op::SetMemType) + counts.dmop(Op::SetServerState)
    };
    let (before, started) = (counts(), Instant::now());
    for gfn in pages(0x100, PAGES).iter() {
        rig.tracker.untrack(gfn.into()).unwrap();
    }
    // Nobody helps.
    while rig.claim.marked_pages() > 0 {
        std::thread::sleep(Duration::from_micros(100));
    }
    let spans = u64::try_from(started.elapsed().as_micros() / 500).unwrap();
    let made = counts() - before;
    // The first is alone. A full one may leave a rest that does not wait.
    let batches = 1 + spans + 2 * PAGES / 1024;
    assert!(made <= 2 * batches, "{made} in {spans} spans");
    running.stop().unwrap();
}

/// Neither one that comes by itself nor the last of many waits for others that do not come.
#[test]
fn a_page_that_leaves_alone_is_unmarked_soon() {
    let rig = Rig::new(XenVersion::V4_20, 1);
    let handler = Answer::new(|_| PageOutcome::Apply);
    let running = rig.server.start().unwrap();
    let started = Instant::now();
    for page in 0..40 {
        let two = pages(0x100 + 2 * page, 2);
        rig.tracker.track(two, handler.clone()).unwrap();
        for gfn in two.iter() {
            rig.tracker.untrack(gfn.into()).unwrap();
        }
        while rig.claim.marked_pages() > 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    // If it was overlooked, it would be found after 100 ms, when the control thread looks at the domain.
    assert!(started.elapsed() < Duration::from_secs(2));
    running.stop().unwrap();
}
