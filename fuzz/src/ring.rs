// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The buffered ring, with whatever happens to its page between any two accesses of the consumer.
//!
//! An *honest* page is Xen's: it pushes, rewinds, and loses advances by a rewind that it began before them. What the consumer gets is
//! then what was pushed, once and in order. A *hostile* page changes at will: then the consumer ends, within its budget, and what it
//! gets was in the page.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

use ioreq_core::abi::{BufIoreqEntry, IOREQ_BUFFER_SLOT_NUM};
use ioreq_core::request::BufferedRequest;
use ioreq_core::ring::{BufferedPage, BufferedRing, EntryIndex, Pointers, RingAnomaly, RingMemory};
use ioreq_core::{BufIoreq, Transport};
use ioreq_sim::{Domain, DomainConfig, HostileRing, Machine};

use crate::script::Script;

/// Entries of the ring.
const ENTRIES: u32 = IOREQ_BUFFER_SLOT_NUM;
/// A rewind that began is over before the consumer has advanced by so much: what gets lost beyond half a ring is not told from a
/// move ahead.
const MOST_LOST: u32 = ENTRIES / 2;

/// A page of the model, used again for each input of a thread.
struct Shared {
    _domain: Domain,
    page: ioreq_core::hypervisor::SharedPage,
    raw: HostileRing,
}

impl Shared {
    fn new() -> Option<Self> {
        let domain = Machine::new().create_domain(DomainConfig::new(1)).ok()?;
        let hv = domain.hypervisor();
        let id = hv.create_server(BufIoreq::Atomic).ok()?;
        let page = hv.buffered_page(id).ok()?;
        let raw = domain.hostile().ring(id)?;
        Some(Shared {
            _domain: domain,
            page,
            raw,
        })
    }
}

thread_local! {
    static SHARED: Shared = Shared::new().expect("a new machine has room for a server");
}

/// Xen's half, or somebody who plays it.
struct Peer<'a> {
    raw: &'a HostileRing,
    script: RefCell<Script>,
    honest: bool,
    /// What was pushed and not delivered yet.
    queue: RefCell<VecDeque<BufferedRequest>>,
    /// The read pointer as a rewind that is under way has read it, and what the consumer has advanced since.
    rewind: Cell<Option<(u32, u32)>>,
    /// Advances that were lost and not made up for yet.
    lost: Cell<u32>,
    /// Whatever the page has held.
    held: RefCell<BTreeSet<u64>>,
    /// Whether all was delivered when the write pointer was last looked at.
    delivered: Cell<bool>,
    /// Interference is over.
    rests: Cell<bool>,
}

impl Peer<'_> {
    fn pointers(&self) -> (u32, u32) {
        let load = |pointer: &std::sync::atomic::AtomicU32| pointer.load(Ordering::Relaxed);
        (
            load(self.raw.read_pointer()),
            load(self.raw.write_pointer()),
        )
    }

    fn put(&self, at: u32, bits: u64) {
        if let Some(entry) = self.raw.entry(at % ENTRIES) {
            entry.store(bits, Ordering::Relaxed);
            self.held.borrow_mut().insert(bits);
        }
    }

    /// `ioreq_send_buffered`, up to its rewind.
    fn push(&self, first: BufIoreqEntry, second: BufIoreqEntry) {
        self.end_rewind();
        let (read, write) = self.pointers();
        let pair = BufferedRequest::pair(first, second);
        let entries = 1 + u32::from(pair.is_some());
        if write.wrapping_sub(read) > ENTRIES - entries {
            return;
        }
        self.put(write, first.bits());
        if pair.is_some() {
            self.put(write.wrapping_add(1), second.bits());
        }
        let request = pair.or_else(|| BufferedRequest::single(first));
        self.queue.borrow_mut().extend(request);
        let write = write.wrapping_add(entries);
        self.raw.write_pointer().store(write, Ordering::Release);
    }

    fn begin_rewind(&self) {
        self.end_rewind();
        let (read, _) = self.pointers();
        if read >= ENTRIES {
            self.rewind.set(Some((read, 0)));
        }
    }

    /// What it writes is made from the pointer as it was when it began.
    fn end_rewind(&self) {
        let Some((read, advanced)) = self.rewind.take() else {
            return;
        };
        let (_, write) = self.pointers();
        let turns = read / ENTRIES * ENTRIES;
        self.raw
            .read_pointer()
            .store(read - turns, Ordering::Relaxed);
        self.raw
            .write_pointer()
            .store(write - turns, Ordering::Relaxed);
        self.lost.set(self.lost.get() + advanced);
    }

    /// Before each access of the consumer.
    fn interfere(&self) {
        if self.rests.get() {
            return;
        }
        let steps = self.script.borrow_mut().below(3);
        for _ in 0..steps {
            self.step();
        }
    }

    fn step(&self) {
        let mut script = self.script.borrow_mut();
        let what = script.take::<u8>();
        if self.honest {
            let entry = |script: &mut Script| BufIoreqEntry::from_bits(script.take::<u64>());
            match what % 8 {
                0..=4 => {
                    let (first, second) = (entry(&mut script), entry(&mut script));
                    drop(script);
                    self.push(first, second);
                }
                5 => self.end_rewind(),
                _ => self.begin_rewind(),
            }
            return;
        }
        let (read, write) = self.pointers();
        let near = u32::from(script.take::<u8>());
        let value = match what >> 4 & 3 {
            0 => write.wrapping_add(near),
            1 => read.wrapping_sub(near),
            2 => read.wrapping_add(ENTRIES - 2 + near % 4),
            _ => script.take(),
        };
        match what & 3 {
            0 => self.raw.read_pointer().store(value, Ordering::Relaxed),
            1 => self.raw.write_pointer().store(value, Ordering::Relaxed),
            _ => {
                let bits = script.take();
                self.put(value, bits);
            }
        }
    }
}

/// The page as the consumer sees it.
struct Interrupted<'a> {
    page: BufferedPage,
    peer: &'a Peer<'a>,
}

impl RingMemory for Interrupted<'_> {
    fn pointers(&self, order: Ordering) -> Pointers {
        self.peer.interfere();
        self.page.pointers(order)
    }
    fn read_pointer(&self, order: Ordering) -> u32 {
        self.peer.interfere();
        self.page.read_pointer(order)
    }
    fn write_pointer(&self, order: Ordering) -> u32 {
        self.peer.interfere();
        self.peer.delivered.set(self.peer.queue.borrow().is_empty());
        self.page.write_pointer(order)
    }
    fn advance(&self, by: u32, order: Ordering) -> u32 {
        self.peer.interfere();
        let peer = self.peer;
        if let Some((read, advanced)) = peer.rewind.get() {
            peer.rewind.set(Some((read, advanced + by)));
            if advanced + by + peer.lost.get() >= MOST_LOST - 2 {
                peer.end_rewind();
            }
        }
        self.page.advance(by, order)
    }
    fn entry(&self, at: EntryIndex) -> BufIoreqEntry {
        self.peer.interfere();
        self.page.entry(at)
    }
}

/// One input.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    SHARED.with(|shared| serve(shared, Script::new(data)));
}

fn serve(shared: &Shared, mut script: Script) {
    let honest = script.take::<bool>();
    let start = match honest {
        true => u32::from(script.take::<u16>()) % (3 * ENTRIES),
        false => script.take(),
    };
    let Shared { raw, .. } = shared;
    raw.read_pointer().store(start, Ordering::Relaxed);
    raw.write_pointer().store(start, Ordering::Relaxed);
    let mut held = BTreeSet::new();
    for entry in (0..ENTRIES).filter_map(|at| raw.entry(at)) {
        entry.store(0, Ordering::Relaxed);
    }
    held.insert(0);
    let peer = Peer {
        raw,
        script: RefCell::new(script),
        honest,
        queue: RefCell::default(),
        rewind: Cell::new(None),
        lost: Cell::new(0),
        delivered: Cell::new(true),
        held: RefCell::new(held),
        rests: Cell::new(false),
    };
    let page = BufferedPage::new(shared.page.clone());
    let ring = BufferedRing::in_memory(Interrupted { page, peer: &peer });
    let mut rounds = 0;
    while !peer.script.borrow().is_over() && rounds < 64 {
        rounds += 1;
        let what = peer.script.borrow_mut().take::<u8>();
        match what % 4 {
            0 => {
                for _ in 0..=what >> 4 {
                    peer.step();
                }
            }
            1 => {
                let empty = ring.is_empty();
                if honest && empty {
                    assert!(peer.delivered.get(), "empty, with requests in it");
                }
            }
            2 => drain(&peer, &ring, u32::from(what >> 2), false),
            _ => drain(&peer, &ring, u32::from(what >> 2), true),
        }
    }
    // At rest: all that was pushed is there.
    peer.end_rewind();
    peer.rests.set(true);
    for _ in 0..64 {
        drain(&peer, &ring, ENTRIES, false);
    }
    assert!(
        ring.is_empty(),
        "{:?} after {rounds} rounds",
        peer.pointers()
    );
    assert!(peer.queue.borrow().is_empty(), "requests were lost");
}

fn drain(peer: &Peer<'_>, ring: &BufferedRing<Interrupted<'_>>, budget: u32, fails: bool) {
    let mut consumer = ring.consumer().expect("nobody else consumes");
    assert!(ring.consumer().is_none(), "two consumers");
    let (calls, taken) = (Cell::new(0), Cell::new(0));
    let handle = |item: Result<BufferedRequest, RingAnomaly>| {
        calls.set(calls.get() + 1);
        let request = match item {
            Ok(request) => request,
            Err(anomaly) => {
                assert!(!peer.honest, "{anomaly} of an honest page");
                assert!(!anomaly.to_string().is_empty());
                return;
            }
        };
        taken.set(taken.get() + 1);
        if let Ok(decoded) = request.decode() {
            assert!(!decoded.to_string().is_empty());
        }
        if peer.honest {
            let expected = peer.queue.borrow_mut().pop_front();
            assert_eq!(Some(request), expected);
        } else {
            let held = peer.held.borrow();
            let (low, high) = (request.data() & 0xffff_ffff, request.data() >> 32);
            let of = |data| held.iter().any(|bits| bits >> 32 == data);
            assert!(of(low) && of(high), "{request:?} was never in the page");
        }
        if fails {
            resume_unwind(Box::new("the handler fails"));
        }
    };
    match catch_unwind(AssertUnwindSafe(|| consumer.drain(budget, handle))) {
        Ok(drained) => {
            assert_eq!(drained.taken, taken.get());
            assert!(drained.taken <= budget && calls.get() <= 2 * budget);
            if peer.rests.get() && drained.taken < budget && !drained.more {
                let (read, write) = peer.pointers();
                assert_eq!(read, write, "neither more nor empty");
            }
        }
        Err(panic) => {
            assert!(panic.is::<&str>() && fails, "{panic:?}");
            assert_eq!(taken.get(), 1, "it went on after a failure");
        }
    }
    // What was lost is made up for before anything else is taken.
    if taken.get() > 0 {
        peer.lost.set(0);
    }
}
