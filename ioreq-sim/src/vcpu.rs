// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vCPU as others see it: what it waits for, whether it is stuck, its thread.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crossbeam::utils::CachePadded;
use ioreq_core::{ServerId, VcpuId};

use crate::counts::VcpuCounts;
use crate::cpu::EmulatorState;
use crate::domain::{Domain, DomainInner};
use crate::fate::{CpuFault, StuckReason, VcpuExit};
use crate::gate::Gate;
use crate::interrupts::Injected;

/// Not blocked in Xen.
const RUNNABLE: u32 = 0;
/// Blocked until a device model notifies (`_VPF_blocked_in_xen`).
const BLOCKED: u32 = 1;
/// The same, and its thread sleeps.
const ASLEEP: u32 = 2;

/// A vCPU's part that others reach.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) id: VcpuId,
    pub(crate) gate: Gate,
    blocked: CachePadded<AtomicU32>,
    /// The thread that sleeps in `blocked`.
    sleeper: Mutex<Option<Thread>>,
    /// Server id + 1 of the request in flight; 0 for none.
    waiting_on: AtomicU32,
    condition: Mutex<Condition>,
    changed: Condvar,
    interrupts: Mutex<VecDeque<Injected>>,
    interrupted: Condvar,
    pub(crate) counts: VcpuCounts,
}

/// Whether a vCPU runs a program, and whether it is stuck.
#[derive(Debug, Default)]
struct Condition {
    /// The emulator's state while no program runs; `None` while one does.
    parked: Option<Box<EmulatorState>>,
    stuck: Option<StuckReason>,
}

impl Vcpu {
    pub(crate) fn new(id: u32) -> Self {
        Vcpu {
            id: VcpuId(id),
            gate: Gate::default(),
            blocked: CachePadded::default(),
            sleeper: Mutex::new(None),
            waiting_on: AtomicU32::new(0),
            condition: Mutex::new(Condition {
                parked: Some(Box::default()),
                stuck: None,
            }),
            changed: Condvar::new(),
            interrupts: Mutex::default(),
            interrupted: Condvar::new(),
            counts: VcpuCounts::default(),
        }
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    // Blocking in Xen.

    /// `prepare_wait_on_xen_event_channel`: blocked from here on, before the request is READY.
    pub(crate) fn block(&self) {
        // Relaxed: the release of READY publishes it to whoever then notifies.
        self.blocked.store(BLOCKED, Ordering::Relaxed);
    }

    /// The same while waiting on: a notification must not slip in between this and the next look at the slot.
    pub(crate) fn block_again(&self) {
        // SeqCst: `wait_on_xen_event_channel`'s smp_mb: set blocked, then look again.
        self.blocked.swap(BLOCKED, Ordering::SeqCst);
    }

    pub(crate) fn unblock_self(&self) {
        self.blocked.store(RUNNABLE, Ordering::Relaxed);
    }

    pub(crate) fn is_blocked(&self) -> bool {
        // Acquire: pairs with `wake`, so that what the device model stored before it notified is seen.
        self.blocked.load(Ordering::Acquire) != RUNNABLE
    }

    /// A device model notified, or the domain ends (`vcpu_unblock`).
    pub(crate) fn wake(&self) {
        // AcqRel: releases what the notifier stored to the vCPU; acquires the sleeper's name.
        if self.blocked.swap(RUNNABLE, Ordering::AcqRel) == ASLEEP {
            // Not under the lock: a vCPU that is awake already may want it for its next sleep, and whoever notifies would wake it once more.
            let sleeper = self
                .sleeper
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if let Some(thread) = sleeper {
                thread.unpark();
            }
        }
    }

    /// Sleeps until woken.
    pub(crate) fn sleep(&self) {
        *self.sleeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        // AcqRel: publishes the name before `wake` can see ASLEEP.
        let asleep =
            self.blocked
                .compare_exchange(BLOCKED, ASLEEP, Ordering::AcqRel, Ordering::Acquire);
        if asleep.is_ok() {
            while self.is_blocked() {
                thread::park();
            }
        }
    }

    // What the request in flight waits for.

    pub(crate) fn set_waiting_on(&self, server: Option<ServerId>) {
        let value = server.map_or(0, |s| u32::from(s.0) + 1);
        // Release: pairs with `waiting_on`; read for real only while the domain is paused.
        self.waiting_on.store(value, Ordering::Release);
    }

    pub(crate) fn waiting_on(&self) -> Option<ServerId> {
        let value = self.waiting_on.load(Ordering::Acquire);
        value
            .checked_sub(1)
            .and_then(|id| u16::try_from(id).ok())
            .map(ServerId)
    }

    pub(crate) fn set_stuck(&self, reason: Option<StuckReason>) {
        self.condition().stuck = reason;
        self.changed.notify_all();
    }

    /// Wakes joiners, who look again whether a stuck vCPU still is.
    pub(crate) fn nudge(&self) {
        drop(self.condition());
        self.changed.notify_all();
    }

    // Programs.

    /// Takes the vCPU for a program; `None` if it runs one.
    pub(crate) fn take(&self) -> Option<Box<EmulatorState>> {
        self.condition().parked.take()
    }

    /// Gives it back.
    pub(crate) fn park(&self, state: Box<EmulatorState>) {
        self.condition().parked = Some(state);
        self.changed.notify_all();
    }

    /// The domain is gone: no answer is waited for any more. Servers know their vCPUs, so a vCPU that went on to know the servers that
    /// hold its request would keep them, and itself, for ever.
    pub(crate) fn forget_requests(&self) {
        if let Some(parked) = &mut self.condition().parked {
            parked.forget_requests();
        }
    }

    fn wait_parked_or_stuck(&self, domain: &DomainInner) -> Option<StuckReason> {
        let mut condition = self.condition();
        loop {
            if condition.parked.is_some() {
                return None;
            }
            if let Some(reason) = condition.stuck.filter(|r| domain.still_stuck(r)) {
                return Some(reason);
            }
            condition = self
                .changed
                .wait(condition)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    // Interrupts.

    pub(crate) fn interrupt(&self, injected: Injected) {
        let mut queue = self
            .interrupts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // As in the interrupt request register: what is pending already does not become more pending.
        if !queue.contains(&injected) {
            queue.push_back(injected);
        }
        self.interrupted.notify_all();
    }

    /// An event, of which there is room for one; whether it found it free.
    pub(crate) fn event(&self, injected: Injected) -> bool {
        let mut queue = self
            .interrupts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let free = !queue.iter().any(|i| matches!(i, Injected::Event { .. }));
        if free {
            queue.push_back(injected);
            self.interrupted.notify_all();
        }
        free
    }

    pub(crate) fn take_interrupt(&self) -> Option<Injected> {
        self.interrupts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// Waits for an interrupt, or until `over`.
    pub(crate) fn wait_interrupt(&self, over: impl Fn() -> bool) -> Option<Injected> {
        let queue = self
            .interrupts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut queue = self
            .interrupted
            .wait_while(queue, |q| q.is_empty() && !over())
            .unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    }

    /// The domain ends: everything that sleeps looks up.
    pub(crate) fn rouse(&self) {
        self.wake();
        drop(
            self.interrupts
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.interrupted.notify_all();
        self.nudge();
    }
}

/// A guest program running on a vCPU's thread.
///
/// ```
/// use ioreq_core::VcpuId;
/// use ioreq_sim::{DomainConfig, Machine};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let vcpu = domain.spawn(VcpuId(0), |cpu| {
///     cpu.store32(0x1000, 0xcafe)?;
///     cpu.load32(0x1000)
/// })?;
/// assert_eq!(vcpu.join(), Ok(0xcafe));
/// # Ok::<(), ioreq_core::Error>(())
/// ```
pub struct VcpuThread<T> {
    domain: Domain,
    vcpu: Arc<Vcpu>,
    thread: JoinHandle<Result<T, CpuFault>>,
}

impl<T> fmt::Debug for VcpuThread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuThread")
            .field("domain", &self.domain.domid())
            .field("vcpu", &self.vcpu.id)
            .finish_non_exhaustive()
    }
}

impl<T> VcpuThread<T> {
    pub(crate) fn new(
        domain: Domain,
        vcpu: Arc<Vcpu>,
        thread: JoinHandle<Result<T, CpuFault>>,
    ) -> Self {
        VcpuThread {
            domain,
            vcpu,
            thread,
        }
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// Why it returned no value. [`VcpuExit::Stuck`] as soon as the vCPU is stuck: its thread then stays behind until it is
    /// freed or the domain is destroyed. To free a stuck vCPU first, see [`wait_stuck`](Self::wait_stuck).
    pub fn join(self) -> Result<T, VcpuExit> {
        if let Some(reason) = self.vcpu.wait_parked_or_stuck(self.domain.inner()) {
            return Err(VcpuExit::Stuck(reason));
        }
        match self.thread.join() {
            Ok(result) => result.map_err(VcpuExit::from),
            Err(panic) => Err(panicked(panic.as_ref())),
        }
    }

    /// Waits until the vCPU is stuck; `None` if the program ended instead.
    #[must_use]
    pub fn wait_stuck(&self) -> Option<StuckReason> {
        self.vcpu.wait_parked_or_stuck(self.domain.inner())
    }

    /// Whether the program has ended, in whatever way.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Whether the vCPU is stuck right now.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        let stuck = self.vcpu.condition().stuck;
        stuck.is_some_and(|reason| self.domain.inner().still_stuck(&reason))
    }

    /// The server that this vCPU waits for, if any.
    #[must_use]
    pub fn waiting_on(&self) -> Option<ServerId> {
        self.vcpu.waiting_on()
    }
}

/// The exit of a program that panicked with this payload.
pub(crate) fn panicked(payload: &(dyn Any + Send)) -> VcpuExit {
    let text = payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    VcpuExit::Panicked(text.unwrap_or_else(|| "a value that is no text".to_owned()))
}
