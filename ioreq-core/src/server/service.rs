// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A request's way: taken from its slot, decoded, carried out, answered, notified.

use std::sync::Arc;
use std::time::Instant;

use super::bus::{Bus, Pause, Place};
use super::carry::Carry;
use super::core::Core;
use super::dirty::LoggedRam;
use super::group::{Member, Posted};
use super::waker::Waker;
use crate::abi::{Ioreq, STATE_IOREQ_READY, STATE_IORESP_READY};
use crate::audit;
use crate::dispatch::ReadGuard;
use crate::error::Error;
use crate::hypervisor::{EventChannels, Hypervisor};
use crate::ids::{LocalPort, VcpuId};
use crate::journal::{End, JournaledRam, Served};
use crate::request::{Io, Kind, Plain, Target, decode};
use crate::slot::{Answered, Duty, Taken};
use crate::stats::{PerWorker, WorkerCounters};
use crate::sync::SegQueue;

/// Carries a request out as far as it goes.
fn attempt<H: Hypervisor>(io: &Io, bus: &Bus<'_, H>) -> (Carry, Result<(), Pause>) {
    let mut carry = Carry::new(*io);
    let result = carry.run(bus);
    (carry, result)
}

/// The same, watched, the hypervisor is told of the pages that were stored into, and the journal of all: any of them. Apart, so that
/// others pay for the look alone.
#[cold]
#[inline(never)]
fn attempt_logged<H: Hypervisor>(
    io: &Io,
    bus: Bus<'_, H>,
    raw: &Ioreq,
) -> (Carry, Result<(), Pause>) {
    let (core, vcpu) = (bus.core, bus.cx.vcpu());
    let mut entry = core.journaled(Served::Request(vcpu, raw));
    let mut logged = LoggedRam::new(core, bus.cx.ram());
    let attempted = {
        let ram = JournaledRam::new(entry.journal(), logged.ram());
        let cx = core.context(vcpu, ram.ram());
        let bus = Bus {
            cx: &cx,
            memory: None,
            ..bus
        };
        bus.watched(Place::of(io), || attempt(io, &bus))
    };
    // Before the answer, and before another thread may give it.
    logged.tell();
    entry.ends(ended(&attempted.0, &attempted.1));
    attempted
}

/// What the journal is told of an access.
pub(super) fn ended(carry: &Carry, result: &Result<(), Pause>) -> End {
    match result {
        Ok(()) => End::Answered(carry.answer()),
        Err(_) => End::Waits,
    }
}

/// Counts an access by its kind; writes to tracked pages are counted where they are found to be ones, too.
pub(super) fn count(io: &Io, counters: &WorkerCounters) {
    match (io.target(), io.is_read()) {
        (Target::Port(_), true) => counters.port_reads.bump(),
        (Target::Port(_), false) => counters.port_writes.bump(),
        (Target::Mmio(_), true) => counters.mmio_reads.bump(),
        (Target::Mmio(_), false) => counters.mmio_writes.bump(),
        (Target::Pci { .. }, true) => counters.pci_reads.bump(),
        (Target::Pci { .. }, false) => counters.pci_writes.bump(),
    }
}

/// When the request is one of those whose latency is measured: every so many, none if that is 0.
#[inline(always)]
fn sample(until: &mut u32, every: u32) -> Option<Instant> {
    if *until > 1 {
        *until -= 1;
        return None;
    }
    *until = if every == 0 { u32::MAX } else { every };
    (every != 0).then(Instant::now)
}

/// A member, and where to answer it: with these at hand no path loses the way to the vCPU that waits.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    pub(super) at: usize,
    pub(super) vcpu: VcpuId,
    pub(super) port: LocalPort,
}

/// What serves a group's slots.
pub(super) struct Service<H: Hypervisor> {
    pub(super) index: usize,
    pub(super) members: Vec<Member>,
    pub(super) events: Arc<H::Events>,
    pub(super) memory: Arc<H::Memory>,
    pub(super) memory_epoch: u64,
    pub(super) counters: Arc<PerWorker<WorkerCounters>>,
    pub(super) replies: Arc<SegQueue<Posted>>,
    pub(super) waker: Arc<Waker>,
    /// Members with a suspended request or an awaited reply.
    pub(super) suspended: usize,
    pub(super) sample_every: u32,
    pub(super) until_sample: u32,
    /// The slots are as another process left them, which died.
    pub(super) inherited: bool,
}

impl<H: Hypervisor> Service<H> {
    /// Lets go of guest memory that is not the current one any more.
    pub(super) fn refresh_memory(&mut self, core: &Core<H>) {
        let epoch = core.memory_epoch();
        if epoch != self.memory_epoch {
            self.fetch_memory(core, epoch);
        }
    }

    #[cold]
    #[inline(never)]
    fn fetch_memory(&mut self, core: &Core<H>, epoch: u64) {
        self.memory = core.hv.memory();
        self.memory_epoch = epoch;
    }

    /// One look at the ring, every slot, and the requests that were held back.
    pub(super) fn pass(&mut self, core: &Core<H>, guard: &mut ReadGuard<'_>) -> usize {
        self.refresh_memory(core);
        let mut served = 0;
        if self.inherited {
            self.inherited = false;
            served += self.inherit(core, guard);
        }
        for at in 0..self.members.len() {
            let Some(member) = self.members.get_mut(at) else {
                continue;
            };
            let Some(slot) = core.slots.get(member.vcpu) else {
                continue;
            };
            if slot.state() != STATE_IOREQ_READY || member.is_held() {
                continue;
            }
            if member.pending.take().is_some() {
                self.suspended -= 1;
            }
            let (vcpu, port) = (member.vcpu, member.port);
            audit::open();
            let Some((duty, raw)) = slot.take_apart() else {
                audit::close();
                continue;
            };
            // Before the slot: what the guest did before it is in the ring, and comes first.
            served += 1 + core.drain_ring(&*self.memory, guard, self.index);
            self.serve_taken(core, guard, Caller { at, vcpu, port }, duty, raw);
            audit::close();
            guard.quiesce();
        }
        served += core.drain_ring(&*self.memory, guard, self.index);
        if self.suspended > 0 {
            served += self.resume(core, guard);
            self.report_overruns(core);
        }
        served
    }

    /// What was taken, and what is in the ring; nothing new. Gives the number of requests that are not finished.
    pub(super) fn finish_taken(&mut self, core: &Core<H>, guard: &ReadGuard<'_>) -> usize {
        self.refresh_memory(core);
        core.drain_ring(&*self.memory, guard, self.index);
        if self.suspended > 0 {
            self.resume(core, guard);
            self.report_overruns(core);
        }
        self.suspended
    }

    /// The first look at slots that another process served: what it took is served again, what it answered is notified again.
    #[cold]
    fn inherit(&mut self, core: &Core<H>, guard: &mut ReadGuard<'_>) -> usize {
        let mut served = 0;
        for at in 0..self.members.len() {
            let Some(member) = self.members.get(at) else {
                continue;
            };
            let (vcpu, port) = (member.vcpu, member.port);
            let Some(slot) = core.slots.get(vcpu) else {
                continue;
            };
            if let Some(taken) = slot.resume() {
                served += 1 + core.drain_ring(&*self.memory, guard, self.index);
                let started = sample(&mut self.until_sample, self.sample_every);
                self.serve(core, guard, Caller { at, vcpu, port }, taken, started);
            } else if slot.state() == STATE_IORESP_READY {
                self.notify(core, port);
            }
            guard.quiesce();
        }
        served
    }

    /// The way of nearly every request, inlined into the look at its slot, so that it stays in registers. None of them is a
    /// vector register, at least when the compiler is as it was (docs/benchmarks.md): the first use of one after a worker woke
    /// is a trap where the hypervisor restores them lazily.
    #[inline(always)]
    fn serve_taken(
        &mut self,
        core: &Core<H>,
        guard: &ReadGuard<'_>,
        caller: Caller,
        duty: Duty<'_>,
        raw: Ioreq,
    ) {
        let started = sample(&mut self.until_sample, self.sample_every);
        let Some(counters) = self
            .counters
            .of(self.index)
            .filter(|_| core.dirty.is_plain())
        else {
            self.serve(core, guard, caller, Taken::new(duty, raw), started);
            return;
        };
        let cx = core.context(caller.vcpu, &*self.memory);
        let bus = Bus {
            core,
            cx: &cx,
            memory: Some(&self.memory),
            guard,
            counters,
            worker: self.index,
        };
        // Last, so that its branches are those of the access itself.
        let Some(plain) = Plain::of(&raw) else {
            self.serve(core, guard, caller, Taken::new(duty, raw), started);
            return;
        };
        match bus.plain(plain) {
            Ok(answer) => {
                let answered = duty.answer(answer);
                audit::close();
                if let Some(started) = started {
                    counters.latency.record(started.elapsed());
                }
                self.finish(core, caller.port, answered);
            }
            Err(pause) => self.suspend_plain(core, caller, Taken::new(duty, raw), pause),
        }
    }

    /// The way of the others. `started`: see [`sample`].
    #[inline(never)]
    fn serve(
        &mut self,
        core: &Core<H>,
        guard: &ReadGuard<'_>,
        caller: Caller,
        taken: Taken<'_>,
        started: Option<Instant>,
    ) {
        let Caller { vcpu, port, .. } = caller;
        let Some(counters) = self.counters.of(self.index) else {
            self.finish(core, port, taken.refuse());
            return;
        };
        let request = match decode(taken.raw(), vcpu) {
            Ok(request) => request,
            Err(malformed) => {
                counters.malformed.bump();
                if core.log_limit.allow() {
                    tracing::warn!(domid = %core.hv.domid(), %vcpu, %malformed, "malformed request");
                }
                core.journal_refusal(vcpu, taken.raw());
                self.finish(core, port, taken.refuse());
                return;
            }
        };
        let data = match *request.kind() {
            Kind::Io(io) => {
                count(&io, counters);
                let cx = core.context(vcpu, &*self.memory);
                let bus = Bus {
                    core,
                    cx: &cx,
                    memory: None,
                    guard,
                    counters,
                    worker: self.index,
                };
                let (carry, result) = if core.dirty.is_plain() {
                    attempt(&io, &bus)
                } else {
                    attempt_logged(&io, bus, taken.raw())
                };
                match result {
                    Ok(()) => carry.answer(),
                    Err(pause) => {
                        self.suspend(core, caller, taken.into_owned(), carry, pause);
                        return;
                    }
                }
            }
            Kind::TimeOffset { seconds } => {
                counters.time_offsets.bump();
                let _entry = core.journaled(Served::Request(vcpu, taken.raw()));
                core.time_offset(seconds);
                None
            }
            Kind::InvalidateMapCache => {
                counters.invalidates.bump();
                let _entry = core.journaled(Served::Request(vcpu, taken.raw()));
                core.invalidate();
                None
            }
            Kind::Unknown { .. } => {
                counters.unknown.bump();
                core.journal_refusal(vcpu, taken.raw());
                self.finish(core, port, taken.refuse());
                return;
            }
        };
        let answered = taken.answer(data);
        audit::close();
        if let Some(started) = started {
            counters.latency.record(started.elapsed());
        }
        self.finish(core, port, answered);
    }

    /// The last step: wakes the vCPU whose request was answered.
    #[inline(always)]
    pub(super) fn finish(&self, core: &Core<H>, port: LocalPort, _answered: Answered) {
        self.notify(core, port);
    }

    #[inline(always)]
    fn notify(&self, core: &Core<H>, port: LocalPort) {
        match self.events.notify(port) {
            Ok(()) => self.count(|counters| counters.notifies.bump()),
            Err(err) => self.not_notified(core, &err),
        }
    }

    #[cold]
    #[inline(never)]
    fn not_notified(&self, core: &Core<H>, err: &Error) {
        self.count(|counters| counters.notify_errors.bump());
        if core.log_limit.allow() {
            tracing::warn!(%err, domid = %core.hv.domid(), "a vCPU could not be notified");
        }
    }

    pub(super) fn count(&self, count: impl FnOnce(&WorkerCounters)) {
        if let Some(counters) = self.counters.of(self.index) {
            count(counters);
        }
    }
}
