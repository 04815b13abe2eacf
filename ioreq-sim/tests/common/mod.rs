// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device model by hand, for tests of the model itself: it sees every request as it is.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::atomic::Ordering;
use std::thread;

use ioreq_core::abi::{
    HVMMEM_IOREQ_SERVER, HVMMEM_RAM_RW, IOREQ_STATE_MASK, Ioreq, STATE_IOREQ_INPROCESS,
    STATE_IOREQ_READY, STATE_IORESP_READY,
};
use ioreq_core::memory::{GuestRam, Width};
use ioreq_core::{
    BufIoreq, EventChannels, EvtchnPort, IoRange, LocalPort, MemTypes, ServerId, Transport, VcpuId,
};
use ioreq_sim::{
    Cpu, CpuFault, Domain, DomainConfig, HostileSlots, Machine, RawSlot, SimEvents, SimHypervisor,
    VcpuExit, VcpuThread, XenVersion,
};
use vm_memory::GuestAddress;

/// First page that tests track, and its address.
pub(crate) const GFN: u64 = 0x200;
pub(crate) const PAGE: u64 = GFN << 12;
/// MMIO that tests register.
pub(crate) const MMIO: u64 = 0xe000_0000;

pub(crate) fn domain(version: XenVersion) -> Domain {
    let machine = Machine::builder().version(version).build();
    machine.create_domain(DomainConfig::new(2)).unwrap()
}

/// A server with its page, bound.
pub(crate) struct Peer {
    pub(crate) domain: Domain,
    pub(crate) hv: SimHypervisor,
    pub(crate) id: ServerId,
    pub(crate) slots: HostileSlots,
    pub(crate) events: SimEvents,
    pub(crate) ports: Vec<LocalPort>,
    /// What a read gives next; counts up.
    pub(crate) next_read: u64,
    /// Every request taken so far.
    pub(crate) seen: Vec<Ioreq>,
}

impl Peer {
    pub(crate) fn new(domain: &Domain) -> Self {
        Self::with_ring(domain, BufIoreq::Off)
    }

    pub(crate) fn with_ring(domain: &Domain, ring: BufIoreq) -> Self {
        let hv = domain.hypervisor();
        let id = hv.create_server(ring).unwrap();
        hv.ioreq_page(id).unwrap();
        hv.set_server_state(id, true).unwrap();
        Self::adopt(domain, hv, id)
    }

    /// Takes over a server that exists and is enabled.
    pub(crate) fn adopt(domain: &Domain, hv: SimHypervisor, id: ServerId) -> Self {
        let slots = domain.hostile().slots(id).unwrap();
        let events = hv.open_events().unwrap();
        let ports = (0..domain.vcpus())
            .map(|v| {
                let port = slots
                    .slot(VcpuId(v))
                    .unwrap()
                    .vp_eport
                    .load(Ordering::Relaxed);
                events.bind(EvtchnPort(port)).unwrap()
            })
            .collect();
        Peer {
            domain: domain.clone(),
            hv,
            id,
            slots,
            events,
            ports,
            next_read: 0xa5a5_0000,
            seen: Vec::new(),
        }
    }

    pub(crate) fn range(&self, range: impl Into<IoRange>) {
        self.hv.map_range(self.id, range.into()).unwrap();
    }

    /// Claims the memory type and tracks `pages` pages from [`GFN`] on.
    pub(crate) fn track(&self, pages: u32) {
        self.hv.claim_mem_type(self.id).unwrap();
        self.mark(GFN, pages);
    }

    pub(crate) fn mark(&self, gfn: u64, pages: u32) {
        let raw = self.hv.raw();
        raw.set_mem_type(HVMMEM_IOREQ_SERVER, 0, gfn, pages)
            .unwrap();
    }

    pub(crate) fn unmark(&self, gfn: u64, pages: u32) {
        let raw = self.hv.raw();
        raw.set_mem_type(HVMMEM_RAM_RW, 0, gfn, pages).unwrap();
    }

    pub(crate) fn slot(&self, vcpu: u32) -> &RawSlot {
        self.slots.slot(VcpuId(vcpu)).unwrap()
    }

    /// Takes the request of a vCPU, if there is one.
    pub(crate) fn take(&mut self, vcpu: u32) -> Option<Ioreq> {
        let slot = self.slot(vcpu);
        let flags = slot.flags.load(Ordering::Acquire);
        if flags & IOREQ_STATE_MASK != STATE_IOREQ_READY {
            return None;
        }
        let req = Ioreq {
            addr: slot.addr.load(Ordering::Relaxed),
            data: slot.data.load(Ordering::Relaxed),
            count: slot.count.load(Ordering::Relaxed),
            size: slot.size.load(Ordering::Relaxed),
            vp_eport: slot.vp_eport.load(Ordering::Relaxed),
            pad: slot.pad.load(Ordering::Relaxed),
            flags: flags & !IOREQ_STATE_MASK,
            kind: slot.kind.load(Ordering::Relaxed),
        };
        set_state(slot, STATE_IOREQ_INPROCESS);
        self.seen.push(req);
        Some(req)
    }

    /// Waits for a request of a vCPU.
    pub(crate) fn wait(&mut self, vcpu: u32) -> Ioreq {
        loop {
            if let Some(req) = self.take(vcpu) {
                return req;
            }
            thread::yield_now();
        }
    }

    /// Answers a vCPU, with the data of a read.
    pub(crate) fn answer(&self, vcpu: u32, data: u64) {
        let slot = self.slot(vcpu);
        slot.data.store(data, Ordering::Relaxed);
        set_state(slot, STATE_IORESP_READY);
        self.events.notify(self.ports[vcpu as usize]).unwrap();
    }

    /// Does what an honest device does with a request: stores, reads, moves the data of pointer forms.
    pub(crate) fn carry_out(&mut self, req: &Ioreq) -> u64 {
        let memory = self.domain.memory();
        let Some(width) = Width::from_bytes(req.size) else {
            return 0;
        };
        let step = |base: u64, n: u64| {
            let offset = n * width.bytes();
            if req.df() {
                base - offset
            } else {
                base + offset
            }
        };
        if req.is_read() {
            if !req.data_is_ptr() {
                self.next_read += 1;
                return width.cut(self.next_read - 1);
            }
            for n in 0..u64::from(req.count) {
                let to = GuestAddress(step(req.data, n));
                self.next_read += 1;
                memory
                    .as_ref()
                    .store(to, width, self.next_read - 1)
                    .unwrap();
            }
        } else if req.addr >> 12 != 0
            && self.domain.mem_type(req.addr >> 12).is_some()
            && req.kind == 1
        {
            let to = GuestAddress(req.addr);
            memory.as_ref().store(to, width, req.data).unwrap();
        }
        req.data
    }

    /// Takes and answers one request of any vCPU, as an honest device.
    pub(crate) fn step(&mut self) -> bool {
        let mut any = false;
        for vcpu in 0..self.domain.vcpus() {
            if let Some(req) = self.take(vcpu) {
                let data = self.carry_out(&req);
                self.answer(vcpu, data);
                any = true;
            }
        }
        any
    }

    /// Serves until the program has ended or is stuck.
    pub(crate) fn serve<T>(&mut self, guest: VcpuThread<T>) -> Result<T, VcpuExit> {
        while !guest.is_finished() && !guest.is_stuck() {
            if !self.step() {
                thread::yield_now();
            }
        }
        guest.join()
    }

    /// Runs a program on vCPU 0, serving it, and gives its value and the requests that it made.
    pub(crate) fn run<T: Send + 'static>(
        &mut self,
        program: impl FnOnce(&mut Cpu) -> Result<T, CpuFault> + Send + 'static,
    ) -> (Result<T, VcpuExit>, Vec<Ioreq>) {
        let before = self.seen.len();
        let guest = self.domain.spawn(VcpuId(0), program).unwrap();
        let result = self.serve(guest);
        (result, self.seen[before..].to_vec())
    }

    pub(crate) fn load(&self, addr: u64, width: Width) -> u64 {
        let memory = self.domain.memory();
        memory.as_ref().load(GuestAddress(addr), width).unwrap()
    }

    pub(crate) fn poke(&self, addr: u64, width: Width, value: u64) {
        let memory = self.domain.memory();
        memory
            .as_ref()
            .store(GuestAddress(addr), width, value)
            .unwrap();
    }
}

pub(crate) fn set_state(slot: &RawSlot, state: u8) {
    let flags = slot.flags.load(Ordering::Relaxed) & !IOREQ_STATE_MASK;
    slot.flags.store(flags | state, Ordering::Release);
}

/// The parts of a request that tables compare: kind, read, address, data, size, count, df, pointer.
pub(crate) fn brief(req: &Ioreq) -> (u8, bool, u64, u64, u32, u32) {
    (
        req.kind,
        req.is_read(),
        req.addr,
        req.data,
        req.size,
        req.count,
    )
}
