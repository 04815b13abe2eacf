// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A server on the model with the layout's handlers, used again for each input of a thread. The other half of the slots, and of the
//! ring, is played by hand.

use std::panic::resume_unwind;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ioreq_core::abi::{BufIoreqEntry, IOREQ_BUFFER_SLOT_NUM, Ioreq};
use ioreq_core::claim::{MemTypeClaim, PageTracker, Tracker};
use ioreq_core::handler::{
    Access, Batch, BatchOutcome, Completion, Context, Handler, PageHandler, PageOutcome, PageWrite,
    ReadOutcome, Verdict, WriteOutcome, WriteSource,
};
use ioreq_core::routes::{RouteId, Routes};
use ioreq_core::server::{IoreqServer, Polling, Workers};
use ioreq_core::{
    BufIoreq, Gfn, GfnRange, GuestMap, GuestRam, IoRange, MmioRange, PortRange, Sbdf, VcpuId,
};
use ioreq_sim::{
    Domain, DomainConfig, HostileRing, HostileSlots, Machine, RawSlot, SimHypervisor, SimMemory,
};
use vm_memory::GuestAddress;

use super::layout::{Behaviour, PAGES, RAM, ROUTES, Route, Space, mix};
use super::oracle::{Call, Reply, Told};

/// vCPUs of the domain.
pub(super) const VCPUS: usize = 2;
/// Nothing is late here.
const OVERRUN: Duration = Duration::from_secs(3600);

/// A completion that a handler kept.
pub(super) enum Owing {
    Read(Completion<u64>),
    Write(Completion<()>),
    Page(Completion<Verdict>),
}

/// What handlers saw, and what they are to do.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) calls: Vec<Call>,
    pub(super) told: Vec<Told>,
    pub(super) offsets: Vec<i64>,
    pub(super) owed: Vec<Owing>,
    /// What is put into the slot that is being served.
    pub(super) rewrite: Option<Ioreq>,
}

type Memo = Arc<Mutex<Shared>>;

fn lock(memo: &Memo) -> MutexGuard<'_, Shared> {
    memo.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handler of a route.
struct Ranged {
    index: usize,
    route: Route,
    memo: Memo,
    slots: HostileSlots,
}

impl Ranged {
    fn note(&self, cx: &Context<'_>, access: Access, write: Option<u64>) {
        let mut shared = lock(&self.memo);
        shared.calls.push(Call {
            route: self.index,
            addr: access.addr,
            bytes: access.width.bytes(),
            write,
        });
        if self.route.behaviour == Behaviour::Rewrite
            && let (Some(raw), Some(slot)) = (shared.rewrite, self.slots.slot(cx.vcpu()))
        {
            fill(slot, &raw);
        }
        if self.route.space != Space::Pci {
            assert_eq!(access.offset, access.addr - self.route.first);
        }
    }
}

impl Handler for Ranged {
    fn read(&self, cx: &Context<'_>, access: Access) -> ReadOutcome {
        self.note(cx, access, None);
        match self.route.behaviour {
            Behaviour::Refuse => ReadOutcome::Refused("it refuses"),
            Behaviour::Panic => resume_unwind(Box::new("it panics")),
            Behaviour::Defer => {
                let (deferred, completion) = cx.defer_read(OVERRUN);
                lock(&self.memo).owed.push(Owing::Read(completion));
                ReadOutcome::Defer(deferred)
            }
            _ => ReadOutcome::Value(mix(self.index, access.addr)),
        }
    }

    fn write(&self, cx: &Context<'_>, access: Access, value: u64) -> WriteOutcome {
        self.note(cx, access, Some(value));
        match self.route.behaviour {
            Behaviour::Refuse => WriteOutcome::Refused("it refuses"),
            Behaviour::Panic => resume_unwind(Box::new("it panics")),
            Behaviour::Defer => {
                let (deferred, completion) = cx.defer_write(OVERRUN);
                lock(&self.memo).owed.push(Owing::Write(completion));
                WriteOutcome::Defer(deferred)
            }
            _ => WriteOutcome::Done,
        }
    }

    fn read_batch(&self, cx: &Context<'_>, batch: &Batch, values: &mut [u64]) -> BatchOutcome {
        self.batch(cx, batch, |at, access| {
            if let Some(value) = values.get_mut(at) {
                *value = mix(self.index, access.addr);
            }
            None
        })
    }

    fn write_batch(&self, cx: &Context<'_>, batch: &Batch, values: &[u64]) -> BatchOutcome {
        self.batch(cx, batch, |at, _| values.get(at).copied())
    }
}

impl Ranged {
    fn batch(
        &self,
        cx: &Context<'_>,
        batch: &Batch,
        mut each: impl FnMut(usize, Access) -> Option<u64>,
    ) -> BatchOutcome {
        match self.route.behaviour {
            Behaviour::Plain | Behaviour::Rewrite | Behaviour::Defer => BatchOutcome::OneByOne,
            Behaviour::Batch | Behaviour::Refuse | Behaviour::Panic => {
                for (at, access) in batch.iter().enumerate() {
                    let write = each(at, access);
                    self.note(cx, access, write);
                }
                match self.route.behaviour {
                    Behaviour::Refuse => BatchOutcome::Refused("it refuses"),
                    Behaviour::Panic => resume_unwind(Box::new("it panics")),
                    _ => BatchOutcome::Done,
                }
            }
        }
    }
}

/// The handler of a page.
struct Paged {
    behaviour: Behaviour,
    memo: Memo,
}

impl PageHandler for Paged {
    fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        lock(&self.memo).told.push(Told {
            addr: write.addr().0,
            bytes: write.width().bytes(),
            value: write.value(),
            trapped: write.source() == WriteSource::Trapped,
        });
        assert!(write.old().is_some(), "a tracked page without memory");
        match self.behaviour {
            Behaviour::Plain => PageOutcome::Apply,
            Behaviour::Batch => write.apply(),
            Behaviour::Rewrite => PageOutcome::Replace(!write.value()),
            Behaviour::Refuse => PageOutcome::Drop,
            Behaviour::Panic => resume_unwind(Box::new("it panics")),
            Behaviour::Defer => {
                let (deferred, completion) = cx.defer_page(OVERRUN);
                lock(&self.memo).owed.push(Owing::Page(completion));
                PageOutcome::Defer(deferred)
            }
        }
    }

    fn fallback(&self) -> Verdict {
        Verdict::Drop
    }
}

fn fill(slot: &RawSlot, raw: &Ioreq) {
    slot.addr.store(raw.addr, Ordering::Relaxed);
    slot.data.store(raw.data, Ordering::Relaxed);
    slot.count.store(raw.count, Ordering::Relaxed);
    slot.size.store(raw.size, Ordering::Relaxed);
    slot.vp_eport.store(raw.vp_eport, Ordering::Relaxed);
    slot.pad.store(raw.pad, Ordering::Relaxed);
    slot.kind.store(raw.kind, Ordering::Relaxed);
    slot.flags.store(raw.flags, Ordering::Release);
}

/// A slot as 32 bytes have it.
pub(super) fn from_bytes(bytes: &[u8; 32]) -> Ioreq {
    let word = |at: usize| {
        bytes[at..at + 4]
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u32::from(*byte))
    };
    let long = |at: usize| u64::from(word(at + 4)) << 32 | u64::from(word(at));
    Ioreq {
        addr: long(0),
        data: long(8),
        count: word(16),
        size: word(20),
        vp_eport: word(24),
        pad: u16::from_le_bytes([bytes[28], bytes[29]]),
        flags: bytes[30],
        kind: bytes[31],
    }
}

/// A posted request as a slot would hold it; None for a read, which nobody would wait for.
pub(super) fn posted((head, second): (BufIoreqEntry, Option<BufIoreqEntry>)) -> Option<Ioreq> {
    let upper = second.map_or(0, |second| u64::from(second.data()));
    (!head.is_read()).then(|| Ioreq {
        addr: head.addr(),
        data: upper << 32 | u64::from(head.data()),
        count: 1,
        size: 1 << head.width_log2(),
        kind: head.kind(),
        ..Ioreq::default()
    })
}

/// The server, and all that is around it.
pub(super) struct Rig {
    memo: Memo,
    slots: HostileSlots,
    ring: HostileRing,
    memory: Arc<SimMemory>,
    server: IoreqServer<SimHypervisor>,
    _tracker: Tracker<SimHypervisor>,
    _claim: MemTypeClaim<SimHypervisor>,
    _domain: Domain,
}

impl Rig {
    pub(super) fn new() -> Self {
        let ram = GfnRange::sized(0, RAM as u64 / 4096).expect("some pages");
        let config = DomainConfig::new(VCPUS as u32).memory(ram);
        let domain = Machine::new().create_domain(config).expect("a domain");
        let server = IoreqServer::builder(domain.hypervisor())
            .buffered(BufIoreq::Atomic)
            .workers(Workers::Count(1))
            .polling(Polling::off())
            .sample_latency(3)
            .last_gfn(Gfn(15))
            .build()
            .expect("a server");
        let memo = Memo::default();
        let slots = domain.hostile().slots(server.id()).expect("slots");
        for (index, route) in ROUTES.iter().enumerate() {
            let handler = Ranged {
                index,
                route: *route,
                memo: Arc::clone(&memo),
                slots: slots.clone(),
            };
            server
                .route("route", range(route), handler)
                .expect("a route");
        }
        let noted = Arc::clone(&memo);
        server.on_time_offset(move |seconds| lock(&noted).offsets.push(seconds));
        let claim = server.claim_mem_type().expect("the claim is free");
        let tracker = claim.tracker("pages");
        for (gfn, behaviour) in PAGES {
            let handler = Paged {
                behaviour: *behaviour,
                memo: Arc::clone(&memo),
            };
            let page = GfnRange::sized(*gfn, 1).expect("a page");
            tracker.track(page, Arc::new(handler)).expect("tracked");
        }
        Rig {
            memo,
            slots,
            ring: domain.hostile().ring(server.id()).expect("a ring"),
            memory: server.hypervisor().memory(),
            server,
            _tracker: tracker,
            _claim: claim,
            _domain: domain,
        }
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.memo)
    }

    /// One more route; None if the server refuses it.
    fn handler(&self, index: usize, route: Route) -> Ranged {
        Ranged {
            index,
            route,
            memo: Arc::clone(&self.memo),
            slots: self.slots.clone(),
        }
    }

    pub(super) fn add(&self, index: usize, route: Route) -> Option<RouteId> {
        let handler = self.handler(index, route);
        self.server.route("added", range(&route), handler).ok()
    }

    /// Gives it the handler of `route`, which has the same range.
    pub(super) fn replace(&self, id: RouteId, index: usize, route: Route) {
        let replaced = self
            .server
            .control()
            .replace(id, Arc::new(self.handler(index, route)));
        replaced.expect("it is there");
    }

    pub(super) fn retract(&self, route: RouteId) {
        let control = self.server.control();
        control.retract(route).expect("it is there");
        assert!(control.retract(route).is_err(), "it is gone");
    }

    /// As new. An earlier input has seen to it that nothing is under way.
    pub(super) fn reset(&self) {
        *self.shared() = Shared::default();
        GuestRam::write(&*self.memory, GuestAddress(0), &[0; RAM]).expect("all of it is memory");
        (0..VCPUS).for_each(|vcpu| self.put(vcpu, &Ioreq::default()));
    }

    fn raw(&self, vcpu: usize) -> &RawSlot {
        self.slots.slot(VcpuId(vcpu as u32)).expect("below 128")
    }

    pub(super) fn put(&self, vcpu: usize, raw: &Ioreq) {
        fill(self.raw(vcpu), raw);
    }

    pub(super) fn slot(&self, vcpu: usize) -> Ioreq {
        let slot = self.raw(vcpu);
        Ioreq {
            addr: slot.addr.load(Ordering::Relaxed),
            data: slot.data.load(Ordering::Relaxed),
            count: slot.count.load(Ordering::Relaxed),
            size: slot.size.load(Ordering::Relaxed),
            vp_eport: slot.vp_eport.load(Ordering::Relaxed),
            pad: slot.pad.load(Ordering::Relaxed),
            flags: slot.flags.load(Ordering::Acquire),
            kind: slot.kind.load(Ordering::Relaxed),
        }
    }

    /// What Xen pushes; None if the ring is full.
    pub(super) fn post(
        &self,
        first: BufIoreqEntry,
        second: BufIoreqEntry,
    ) -> Option<(BufIoreqEntry, Option<BufIoreqEntry>)> {
        let pair = first.width_log2() == 3;
        let entries = 1 + u32::from(pair);
        let (read, write) = (self.ring.read_pointer(), self.ring.write_pointer());
        let at = write.load(Ordering::Relaxed);
        if at.wrapping_sub(read.load(Ordering::Relaxed)) > IOREQ_BUFFER_SLOT_NUM - entries {
            return None;
        }
        for (entry, at) in [first, second].iter().zip(at..at + entries) {
            let entry = (entry.bits(), self.ring.entry(at % IOREQ_BUFFER_SLOT_NUM)?);
            entry.1.store(entry.0, Ordering::Relaxed);
        }
        write.store(at + entries, Ordering::Release);
        let turn = IOREQ_BUFFER_SLOT_NUM;
        if read.load(Ordering::Relaxed) >= turn {
            read.fetch_sub(turn, Ordering::Relaxed);
            write.fetch_sub(turn, Ordering::Relaxed);
        }
        Some((first, pair.then_some(second)))
    }

    pub(super) fn poll(&self) {
        self.server.poll().expect("not in a handler");
    }

    /// Replies to the deferred request that is `which`.
    pub(super) fn reply(&self, which: usize, reply: Reply) {
        let owing = self.shared().owed.remove(which);
        match (owing, reply) {
            (Owing::Read(completion), Reply::Value(value)) => drop(completion.complete(value)),
            (Owing::Write(completion), Reply::Value(_) | Reply::Apply) => {
                completion.complete(());
            }
            (Owing::Page(completion), Reply::Value(value)) => {
                completion.complete(Verdict::Replace(value));
            }
            (Owing::Page(completion), Reply::Apply) => {
                completion.complete(Verdict::Apply);
            }
            // Dropped: nobody will reply.
            (Owing::Read(_) | Owing::Write(_) | Owing::Page(_), _) => {}
        }
    }

    pub(super) fn ram(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM];
        GuestRam::read(&*self.memory, GuestAddress(0), &mut bytes).expect("all of it is memory");
        bytes
    }
}

fn range(route: &Route) -> IoRange {
    match route.space {
        Space::Port => {
            let port = |at: u64| u16::try_from(at).expect("a port");
            PortRange::new(port(route.first), port(route.last))
                .expect("in order")
                .into()
        }
        Space::Mmio => MmioRange::new(route.first, route.last)
            .expect("in order")
            .into(),
        Space::Pci => Sbdf::from_bits(route.first as u32).into(),
    }
}
