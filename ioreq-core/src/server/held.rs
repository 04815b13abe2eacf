// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests that are held back: for a handler's reply, or because the page that they write is being unmarked.

use std::sync::Arc;
use std::time::Instant;

use super::bus::{Bus, Pause};
use super::carry::Carry;
use super::core::Core;
use super::dirty::LoggedRam;
use super::group::{Member, Posted, Suspended};
use super::service::{Caller, Service, ended};
use super::vcpu::set_parked;
use crate::dispatch::ReadGuard;
use crate::handler::{Pending, Reply};
use crate::hypervisor::{EventChannels, Hypervisor};
use crate::journal::{JournaledRam, Served};
use crate::request::{Kind, decode};
use crate::slot::Taken;

/// Milliseconds between two looks of a sleeping worker with deferred requests at how overdue they are.
const OVERRUN_TICK: i32 = 100;
/// Milliseconds between two tries of a parked request. Its wake-up cannot be lost; this is for the page that is taken by another
/// writer in between.
const PARKED_TICK: i32 = 1;

impl<H: Hypervisor> Service<H> {
    #[cold]
    #[inline(never)]
    pub(super) fn suspend_plain(
        &mut self,
        core: &Core<H>,
        caller: Caller,
        taken: Taken<'_>,
        pause: Pause,
    ) {
        match decode(taken.raw(), caller.vcpu).map(|request| *request.kind()) {
            Ok(Kind::Io(io)) => {
                self.suspend(core, caller, taken.into_owned(), Carry::new(io), pause);
            }
            // Not reached: what is plain is such a request, too.
            _ => self.finish(core, caller.port, taken.refuse()),
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn suspend(
        &mut self,
        core: &Core<H>,
        caller: Caller,
        taken: Taken<'static>,
        mut carry: Carry,
        pause: Pause,
    ) {
        carry.waits_for(&pause);
        let Caller { at, vcpu, port } = caller;
        let Some(member) = self.members.get_mut(at) else {
            self.finish(core, port, taken.refuse());
            return;
        };
        if member.suspended.is_none() && member.pending.is_none() {
            self.suspended += 1;
        }
        match pause {
            Pause::Parked => {
                member.suspended = Some(Suspended {
                    taken,
                    carry,
                    parked: true,
                });
                set_parked(core, vcpu, true);
                if let Some(counters) = self.counters.of(self.index) {
                    counters.parked.bump();
                }
            }
            Pause::Deferred(pending) | Pause::Undecided(pending) => {
                if let Some(counters) = self.counters.of(self.index) {
                    counters.deferred.bump();
                }
                member.pending = Some(Arc::clone(&pending));
                member.overrun_told = false;
                if let Some(width) = carry.is_plain() {
                    // Nothing is left to do but to answer: the completing thread does it itself.
                    let (events, journal) = (Arc::clone(&self.events), core.journal.clone());
                    let read = taken.raw().is_read();
                    pending.install(Box::new(move |reply| {
                        let value = match reply {
                            Some(Reply::Value(value)) => width.cut(value),
                            _ => width.all_ones(),
                        };
                        let value = read.then_some(value);
                        if let Some(journal) = journal {
                            journal.answer(vcpu, value);
                        }
                        let _notified_below = taken.answer(value);
                        if let Err(err) = events.notify(port) {
                            tracing::warn!(%err, "a deferred answer could not be notified");
                        }
                    }));
                } else {
                    member.suspended = Some(Suspended {
                        taken,
                        carry,
                        parked: false,
                    });
                    let (replies, waker) = (Arc::clone(&self.replies), Arc::clone(&self.waker));
                    pending.install(Box::new(move |reply| {
                        replies.push(Posted { member: at, reply });
                        waker.wake();
                    }));
                }
            }
        }
    }

    /// Goes on with requests that were held back.
    #[cold]
    #[inline(never)]
    pub(super) fn resume(&mut self, core: &Core<H>, guard: &ReadGuard<'_>) -> usize {
        let mut resumed = 0;
        while let Some(Posted { member: at, reply }) = self.replies.pop() {
            let Some(waiting) = self.members.get_mut(at) else {
                continue;
            };
            waiting.pending = None;
            let (vcpu, port) = (waiting.vcpu, waiting.port);
            if let Some(mut suspended) = waiting.suspended.take() {
                self.suspended -= 1;
                suspended.carry.accept(reply);
                self.go_on(core, guard, Caller { at, vcpu, port }, suspended);
                resumed += 1;
            }
        }
        for at in 0..self.members.len() {
            let Some(member) = self.members.get_mut(at) else {
                continue;
            };
            if member
                .suspended
                .as_ref()
                .is_some_and(|suspended| suspended.parked)
            {
                let page = member
                    .suspended
                    .as_ref()
                    .and_then(|suspended| suspended.carry.page());
                if page.is_some_and(|gfn| core.pages.is_parked(gfn, guard)) {
                    continue;
                }
                let (vcpu, port) = (member.vcpu, member.port);
                if let Some(suspended) = member.suspended.take() {
                    self.suspended -= 1;
                    set_parked(core, vcpu, false);
                    self.go_on(core, guard, Caller { at, vcpu, port }, suspended);
                    resumed += 1;
                }
            } else if member.suspended.is_none()
                && member
                    .pending
                    .as_ref()
                    .is_some_and(|pending| !pending.is_waiting())
            {
                member.pending = None;
                self.suspended -= 1;
            }
        }
        resumed
    }

    #[cold]
    #[inline(never)]
    fn go_on(
        &mut self,
        core: &Core<H>,
        guard: &ReadGuard<'_>,
        caller: Caller,
        suspended: Suspended,
    ) {
        let Suspended {
            taken, mut carry, ..
        } = suspended;
        let Caller { vcpu, port, .. } = caller;
        let Some(counters) = self.counters.of(self.index) else {
            self.finish(core, port, taken.refuse());
            return;
        };
        let mut entry = core.journaled(Served::Again(vcpu));
        let mut logged = LoggedRam::new(core, &*self.memory);
        let result = {
            let ram = JournaledRam::new(entry.journal(), logged.ram());
            let cx = core.context(vcpu, ram.ram());
            let bus = Bus {
                core,
                cx: &cx,
                memory: None,
                guard,
                counters,
                worker: self.index,
            };
            bus.watched(carry.begins(), || carry.run(&bus))
        };
        logged.tell();
        entry.ends(ended(&carry, &result));
        drop(entry);
        match result {
            Ok(()) => {
                let answered = taken.answer(carry.answer());
                self.finish(core, port, answered);
            }
            Err(pause) => self.suspend(core, caller, taken, carry, pause),
        }
    }

    /// How long the worker may sleep, in milliseconds; -1 for ever.
    pub(super) fn patience(&self) -> i32 {
        // Loom has no clock: in its models nothing but a wake-up ends a sleep.
        if self.suspended == 0 || cfg!(loom) {
            return -1;
        }
        let parked = |member: &Member| member.suspended.as_ref().is_some_and(|s| s.parked);
        if self.members.iter().any(parked) {
            PARKED_TICK
        } else {
            OVERRUN_TICK
        }
    }

    /// Tells of deferred requests that take longer than their handler said, once each.
    #[cold]
    #[inline(never)]
    pub(super) fn report_overruns(&mut self, core: &Core<H>) {
        let now = Instant::now();
        for member in &mut self.members {
            let waits = member
                .pending
                .as_ref()
                .filter(|pending| pending.is_waiting());
            if let Some(waited) = waits.and_then(|pending| pending.overdue(now))
                && !member.overrun_told
            {
                member.overrun_told = true;
                if let Some(counters) = self.counters.of(self.index) {
                    counters.overruns.bump();
                }
                tracing::warn!(
                    domid = %core.hv.domid(), vcpu = %member.vcpu, ?waited,
                    "a deferred request is overdue; the vCPU waits"
                );
            }
        }
    }

    /// Answers what is still held back, by its guards, and notifies.
    pub(super) fn close(&mut self) {
        for member in &mut self.members {
            let pending: Option<Arc<Pending>> = member.pending.take();
            if let Some(pending) = pending {
                pending.expire();
            }
            if member.suspended.take().is_some()
                && let Err(err) = self.events.notify(member.port)
            {
                tracing::debug!(%err, vcpu = %member.vcpu, "a vCPU could not be notified");
            }
        }
    }
}
