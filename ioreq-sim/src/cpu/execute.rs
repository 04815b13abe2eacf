// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Executing an instruction until it is done: the first pass, the wait for the answer, the re-execution.

use std::hint;
use std::thread;

use ioreq_core::abi::{
    IOREQ_TYPE_PIO, STATE_IOREQ_INPROCESS, STATE_IOREQ_NONE, STATE_IOREQ_READY, STATE_IORESP_READY,
};
use std::sync::atomic::Ordering;

use super::{Cpu, Emul, LatchState};
use crate::config::VcpuWait;
use crate::counts;
use crate::fate::{CpuFault, CrashReason, StopReason};
use crate::gate::Pass;
use crate::interrupts::Injected;
use crate::schedule::{self, Turn};
use crate::servers::Entry;

/// Turns after which even a spinning vCPU sleeps: some tens of milliseconds.
const SPIN_LIMIT: u32 = 1 << 20;

impl Cpu {
    /// Executes one instruction, `body`, which is called again for every pass. `trap` says whether its first pass handles
    /// a page fault, `addr` what it accesses.
    pub(super) fn instruction<T>(
        &mut self,
        trap: Pass,
        addr: u64,
        mut body: impl FnMut(&mut Self) -> Result<T, Emul>,
    ) -> Result<T, CpuFault> {
        let result = self.begin(trap).and_then(|()| {
            loop {
                match body(self) {
                    Ok(value) => {
                        self.forget();
                        break self.settle().map(|()| Ok(value));
                    }
                    Err(Emul::Retry) if !self.emu.pending.is_empty() => {
                        self.wait()?;
                        self.emu.again = true;
                        counts::bump(&self.vcpu.counts.reexecutions);
                    }
                    Err(Emul::Retry) => self.wait_unstuck(trap)?,
                    Err(Emul::Unhandleable) if self.emu.again => {
                        // A pass that completes a request has nobody to tell: the guest executes the instruction from its
                        // beginning again.
                        self.forget();
                        self.settle()?;
                        self.vcpu.gate.leave();
                        if schedule::yield_point(true) == Turn::Over {
                            return Err(StopReason::Abandoned);
                        }
                        self.enter(trap)?;
                    }
                    Err(Emul::Unhandleable) => {
                        self.forget();
                        break self
                            .settle()
                            .map(|()| Err(CpuFault::GeneralProtection { addr }));
                    }
                    Err(Emul::Stop(reason)) => break Err(reason),
                }
            }
        });
        self.vcpu.gate.leave();
        match result {
            Ok(done) => done,
            Err(reason) => Err(CpuFault::Stopped(reason)),
        }
    }

    fn begin(&mut self, trap: Pass) -> Result<(), StopReason> {
        if schedule::yield_point(true) == Turn::Over {
            return Err(StopReason::Abandoned);
        }
        if !self.emu.pending.is_empty() {
            // An earlier program was cut off while it waited.
            self.wait()?;
            self.vcpu.gate.leave();
        }
        self.enter(trap)
    }

    /// Starts to run; the gate is held afterwards.
    fn enter(&self, pass: Pass) -> Result<(), StopReason> {
        let entered = self.domain.hold.enter(&self.vcpu.gate, pass);
        entered.map_err(|_| self.domain.stop_reason())
    }

    /// The instruction is over: what it remembered between passes goes. An answer that it did not consume stays.
    fn forget(&mut self) {
        self.emu.mmio.clear();
        self.emu.reads.clear();
        self.emu.known_page = None;
        self.emu.again = false;
    }

    /// Waits for requests that the finished instruction left behind (port writes, string instructions).
    fn settle(&mut self) -> Result<(), StopReason> {
        if self.emu.pending.is_empty() {
            return Ok(());
        }
        self.wait()
    }

    /// Retries without a request: waits until whatever keeps the instruction from completing has gone.
    fn wait_unstuck(&mut self, trap: Pass) -> Result<(), StopReason> {
        self.forget();
        self.vcpu.gate.leave();
        if let Some(reason) = self.emu.stuck.take()
            && !self.domain.wait_unstuck(&self.vcpu, reason)
            && !self.domain.hold.stopped()
        {
            return Err(StopReason::Abandoned);
        }
        self.enter(trap)
    }

    /// `vcpu_ioreq_handle_completion`: leaves Xen until notified, waits for every server that holds a request, latches the
    /// answer. The gate is held afterwards: no pause comes between the answer's end and the re-execution.
    fn wait(&mut self) -> Result<(), StopReason> {
        self.vcpu.gate.leave();
        self.wait_notified()?;
        self.enter(Pass::Run)?;
        while !self.emu.pending.is_empty() {
            let entry = self.emu.pending.remove(0);
            if let Err(stopped) = self.wait_for_io(&entry) {
                self.emu.pending.insert(0, entry);
                return Err(stopped);
            }
        }
        self.vcpu.set_waiting_on(None);
        let latch = &mut self.emu.latch;
        latch.state = match latch.state {
            LatchState::Sent
                if !latch.req.data_is_ptr() && !posted(latch.req.kind, latch.req.is_read()) =>
            {
                LatchState::Answered
            }
            _ => LatchState::Idle,
        };
        if schedule::yield_point(true) == Turn::Over {
            return Err(StopReason::Abandoned);
        }
        Ok(())
    }

    /// `wait_for_io`, for one of the servers that hold a request.
    fn wait_for_io(&mut self, entry: &Entry) -> Result<(), StopReason> {
        let server = &entry.server;
        let (Some(page), vcpu) = (server.page.get(), self.vcpu.id) else {
            return Ok(());
        };
        let Some(slot) = page.slots.get(vcpu.0 as usize) else {
            return Ok(());
        };
        let mut data = u64::MAX;
        let mut before = STATE_IOREQ_NONE;
        let mut state = slot.state();
        while state != STATE_IOREQ_NONE {
            if server.is_destroyed() {
                // Its record of this vCPU is gone, and with it the request. Whoever was not woken before stays blocked.
                return Ok(());
            }
            if state < before {
                return Err(self.crash(CrashReason::BackwardState {
                    server: server.id,
                    vcpu,
                    from: before,
                    to: state,
                }));
            }
            before = state;
            match state {
                STATE_IORESP_READY => {
                    slot.set_state(STATE_IOREQ_NONE);
                    // Relaxed: `state` acquired the device model's release of RESP_READY.
                    data = slot.data.load(Ordering::Relaxed);
                    break;
                }
                STATE_IOREQ_READY | STATE_IOREQ_INPROCESS => {
                    self.vcpu.block_again();
                    state = slot.state();
                    if state != before {
                        self.vcpu.unblock_self();
                        continue;
                    }
                    self.vcpu.set_waiting_on(Some(server.id));
                    self.vcpu.gate.leave();
                    self.wait_notified()?;
                    self.enter(Pass::Run)?;
                    state = slot.state();
                }
                _ => {
                    return Err(self.crash(CrashReason::UnknownState {
                        server: server.id,
                        vcpu,
                        state,
                    }));
                }
            }
        }
        let latch = &mut self.emu.latch;
        if latch.state == LatchState::Sent && !latch.req.data_is_ptr() {
            latch.req.data = data;
        }
        Ok(())
    }

    /// Blocked in Xen: until a device model notifies, or the domain ends.
    fn wait_notified(&self) -> Result<(), StopReason> {
        let mut spins = match self.domain.config.wait {
            _ if schedule::is_seated() => 0,
            VcpuWait::Spin => SPIN_LIMIT,
            VcpuWait::Adaptive { spins } => spins,
            VcpuWait::Sleep => 0,
        };
        while self.vcpu.is_blocked() {
            if self.domain.hold.stopped() {
                return Err(self.domain.stop_reason());
            }
            if spins > 0 {
                spins -= 1;
                hint::spin_loop();
                continue;
            }
            match schedule::yield_point(false) {
                Turn::Mine => {}
                Turn::Over => return Err(StopReason::Abandoned),
                Turn::Free => self.vcpu.sleep(),
            }
        }
        Ok(())
    }

    /// `domain_crash`, by this vCPU.
    pub(super) fn crash(&self, reason: CrashReason) -> StopReason {
        self.domain.crash(reason);
        self.domain.stop_reason()
    }

    /// Waits (`hlt`) until a device model injects an interrupt for this vCPU, and takes it.
    ///
    /// # Errors
    /// `Stopped` when the domain ends.
    pub fn wait_interrupt(&mut self) -> Result<Injected, CpuFault> {
        loop {
            if let Some(injected) = self.vcpu.take_interrupt() {
                return Ok(injected);
            }
            if self.domain.hold.stopped() {
                return Err(CpuFault::Stopped(self.domain.stop_reason()));
            }
            match schedule::yield_point(false) {
                Turn::Mine => {}
                Turn::Over => return Err(CpuFault::Stopped(StopReason::Abandoned)),
                Turn::Free => {
                    let taken = self.vcpu.wait_interrupt(|| self.domain.hold.stopped());
                    if let Some(injected) = taken {
                        return Ok(injected);
                    }
                }
            }
        }
    }

    /// Takes a pending interrupt, if there is one.
    #[must_use]
    pub fn poll_interrupt(&mut self) -> Option<Injected> {
        self.vcpu.take_interrupt()
    }

    /// Gives way to others (`pause`): for loops that poll memory.
    ///
    /// # Errors
    /// `Stopped` when the domain ends.
    pub fn relax(&mut self) -> Result<(), CpuFault> {
        match schedule::yield_point(false) {
            Turn::Mine => {}
            Turn::Over => return Err(CpuFault::Stopped(StopReason::Abandoned)),
            Turn::Free => thread::yield_now(),
        }
        if self.domain.hold.stopped() {
            return Err(CpuFault::Stopped(self.domain.stop_reason()));
        }
        Ok(())
    }
}

/// Whether the instruction is done without its answer (the opposite of `ioreq_needs_completion`).
pub(super) fn posted(kind: u8, read: bool) -> bool {
    kind == IOREQ_TYPE_PIO && !read
}
