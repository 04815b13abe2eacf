// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests in a vCPU's slot, from READY to RESP_READY: whatever a slot holds, in whatever state, rewritten while it is served; posted
//! requests in between; handlers of all kinds. An oracle says what each comes to. (`interrupted`: a slot that changes between any
//! two accesses.)

mod interrupted;
mod layout;
mod oracle;
mod rig;

use ioreq_core::abi::{
    BufIoreqEntry, IOREQ_STATE_MASK, IOREQ_TYPE_COPY, IOREQ_TYPE_PCI_CONFIG, IOREQ_TYPE_PIO, Ioreq,
    STATE_IOREQ_INPROCESS, STATE_IOREQ_NONE, STATE_IOREQ_READY, STATE_IORESP_READY,
};

use ioreq_core::routes::RouteId;

use crate::script::Script;
use layout::{Behaviour, PAGE, PAGES, RAM, ROUTES, Route, Space};
use oracle::{Access, Oracle, Owed, Reply, Step};
use rig::{Rig, VCPUS};

thread_local! {
    static RIG: Rig = Rig::new();
}

/// One input.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let mut script = Script::new(data);
    if script.take::<u8>().is_multiple_of(4) {
        interrupted::run(script);
    } else {
        RIG.with(|rig| Run::new(rig).all(script));
    }
}

/// An address that is likely to mean something.
fn address(script: &mut Script, kind: u8) -> u64 {
    // Ports end at 0xffff: an access that goes past the end is worth a try of its own.
    if kind == IOREQ_TYPE_PIO && script.below(4) == 0 {
        return 0x1_0002 - script.below(6);
    }
    let near = match script.take::<i8>() {
        // At an edge, mostly.
        near @ -96..96 => near % 5,
        near => near,
    };
    match script.below(4) {
        0 => script.edgy(),
        1 => {
            let (gfn, _) = script.one_of(PAGES);
            (gfn * PAGE).wrapping_add_signed(near.into())
        }
        2 => (RAM as u64).wrapping_add_signed(near.into()),
        _ => {
            let route = &ROUTES[script.index(ROUTES.len())];
            let addr = match script.take::<bool>() {
                true => route.first.wrapping_add_signed(near.into()),
                false => route.last.wrapping_add_signed(near.into()),
            };
            match (route.space, kind) {
                (Space::Pci, _) | (_, IOREQ_TYPE_PCI_CONFIG) => {
                    route.first << 32 | u64::from(near.unsigned_abs()) << 5
                }
                _ => addr,
            }
        }
    }
}

fn request(script: &mut Script) -> Ioreq {
    let kind = match script.take::<u8>() {
        low @ 0..8 => low,
        other => [0, 1, 1, 1, 2, 7, 8, 1][usize::from(other % 8)],
    };
    let shape = script.take::<u8>();
    let count = match shape & 7 {
        0..4 => 1,
        4 => u32::from(script.take::<u8>()),
        5 if shape >> 6 == 3 => 4090 + script.below(8) as u32,
        6 => script.take(),
        _ => 1 + script.below(72) as u32,
    };
    let size = match shape >> 3 & 7 {
        7 => script.take(),
        other => [4, 8, 1, 2, 4, 8, 8][usize::from(other)],
    };
    let flags = script.take::<u8>();
    let addr = address(script, kind);
    let data = match flags & ioreq_core::abi::IOREQ_DATA_IS_PTR {
        0 => script.take(),
        _ => address(script, IOREQ_TYPE_COPY),
    };
    Ioreq {
        addr,
        data,
        count,
        size,
        vp_eport: 0,
        pad: 0,
        flags,
        kind,
    }
}

/// One run of a script against the rig.
struct Run<'a> {
    rig: &'a Rig,
    oracle: Oracle,
    /// What each vCPU waits in, as the oracle has it.
    waiting: [Option<Access>; VCPUS],
    /// What each slot should hold.
    slots: [Ioreq; VCPUS],
    added: Vec<RouteId>,
    ring: Vec<(BufIoreqEntry, Option<BufIoreqEntry>)>,
}

impl<'a> Run<'a> {
    fn new(rig: &'a Rig) -> Self {
        rig.reset();
        let oracle = Oracle {
            ram: vec![0; RAM],
            routes: ROUTES.to_vec(),
            ..Oracle::default()
        };
        Run {
            rig,
            oracle,
            waiting: Default::default(),
            slots: Default::default(),
            added: Vec::new(),
            ring: Vec::new(),
        }
    }

    fn all(mut self, mut script: Script) {
        let mut steps = 0;
        while !script.is_over() && steps < 48 {
            steps += 1;
            self.step(&mut script);
        }
        // Whatever was deferred is answered, whoever waits.
        self.poll();
        while !self.oracle.owed.is_empty() {
            self.reply(0, Reply::Nothing);
            self.poll();
        }
        for route in std::mem::take(&mut self.added) {
            self.rig.retract(route);
        }
        let answered = self.waiting.iter().all(Option::is_none);
        assert!(answered, "a request was not answered");
        assert!(self.rig.ram() == self.oracle.ram, "memory differs");
    }

    fn step(&mut self, script: &mut Script) {
        let vcpu = script.index(VCPUS);
        match script.below(8) {
            0..=2 => {
                let mut raw = request(script);
                if script.below(16) != 0 {
                    raw.flags = raw.flags & !IOREQ_STATE_MASK | STATE_IOREQ_READY;
                }
                self.put(vcpu, raw);
                self.poll();
            }
            3 => {
                // What a handler that rewrites will write, over whatever slot it serves.
                let mut raw = request(script);
                raw.flags = script.take();
                self.rig.shared().rewrite = Some(raw);
            }
            4 => {
                let entry = BufIoreqEntry::from_bits(script.take());
                let second = BufIoreqEntry::from_bits(script.take());
                if let Some(request) = self.rig.post(entry, second) {
                    self.ring.push(request);
                }
            }
            5 => match script.take::<bool>() {
                true => self.poll(),
                false => self.change_routes(script),
            },
            6 => {
                let reply = match script.below(3) {
                    0 => Reply::Nothing,
                    1 => Reply::Value(script.take()),
                    _ => Reply::Apply,
                };
                if !self.oracle.owed.is_empty() {
                    let which = script.index(self.oracle.owed.len());
                    self.reply(which, reply);
                    self.compare();
                }
            }
            _ => {
                let mut bytes = [0; 32];
                let given = script.bytes(32);
                bytes[..given.len()].copy_from_slice(given);
                self.put(vcpu, rig::from_bytes(&bytes));
                self.poll();
            }
        }
    }

    /// A route more, or the last one less, or with another handler.
    fn change_routes(&mut self, script: &mut Script) {
        let what = script.below(8);
        if what == 4
            && let Some(added) = self.added.last()
            && let Some(route) = self.oracle.routes.last_mut()
        {
            route.behaviour = match route.behaviour {
                Behaviour::Batch => Behaviour::Refuse,
                _ => Behaviour::Batch,
            };
            let route = *route;
            self.rig
                .replace(*added, self.oracle.routes.len() - 1, route);
            return;
        }
        if what.is_multiple_of(4) || self.added.len() >= 8 {
            if let Some(route) = self.added.pop() {
                self.oracle.routes.pop();
                self.rig.retract(route);
            }
            return;
        }
        let near = ROUTES[script.index(ROUTES.len())];
        let (from, len) = (script.take::<i8>(), script.edgy() & 0x3_ffff);
        let base = if script.take() { near.first } else { near.last };
        let first = base.wrapping_add_signed(from.into());
        let last = match near.space {
            Space::Pci => first,
            _ => first.saturating_add(len),
        };
        let most = match near.space {
            Space::Port => 0xffff,
            Space::Mmio => u64::MAX,
            Space::Pci => 0xffff_ffff,
        };
        if first > last || last > most || (near.space == Space::Mmio && first < RAM as u64) {
            return;
        }
        let route = Route {
            space: near.space,
            first,
            last,
            behaviour: Behaviour::Batch,
        };
        let added = self.rig.add(self.oracle.routes.len(), route);
        assert_eq!(added.is_some(), self.oracle.is_free(&route), "{route:?}");
        if let Some(added) = added {
            self.added.push(added);
            self.oracle.routes.push(route);
        }
    }

    fn put(&mut self, vcpu: usize, raw: Ioreq) {
        self.rig.put(vcpu, &raw);
        self.slots[vcpu] = raw;
    }

    /// What the slot holds after an answer.
    fn answer(&mut self, vcpu: usize, raw: &Ioreq, data: Option<u64>) {
        let slot = &mut self.slots[vcpu];
        if let Some(data) = data {
            slot.data = data;
        }
        slot.flags = raw.flags & !IOREQ_STATE_MASK | STATE_IORESP_READY;
    }

    fn poll(&mut self) {
        self.expect_pass();
        self.rig.poll();
        self.compare();
        // Xen takes the answers.
        for vcpu in 0..VCPUS {
            if self.slots[vcpu].state() == STATE_IORESP_READY {
                let mut raw = self.slots[vcpu];
                raw.flags = raw.flags & !IOREQ_STATE_MASK | STATE_IOREQ_NONE;
                self.put(vcpu, raw);
            }
        }
    }

    fn expect_pass(&mut self) {
        for vcpu in 0..VCPUS {
            if self.slots[vcpu].state() != STATE_IOREQ_READY || self.waiting[vcpu].is_some() {
                continue;
            }
            let raw = Ioreq {
                pad: 0,
                ..self.slots[vcpu]
            };
            self.slots[vcpu].flags = raw.flags & !IOREQ_STATE_MASK | STATE_IOREQ_INPROCESS;
            self.expect_ring();
            if !oracle::makes_sense(&raw) {
                self.answer(vcpu, &raw, oracle::refusal(&raw));
                continue;
            }
            self.carry(vcpu, Access::new(raw));
        }
        self.expect_ring();
        while let Some((vcpu, reply)) = self.oracle.replies.pop_front() {
            if let Some(mut access) = self.waiting[vcpu].take() {
                self.oracle.accept(&mut access, reply);
                self.carry(vcpu, access);
            }
        }
    }

    fn carry(&mut self, vcpu: usize, mut access: Access) {
        let before = self.oracle.calls.len();
        let step = self.oracle.carry(&mut access, Some(vcpu));
        self.expect_rewrite(before, vcpu);
        match step {
            Step::Done(data) => self.answer(vcpu, &access.raw, data),
            Step::Waits => self.waiting[vcpu] = Some(access),
        }
    }

    /// A handler that rewrites has been called since: the slot holds what it wrote.
    fn expect_rewrite(&mut self, before: usize, vcpu: usize) {
        let calls = &self.oracle.calls[before..];
        let rewrites = |call: &oracle::Call| {
            ROUTES
                .get(call.route)
                .is_some_and(|route| route.behaviour == layout::Behaviour::Rewrite)
        };
        if calls.iter().any(rewrites)
            && let Some(raw) = self.rig.shared().rewrite
        {
            self.slots[vcpu] = raw;
        }
    }

    fn expect_ring(&mut self) {
        for posted in std::mem::take(&mut self.ring) {
            let Some(raw) = rig::posted(posted) else {
                continue;
            };
            if !oracle::makes_sense(&raw) {
                continue;
            }
            let before = self.oracle.calls.len();
            let mut access = Access::new(raw);
            if let Step::Waits = self.oracle.carry(&mut access, None)
                && let Some(owed) = self.oracle.owed.last_mut()
            {
                *owed = Owed::Nobody;
            }
            // Posted requests name no vCPU: they count as vCPU 0's.
            self.expect_rewrite(before, 0);
        }
    }

    fn reply(&mut self, which: usize, reply: Reply) {
        let owed = self.oracle.owed.remove(which);
        self.rig.reply(which, reply);
        match owed {
            Owed::Nobody => {}
            Owed::Store(addr, bytes, value) => self.oracle.settle((addr, bytes, value), reply),
            Owed::Access(vcpu) => {
                let Some(access) = self.waiting[vcpu].clone() else {
                    panic!("nobody waits");
                };
                if !Oracle::is_plain(&access.raw) {
                    self.oracle.replies.push_back((vcpu, reply));
                    return;
                }
                let mut access = access;
                self.waiting[vcpu] = None;
                self.oracle.accept(&mut access, reply);
                match self.oracle.carry(&mut access, Some(vcpu)) {
                    Step::Done(data) => self.answer(vcpu, &access.raw, data),
                    Step::Waits => panic!("a single access waits twice"),
                }
            }
        }
    }

    fn compare(&mut self) {
        for vcpu in 0..VCPUS {
            assert_eq!(self.rig.slot(vcpu), self.slots[vcpu], "slot of vCPU {vcpu}");
        }
        let mut shared = self.rig.shared();
        assert_eq!(shared.calls, self.oracle.calls);
        assert_eq!(shared.told, self.oracle.told);
        assert_eq!(shared.offsets, self.oracle.offsets);
        assert_eq!(shared.owed.len(), self.oracle.owed.len());
        shared.calls.clear();
        shared.told.clear();
        drop(shared);
        self.oracle.calls.clear();
        self.oracle.told.clear();
    }
}
