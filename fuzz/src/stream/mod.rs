// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Streams of actions: guest programs on the model, against a server whose tracked pages and routes come and go meanwhile, by a
//! schedule that a seed decides. That is nothing to the guest: each vCPU's loads, and memory at the end, are what plain arrays give.
//! And the handlers of pages know what is in them.

mod guest;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ioreq_core::claim::{MemTypeClaim, PageState, PageTracker, Tracker};
use ioreq_core::handler::{
    Access, Batch, BatchOutcome, Completion, Context, Handler, PageHandler, PageOutcome, PageWrite,
    ReadOutcome, WriteOutcome,
};
use ioreq_core::routes::{RouteId, Routes};
use ioreq_core::server::{IoreqServer, Polling, Workers};
use ioreq_core::{
    BufIoreq, DomainState, ErrorKind, Gfn, GfnRange, GuestMap, GuestRam, MmioRange, PortRange,
    VcpuId,
};
use ioreq_sim::{Domain, DomainConfig, Machine, Schedule, SimHypervisor, SimMemory, XenVersion};
use vm_memory::GuestAddress;

use crate::script::Script;
use guest::{Deed, MMIO, PAGES, PORTS, Plain, REGISTERS, VCPUS, VGA};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One input.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let shape = script.take::<u8>();
    let seed = script.take::<u16>();
    let mut programs: [Vec<Deed>; VCPUS as usize] = Default::default();
    let mut moves = Vec::new();
    for _ in 0..96 {
        if script.is_over() {
            break;
        }
        match script.below(4) {
            0 => moves.push(Move::next(&mut script)),
            other => {
                let vcpu = other % VCPUS;
                programs[vcpu as usize].push(Deed::next(&mut script, vcpu));
            }
        }
    }
    Rig::new(shape).run(u64::from(seed), programs, moves);
}

/// What the device model does on its own.
#[derive(Debug, Clone, Copy)]
enum Move {
    Track(u64, u64),
    Untrack(u64, u64),
    Settle,
    Store(u64, u64),
    Route,
    Retract,
    FailMarking(u64),
    DoubleEvents,
    Suspend,
    TrackEach(u64, u64),
    Replace(u64, u64),
    Look,
    Nothing,
}

impl Move {
    fn next(script: &mut Script) -> Self {
        let pages = |script: &mut Script| (4 + script.below(PAGES - 4), 1 + script.below(3));
        match script.below(16) {
            0..=4 => {
                let (first, len) = pages(script);
                Move::Track(first, len.min(PAGES - first))
            }
            5..=8 => {
                let (first, len) = pages(script);
                Move::Untrack(first, len.min(PAGES - first))
            }
            9 => Move::Settle,
            10 => Move::Store(script.below(0xff0), script.take()),
            11 => Move::Route,
            12 => Move::Retract,
            13 => match script.below(4) {
                0 => Move::FailMarking(script.below(3)),
                1 => Move::Look,
                what => {
                    let (first, len) = pages(script);
                    let len = len.min(PAGES - first);
                    match what {
                        2 => Move::TrackEach(first, len),
                        _ => Move::Replace(first, len),
                    }
                }
            },
            14 => match script.take() {
                true => Move::Suspend,
                false => Move::DoubleEvents,
            },
            _ => Move::Nothing,
        }
    }
}

/// Registers of one kind, of all vCPUs.
struct Registers {
    bytes: Mutex<Vec<u8>>,
    /// From one vCPU's to the next one's.
    stride: u64,
    /// Where completions go, if it defers.
    owed: Option<Owed>,
}

/// An answer that is due.
enum Due {
    Read(Completion<u64>, u64),
    Write(Completion<()>),
}

type Owed = Arc<Mutex<VecDeque<Due>>>;
/// Nothing is late here.
const OVERRUN: Duration = Duration::from_secs(3600);

impl Registers {
    fn new(stride: u64, owed: Option<&Owed>) -> Self {
        let bytes = vec![0; (VCPUS * REGISTERS) as usize];
        Registers {
            bytes: Mutex::new(bytes),
            stride,
            owed: owed.cloned(),
        }
    }

    /// Answers now, or when the device model looks again.
    fn later(&self) -> Option<&Owed> {
        self.owed.as_ref()
    }

    fn with<T>(&self, access: Access, f: impl FnOnce(&mut [u8]) -> T) -> T {
        let vcpu = access.offset / self.stride;
        let at = (vcpu * REGISTERS + access.offset % self.stride) as usize;
        f(&mut lock(&self.bytes)[at..at + access.width.size()])
    }
}

impl Handler for Registers {
    fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome {
        let value = self.with(access, |bytes| guest::value(bytes));
        let Some(owed) = self.later() else {
            return value.into();
        };
        let (deferred, completion) = cx.defer_read(OVERRUN);
        lock(owed).push_back(Due::Read(completion, value));
        ReadOutcome::Defer(deferred)
    }
    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        self.with(access, |bytes| guest::put(bytes, value));
        let Some(owed) = self.later() else {
            return WriteOutcome::Done;
        };
        let (deferred, completion) = cx.defer_write(OVERRUN);
        lock(owed).push_back(Due::Write(completion));
        WriteOutcome::Defer(deferred)
    }
    fn write_batch(&self, _: &Context<'_>, batch: &Batch, values: &[u64]) -> BatchOutcome {
        if self.owed.is_some() {
            return BatchOutcome::OneByOne;
        }
        for (access, value) in batch.iter().zip(values) {
            self.with(access, |bytes| guest::put(bytes, *value));
        }
        BatchOutcome::Done
    }
}

/// What handlers know of pages.
type Mirrors = Arc<Mutex<BTreeMap<u64, Vec<u8>>>>;

/// A page's handler: it knows what the page holds.
struct Mirror(Mirrors);

impl PageHandler for Mirror {
    fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        let outcome = match write.gfn().0 % 2 {
            0 => write.apply(),
            _ => PageOutcome::Apply,
        };
        if let Some(page) = lock(&self.0).get_mut(&write.gfn().0) {
            let at = usize::from(write.offset());
            guest::put(&mut page[at..at + write.width().size()], write.value());
        }
        outcome
    }
}

struct Rig {
    machine: Machine,
    domain: Domain,
    server: IoreqServer<SimHypervisor>,
    claim: MemTypeClaim<SimHypervisor>,
    tracker: Tracker<SimHypervisor>,
    memory: Arc<SimMemory>,
    mirrors: Mirrors,
    churned: Vec<RouteId>,
    owed: Owed,
    shape: u8,
    /// What the device stored into its own page.
    device: Vec<u8>,
}

/// The device's own page, which no vCPU touches.
const DEVICE: u64 = 13;

impl Rig {
    fn new(shape: u8) -> Self {
        let version = XenVersion::ALL[usize::from(shape & 1)];
        let machine = Machine::builder().version(version).build();
        let ram = GfnRange::sized(0, PAGES).expect("some pages");
        let config = DomainConfig::new(VCPUS as u32).memory(ram).vga(true);
        let domain = machine.create_domain(config).expect("a domain");
        let workers = match shape & 2 {
            0 => Workers::Count(1),
            _ => Workers::PerVcpu,
        };
        let server = IoreqServer::builder(domain.hypervisor())
            .buffered(BufIoreq::Atomic)
            .workers(workers)
            .polling(Polling::off())
            .last_gfn(Gfn(PAGES - 1))
            .build()
            .expect("a server");
        let last = PORTS + (VCPUS * REGISTERS) as u16 - 1;
        let ports = PortRange::new(PORTS, last).expect("in order");
        let window = |base| MmioRange::sized(base, VCPUS << 12).expect("in order");
        let owed = Owed::default();
        let defers = (shape & 4 != 0).then_some(&owed);
        let added = [
            server.route("ports", ports, Registers::new(REGISTERS, defers)),
            server.route("mmio", window(MMIO), Registers::new(1 << 12, defers)),
            server.route("vga", window(VGA), Registers::new(1 << 12, None)),
        ];
        assert!(added.iter().all(Result::is_ok));
        let claim = server.claim_mem_type().expect("it is free");
        let tracker = claim.tracker("pages");
        Rig {
            memory: server.hypervisor().memory(),
            machine,
            domain,
            server,
            claim,
            tracker,
            mirrors: Mirrors::default(),
            churned: Vec::new(),
            owed,
            shape,
            device: vec![0; 4096],
        }
    }

    fn page(&self, gfn: u64) -> Vec<u8> {
        let mut page = vec![0; 4096];
        let at = GuestAddress(gfn << 12);
        GuestRam::read(&*self.memory, at, &mut page).expect("guest memory");
        page
    }

    fn run(mut self, seed: u64, programs: [Vec<Deed>; VCPUS as usize], moves: Vec<Move>) {
        let loaded: Vec<_> = programs
            .iter()
            .map(|_| Arc::new(Mutex::new(Vec::new())))
            .collect();
        let mut schedule = Schedule::new(seed);
        for ((vcpu, deeds), loads) in (0..).zip(&programs).zip(&loaded) {
            let (deeds, loads) = (deeds.clone(), Arc::clone(loads));
            schedule = schedule.vcpu(&self.domain, VcpuId(vcpu), move |cpu| {
                for deed in deeds {
                    let loaded = deed.execute(cpu)?;
                    lock(&loads).extend(loaded);
                }
                Ok(())
            });
        }
        let mut moves = moves.into_iter();
        let mut turn = 0_u64;
        let report = schedule.run(|| {
            turn += 1;
            // A move every third turn: requests are served in between.
            if turn.is_multiple_of(3)
                && let Some(next) = moves.next()
            {
                self.make(next);
                return true;
            }
            let due = lock(&self.owed).pop_front();
            let completed = due.is_some();
            match due {
                Some(Due::Read(completion, value)) => assert!(completion.complete(value)),
                Some(Due::Write(completion)) => assert!(completion.complete(())),
                None => {}
            }
            self.server.poll().expect("not in a handler") > 0 || completed
        });
        let report = report.expect("vCPUs that are there");
        assert_eq!(self.machine.panicked(), None);
        assert_eq!(self.domain.crash_reason(), None);
        assert!(report.exits.iter().all(Result::is_ok), "{:?}", report.exits);
        assert!(!report.abandoned, "a request was not answered");
        assert_eq!(self.domain.state(), DomainState::Running);
        if self.claim.is_suspended() {
            self.domain.faults().fail_set_mem_type_after(u64::MAX);
            // What may be marked is unmarked first.
            let bound = Duration::from_secs(60);
            self.claim.settle(bound).expect("not in a handler");
            self.resume();
            assert!(!self.claim.is_suspended());
        }
        // What was posted last.
        self.server.poll().expect("not in a handler");
        self.compare(&programs, &loaded);
        self.end();
    }

    fn make(&mut self, next: Move) {
        match next {
            Move::Track(first, len) => {
                let pages = GfnRange::sized(first, len).expect("some pages");
                let handler = Arc::new(Mirror(Arc::clone(&self.mirrors)));
                if self.tracker.track(pages, handler).is_ok() {
                    for gfn in first..first + len {
                        // Tracked, then read.
                        let page = self.page(gfn);
                        lock(&self.mirrors).insert(gfn, page);
                    }
                }
            }
            Move::Untrack(first, len) => {
                let pages = GfnRange::sized(first, len).expect("some pages");
                if self.tracker.untrack(pages).is_ok() {
                    (first..first + len).for_each(|gfn| drop(lock(&self.mirrors).remove(&gfn)));
                }
            }
            Move::Settle => {
                // A page that a vCPU waits on comes to rest only when it is served, which this does.
                let settled = self.claim.settle(Duration::ZERO);
                settled.expect("not in a handler");
            }
            Move::Store(at, value) => {
                let bytes = value.to_le_bytes();
                let addr = GuestAddress((DEVICE << 12) + at);
                let stored = self.server.dma().write(addr, &bytes);
                stored.expect("guest memory");
                self.device[at as usize..at as usize + 8].copy_from_slice(&bytes);
            }
            Move::Route => {
                let nth = self.churned.len() as u64;
                let range = MmioRange::sized(0xf000_0000 + 0x40 * nth, 0x40).expect("in order");
                let route = self
                    .server
                    .route("churned", range, Registers::new(0x40, None));
                self.churned.push(route.expect("nobody else is there"));
            }
            Move::Retract => {
                if let Some(route) = self.churned.pop() {
                    self.server.control().retract(route).expect("it is there");
                }
            }
            Move::FailMarking(after) => self.domain.faults().fail_set_mem_type_after(after),
            Move::DoubleEvents => self.domain.faults().double_events(3),
            Move::Suspend if self.claim.is_suspended() => self.resume(),
            Move::Suspend => {
                // If a page does not come to rest at once, tracking goes on.
                let _report = self.claim.suspend(Duration::ZERO);
            }
            Move::TrackEach(first, len) => {
                let handler = || Arc::new(Mirror(Arc::clone(&self.mirrors)));
                let pages = (first..first + len).map(|gfn| (Gfn(gfn), handler() as _));
                if self.tracker.track_each(pages.collect()).is_ok() {
                    for gfn in first..first + len {
                        let page = self.page(gfn);
                        lock(&self.mirrors).insert(gfn, page);
                    }
                }
            }
            Move::Replace(first, len) => {
                let pages = GfnRange::sized(first, len).expect("some pages");
                let handler = Arc::new(Mirror(Arc::clone(&self.mirrors)));
                if let Err(err) = self.tracker.replace(pages, handler) {
                    assert!(!err.to_string().is_empty());
                }
            }
            Move::Look => self.look(),
            Move::Nothing => {}
        }
    }

    /// Tracking goes on. Of what was written meanwhile handlers were told nothing: they read their pages again.
    fn resume(&self) {
        if self.claim.resume().is_err() {
            lock(&self.mirrors).clear();
            return;
        }
        let known: Vec<_> = lock(&self.mirrors).keys().copied().collect();
        for gfn in known {
            let page = self.page(gfn);
            lock(&self.mirrors).insert(gfn, page);
        }
    }

    /// What may be asked at any time, and changes nothing.
    fn look(&self) {
        let marked = self.claim.marked_pages();
        assert!(marked <= PAGES && marked <= self.claim.marked_pages_peak());
        let report = self.claim.unmark_report();
        assert!(!format!("{report:?} {:?} {:?}", self.claim, self.tracker).is_empty());
        assert!(self.server.claim_mem_type().is_err(), "claimed twice");
        let beyond = GfnRange::sized(PAGES, 1).expect("a page");
        let handler = Arc::new(Mirror(Arc::clone(&self.mirrors)));
        let err = self
            .tracker
            .track(beyond, handler)
            .expect_err("beyond the last page");
        assert!(!format!("{err} {err:?} {:?} {}", err.kind(), err.error()).is_empty());
        assert!(self.tracker.stats().writes <= self.server.stats().page_writes + 4096);
        assert!(std::error::Error::source(&err).is_some() || err.done.is_empty());
        assert_eq!(ioreq_core::Error::from(err.clone()).kind(), err.kind());
        let page = |gfn| (Gfn(gfn), Arc::new(Mirror(Arc::clone(&self.mirrors))) as _);
        let twice = self.tracker.track_each(vec![page(1), page(2), page(1)]);
        assert!(twice.is_err(), "a page twice in one call");
        self.tracker.track_each(Vec::new()).unwrap_or_default();
        let other = self.tracker.clone();
        for gfn in (0..PAGES).map(Gfn) {
            if other.state(gfn) == PageState::Tracked {
                let handler = Arc::new(Mirror(Arc::clone(&self.mirrors)));
                let err = other.adopt(gfn.into(), handler).expect_err("it is tracked");
                let expected = match self.claim.is_suspended() {
                    true => ErrorKind::Busy,
                    false => ErrorKind::RouteConflict,
                };
                assert_eq!(err.kind(), expected);
            }
        }
        let taken = MmioRange::sized(MMIO + 8, 8).expect("in order");
        let conflict = self
            .server
            .route("conflict", taken, Registers::new(8, None));
        assert!(conflict.is_err(), "two routes of one address");
    }

    /// At rest, nothing is marked; then all is as before.
    fn rest(&self) {
        let before: Vec<_> = (0..PAGES).map(|gfn| self.tracker.state(Gfn(gfn))).collect();
        let bound = Duration::from_secs(60);
        let resting = match self.server.quiesce(bound) {
            Ok(resting) => resting,
            Err(err) => panic!("{err}"),
        };
        assert_eq!(self.claim.marked_pages(), 0, "marked at rest");
        let saved = resting.save();
        let tracked = before
            .iter()
            .filter(|state| **state == PageState::Tracked)
            .count() as u64;
        let named: Vec<_> = saved.trackers().map(str::to_owned).collect();
        let pages = named.iter().flat_map(|name| saved.pages(name));
        assert_eq!(pages.map(|pages| pages.pages()).sum::<u64>(), tracked);
        resting.resume().expect("the pages are there");
        for (gfn, state) in (0..).zip(before) {
            if state == PageState::Tracked {
                assert_eq!(self.tracker.state(Gfn(gfn)), state);
            }
        }
    }

    fn compare(&self, programs: &[Vec<Deed>], loaded: &[Arc<Mutex<Vec<u64>>>]) {
        let mut ram = vec![0; (PAGES << 12) as usize];
        GuestRam::read(&*self.memory, GuestAddress(0), &mut ram).expect("guest memory");
        for ((vcpu, deeds), loads) in (0..).zip(programs).zip(loaded) {
            let mut plain = Plain::new();
            let expected: Vec<u64> = deeds
                .iter()
                .filter_map(|deed| plain.execute(*deed))
                .collect();
            assert_eq!(*lock(loads), expected, "what vCPU {vcpu} loaded");
            assert!(plain.agrees(&ram, vcpu), "memory of vCPU {vcpu}");
        }
        assert!(self.page(DEVICE) == self.device, "the device's page");
        for (gfn, mirror) in &*lock(&self.mirrors) {
            if self.tracker.state(Gfn(*gfn)) == PageState::Tracked {
                assert!(
                    self.page(*gfn) == *mirror,
                    "the handler of page {gfn} is wrong"
                );
            }
        }
    }

    fn end(self) {
        let all = GfnRange::sized(0, PAGES).expect("some pages");
        // A failure that was asked for and did not come yet would keep pages marked.
        self.domain.faults().fail_set_mem_type_after(u64::MAX);
        if self.shape & 8 != 0 {
            self.rest();
        }
        // Or the end of the claim sees to it, or that of the domain.
        let dies = self.shape & 0x60 == 0x60;
        if dies {
            self.domain.destroy();
        }
        if self.shape & 16 == 0 {
            let _none = self.tracker.untrack(all);
            let settled = self.claim.settle(Duration::from_secs(60));
            settled.expect("not in a handler");
            assert_eq!(self.claim.marked_pages(), 0, "marked still");
        }
        let Rig {
            domain,
            server,
            claim,
            tracker,
            mirrors,
            ..
        } = self;
        drop((claim, server));
        let handler: Arc<dyn PageHandler> = Arc::new(Mirror(mirrors));
        let gone = tracker.track(all, Arc::clone(&handler));
        assert_eq!(gone.map_err(|err| err.untouched), Err(vec![all]));
        let gone = tracker.track_each(vec![(Gfn(4), handler)]);
        assert!(gone.is_err_and(|err| err.untouched == [Gfn(4).into()]));
        assert!(dies || domain.leaks().is_clean(), "{:?}", domain.leaks());
    }
}
