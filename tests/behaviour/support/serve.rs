// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One ioreq server, set up and served by hand, step by step.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ioreq_core::abi::{IOREQ_TYPE_COPY, Ioreq, STATE_IOREQ_READY};
use ioreq_core::hypervisor::EventChannels;
use ioreq_core::slot::Slots;
use ioreq_core::{
    BufIoreq, EvtchnPort, Gfn, GfnRange, GuestMap, GuestRam, IoRange, LocalPort, MarkAuthority,
    MemTypes, P2mType, ServerId, Transport, VcpuId, Width,
};
use vm_memory::GuestAddress;

use super::{Page, until};
use crate::rig::{Domain, GuestOp, Outcome, Run};

/// What the server does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// As a simple device: writes into RAM are stored as written, reads give the next of a series of values.
    Apply,
    /// A read gives this value; a write stores this value in place of the guest's.
    Data(u64),
    /// A write is dropped; a read gives all-ones.
    Drop,
}

type Events<D> = <<D as Domain>::Process as Transport>::Events;
type Memory<D> = <<D as Domain>::Process as GuestMap>::Memory;

/// An ioreq server of one process.
pub(crate) struct Server<D: Domain> {
    pub(crate) hv: Arc<D::Process>,
    pub(crate) id: ServerId,
    pub(crate) events: Events<D>,
    ram: Arc<Memory<D>>,
    slots: Option<Slots>,
    /// The ioreq page, byte by byte.
    page: Option<Page>,
    /// The buffered page.
    ring: Option<Page>,
    /// By vCPU.
    ports: Vec<LocalPort>,
    /// Requests served so far, with the vCPU.
    pub(crate) seen: Vec<(u32, Ioreq)>,
    /// What the next read with [`Answer::Apply`] gives.
    pub(crate) next_value: u64,
}

impl<D: Domain> Server<D> {
    /// Created, nothing else.
    #[track_caller]
    pub(crate) fn create(domain: &D, bufioreq: BufIoreq) -> Self {
        Self::create_in(Arc::new(domain.process()), bufioreq)
    }

    /// The same, by a process that is there already.
    #[track_caller]
    pub(crate) fn create_in(hv: Arc<D::Process>, bufioreq: BufIoreq) -> Self {
        let id = hv.create_server(bufioreq).expect("create a server");
        Self::over(hv, id)
    }

    /// A server that exists: a new process takes it over.
    pub(crate) fn over(hv: Arc<D::Process>, id: ServerId) -> Self {
        Server {
            events: hv.open_events().expect("open event channels"),
            ram: hv.memory(),
            hv,
            id,
            slots: None,
            page: None,
            ring: None,
            ports: Vec::new(),
            seen: Vec::new(),
            next_value: 0xa5a5_0000,
        }
    }

    /// Created, acquired, enabled, bound, without a ring.
    #[track_caller]
    pub(crate) fn up(domain: &D) -> Self {
        let mut server = Self::create(domain, BufIoreq::Off);
        server.acquire();
        server.enable();
        server.bind();
        server
    }

    /// The same with a ring.
    #[track_caller]
    pub(crate) fn up_with_ring(domain: &D) -> Self {
        let mut server = Self::create(domain, BufIoreq::Atomic);
        server.acquire();
        server.acquire_ring();
        server.enable();
        server.bind();
        server
    }

    /// The same as [`up`](Self::up), owning the memory type.
    #[track_caller]
    pub(crate) fn up_claimed(domain: &D) -> Self {
        let server = Self::up(domain);
        server.claim();
        server
    }

    #[track_caller]
    pub(crate) fn acquire(&mut self) {
        let page = self.hv.ioreq_page(self.id).expect("acquire the ioreq page");
        let vcpus = self.hv.vcpus().expect("number of vCPUs");
        self.slots = Some(Slots::new(page.clone(), vcpus).expect("slots"));
        self.page = Some(Page::new(page));
    }

    #[track_caller]
    pub(crate) fn acquire_ring(&mut self) {
        let page = self.hv.buffered_page(self.id).expect("acquire the ring");
        self.ring = Some(Page::new(page));
    }

    #[track_caller]
    pub(crate) fn enable(&self) {
        self.set_state(true);
    }

    #[track_caller]
    pub(crate) fn disable(&self) {
        self.set_state(false);
    }

    #[track_caller]
    fn set_state(&self, enabled: bool) {
        let result = self.hv.set_server_state(self.id, enabled);
        result.expect("set_ioreq_server_state");
    }

    /// Binds the port of every vCPU.
    #[track_caller]
    pub(crate) fn bind(&mut self) {
        for vcpu in 0..self.slots().vcpus() {
            let eport = EvtchnPort(self.page().vp_eport(vcpu as usize));
            self.ports.push(self.events.bind(eport).expect("bind"));
        }
    }

    #[track_caller]
    pub(crate) fn map(&self, range: IoRange) {
        self.hv.map_range(self.id, range).expect("map a range");
    }

    #[track_caller]
    pub(crate) fn claim(&self) {
        self.hv.claim_mem_type(self.id).expect("claim the type");
    }

    #[track_caller]
    pub(crate) fn disclaim(&self) {
        self.hv.disclaim_mem_type(self.id).expect("disclaim");
    }

    pub(crate) fn set_type(&self, ty: P2mType, pages: GfnRange) -> ioreq_core::Result<()> {
        let authority = MarkAuthority::for_conformance_tests();
        self.hv.set_mem_type(&authority, ty, pages)
    }

    #[track_caller]
    pub(crate) fn mark(&self, pages: impl Into<GfnRange>) {
        let result = self.set_type(P2mType::IoreqServer, pages.into());
        result.expect("set_mem_type to ioreq_server");
    }

    #[track_caller]
    pub(crate) fn unmark(&self, pages: impl Into<GfnRange>) {
        let result = self.set_type(P2mType::RamRw, pages.into());
        result.expect("set_mem_type to ram_rw");
    }

    #[track_caller]
    pub(crate) fn destroy(&self) {
        self.hv.destroy_server(self.id).expect("destroy the server");
    }

    /// The ioreq page.
    pub(crate) fn page(&self) -> &Page {
        self.page.as_ref().expect("acquired")
    }

    /// The buffered page.
    pub(crate) fn ring(&self) -> &Page {
        self.ring.as_ref().expect("acquired the ring")
    }

    pub(crate) fn slots(&self) -> &Slots {
        self.slots.as_ref().expect("acquired")
    }

    pub(crate) fn port(&self, vcpu: u32) -> LocalPort {
        self.ports[vcpu as usize]
    }

    #[track_caller]
    pub(crate) fn notify(&self, vcpu: u32) {
        self.events.notify(self.port(vcpu)).expect("notify");
    }

    /// Waits until a vCPU's request is READY; looks at it without taking it.
    #[track_caller]
    pub(crate) fn wait_ready(&self, vcpu: u32) -> Ioreq {
        until("a request in the slot", || self.is_ready(vcpu));
        self.raw(vcpu)
    }

    /// The slot as it is, field by field.
    pub(crate) fn raw(&self, vcpu: u32) -> Ioreq {
        let at = 32 * vcpu as usize;
        let page = self.page();
        Ioreq {
            flags: page.u8(at + 30),
            addr: page.u64(at),
            data: page.u64(at + 8),
            count: page.u32(at + 16),
            size: page.u32(at + 20),
            vp_eport: page.u32(at + 24),
            pad: 0,
            kind: page.u8(at + 31),
        }
    }

    pub(crate) fn is_ready(&self, vcpu: u32) -> bool {
        self.page().state(vcpu as usize) == STATE_IOREQ_READY
    }

    /// No slot holds anything.
    pub(crate) fn is_idle(&self) -> bool {
        let vcpus = self.slots().vcpus() as usize;
        (0..vcpus).all(|vcpu| self.page().state(vcpu) == 0)
    }

    /// Serves the request of one vCPU, if it has one. Says which it was.
    pub(crate) fn serve(&mut self, vcpu: u32, answer: Answer) -> Option<Ioreq> {
        let slots = self.slots.clone().expect("acquired");
        let taken = slots.get(VcpuId(vcpu)).expect("a vCPU").take()?;
        let raw = *taken.raw();
        let data = self.carry_out(&raw, answer);
        self.seen.push((vcpu, raw));
        let answered = taken.answer(data);
        let vcpu = answered.vcpu().0;
        // A guest that has just crashed needs no notification.
        let _ = self.events.notify(self.port(vcpu));
        Some(raw)
    }

    /// Waits for a vCPU's request and serves it.
    #[track_caller]
    pub(crate) fn serve_next(&mut self, vcpu: u32, answer: Answer) -> Ioreq {
        until("a request in the slot", || self.is_ready(vcpu));
        self.serve(vcpu, answer).expect("READY")
    }

    /// Serves what is READY; whether there was anything.
    fn scan(&mut self, answer: &mut dyn FnMut(&Ioreq) -> Answer) -> bool {
        let mut any = false;
        for vcpu in 0..self.slots().vcpus() {
            if self.is_ready(vcpu) {
                let raw = self.raw(vcpu);
                any |= self.serve(vcpu, answer(&raw)).is_some();
            }
        }
        any
    }

    /// Does what the request asks; gives the data of an inline read.
    fn carry_out(&mut self, raw: &Ioreq, answer: Answer) -> Option<u64> {
        let width = Width::from_bytes(raw.size);
        let width = width.filter(|_| raw.count <= 65_536)?;
        let mut inline = None;
        for i in 0..u64::from(raw.count) {
            let element = |base: u64| {
                let offset = i * width.bytes();
                if raw.df() {
                    base.wrapping_sub(offset)
                } else {
                    base.wrapping_add(offset)
                }
            };
            let target = (raw.kind == IOREQ_TYPE_COPY).then(|| element(raw.addr));
            if raw.is_read() {
                let value = match (answer, target.and_then(|a| self.peek(a, width))) {
                    (Answer::Data(value), _) => value,
                    (Answer::Drop, _) => width.all_ones(),
                    (Answer::Apply, Some(value)) => value,
                    (Answer::Apply, None) => {
                        self.next_value += 1;
                        self.next_value - 1
                    }
                };
                if raw.data_is_ptr() {
                    self.poke(element(raw.data), width, value);
                } else {
                    inline = Some(value);
                }
            } else {
                let value = match answer {
                    Answer::Data(value) => value,
                    Answer::Drop => continue,
                    Answer::Apply if raw.data_is_ptr() => {
                        self.peek(element(raw.data), width).unwrap_or_default()
                    }
                    Answer::Apply => raw.data,
                };
                // A write to MMIO goes nowhere.
                if let Some(target) = target.filter(|t| self.peek(*t, width).is_some()) {
                    self.poke(target, width, value);
                }
            }
        }
        inline
    }

    fn peek(&self, addr: u64, width: Width) -> Option<u64> {
        self.ram.load(GuestAddress(addr), width).ok()
    }

    /// Guest RAM, as the server sees it.
    #[track_caller]
    pub(crate) fn load(&self, addr: u64, width: Width) -> u64 {
        self.peek(addr, width).expect("guest RAM")
    }

    /// Stores into guest RAM through the server's mapping.
    #[track_caller]
    pub(crate) fn poke(&self, addr: u64, width: Width, value: u64) {
        let stored = self.ram.store(GuestAddress(addr), width, value);
        stored.expect("guest RAM");
    }

    /// A guest frame's bytes; `None` if it is no RAM.
    pub(crate) fn frame(&self, gfn: Gfn) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        self.ram.read(gfn.start()?, &mut bytes).ok()?;
        Some(bytes)
    }

    /// The requests seen so far, without their vCPUs; forgets them.
    pub(crate) fn take_seen(&mut self) -> Vec<Ioreq> {
        std::mem::take(&mut self.seen)
            .into_iter()
            .map(|(_, raw)| raw)
            .collect()
    }
}

/// Serves all of `servers` until the run is back.
pub(crate) fn drive<D: Domain>(
    run: &D::Run,
    servers: &mut [&mut Server<D>],
    mut answer: impl FnMut(&Ioreq) -> Answer,
) {
    until("the guest to come back", || {
        let mut any = true;
        while any {
            any = false;
            for server in servers.iter_mut() {
                any |= server.scan(&mut answer);
            }
        }
        if run.is_back() {
            return true;
        }
        // A real dom0 with one CPU has to give it to the guest.
        thread::sleep(Duration::from_micros(20));
        false
    });
}

/// Has vCPU 0 do `ops`, serving all of `servers` as simple devices.
pub(crate) fn run<D: Domain>(
    domain: &D,
    ops: &[GuestOp],
    servers: &mut [&mut Server<D>],
) -> Outcome {
    run_with(domain, ops, servers, |_| Answer::Apply)
}

/// The same with an answer of the test's choice.
pub(crate) fn run_with<D: Domain>(
    domain: &D,
    ops: &[GuestOp],
    servers: &mut [&mut Server<D>],
    answer: impl FnMut(&Ioreq) -> Answer,
) -> Outcome {
    let run = domain.start(VcpuId(0), ops);
    drive(&run, servers, answer);
    run.join()
}
