// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who may run: the pause count and the p2m lock of a domain, without a lock on the vCPUs' side.
//!
//! A vCPU says in its own word (its *gate*) what it is doing; a controller announces what it wants in the domain's word
//! (the *hold*) and waits until the gates allow it. Each side stores its own word before it loads the other's, both
//! sequentially consistent, so one of the two always sees the other.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crossbeam::utils::{Backoff, CachePadded};

use crate::schedule::{self, Turn};

/// What a vCPU does while its gate is not out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Pass {
    /// Handles a nested page fault, from the trap until the request is READY: Xen holds the p2m lock.
    Fault = 1,
    /// Runs in Xen or in the guest without that lock; re-execution, for one.
    Run = 2,
}

const OUT: u32 = 0;

/// A vCPU's gate.
#[derive(Debug, Default)]
pub(crate) struct Gate(CachePadded<AtomicU32>);

impl Gate {
    /// Leaves Xen and the guest: from here on a pause need not wait for this vCPU.
    pub(crate) fn leave(&self) {
        // Release: pairs with the controller's load in `wait_for`, which then sees all that the vCPU did.
        self.0.store(OUT, Ordering::Release);
    }
}

const PAUSE: u32 = 1;
const PAUSE_MASK: u32 = 0xffff;
const P2M: u32 = 1 << 16;
const P2M_MASK: u32 = 0xff << 16;
const STOP: u32 = 1 << 31;

/// A domain's hold on its vCPUs.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    word: CachePadded<AtomicU32>,
    released: Condvar,
    lock: Mutex<()>,
}

/// The domain is stopped for good.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

impl Hold {
    /// A vCPU starts to run; waits while a controller keeps it out.
    pub(crate) fn enter(&self, gate: &Gate, pass: Pass) -> Result<(), Stopped> {
        let keeps_out = match pass {
            Pass::Fault => PAUSE_MASK | P2M_MASK | STOP,
            Pass::Run => PAUSE_MASK | STOP,
        };
        loop {
            // SeqCst: this store comes before the load below in the one order, as `announce` comes before its loads.
            gate.0.store(pass as u32, Ordering::SeqCst);
            let word = self.word.load(Ordering::SeqCst);
            if word & keeps_out == 0 {
                return Ok(());
            }
            gate.leave();
            if word & STOP != 0 {
                return Err(Stopped);
            }
            self.wait_while(keeps_out & !STOP);
        }
    }

    /// Whether a vCPU would be kept from running.
    pub(crate) fn stopped(&self) -> bool {
        // Acquire: pairs with `stop`, so that the reason is seen too.
        self.word.load(Ordering::Acquire) & STOP != 0
    }

    fn wait_while(&self, mask: u32) {
        let held = || {
            let word = self.word.load(Ordering::Acquire);
            word & mask != 0 && word & STOP == 0
        };
        let backoff = Backoff::new();
        while held() {
            match schedule::yield_point(false) {
                Turn::Mine => continue,
                Turn::Over => {}
                Turn::Free => {}
            }
            if !backoff.is_completed() {
                backoff.snooze();
                continue;
            }
            let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock `release` cannot slip in between this look and the wait.
            let _guard = self
                .released
                .wait_while(guard, |()| held())
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn announce<'a>(
        &self,
        what: u32,
        gates: impl IntoIterator<Item = &'a Gate>,
        waits: impl Fn(u32) -> bool,
    ) {
        // SeqCst: pairs with `enter`.
        self.word.fetch_add(what, Ordering::SeqCst);
        for gate in gates {
            let backoff = Backoff::new();
            while waits(gate.0.load(Ordering::SeqCst)) {
                if schedule::yield_point(false) != Turn::Mine {
                    backoff.snooze();
                }
            }
        }
    }

    fn release(&self, what: u32) {
        // Release: a vCPU that enters now sees what the controller changed.
        self.word.fetch_sub(what, Ordering::SeqCst);
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.released.notify_all();
    }

    /// `domain_pause`: when it returns, no vCPU runs.
    pub(crate) fn pause<'a>(&self, gates: impl IntoIterator<Item = &'a Gate>) {
        self.announce(PAUSE, gates, |gate| gate != OUT);
    }

    /// `domain_unpause`.
    pub(crate) fn unpause(&self) {
        self.release(PAUSE);
    }

    /// Takes the p2m lock: when it returns, no vCPU is in the first pass of a fault, and none starts one.
    pub(crate) fn lock_p2m<'a>(&self, gates: impl IntoIterator<Item = &'a Gate>) {
        self.announce(P2M, gates, |gate| gate == Pass::Fault as u32);
    }

    /// Releases the p2m lock.
    pub(crate) fn unlock_p2m(&self) {
        self.release(P2M);
    }

    /// Nothing runs any more. The caller has stored the reason before.
    pub(crate) fn stop(&self) {
        // SeqCst: as `announce`; a vCPU that enters later is refused.
        self.word.fetch_or(STOP, Ordering::SeqCst);
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_pause_waits_for_a_running_vcpu_and_keeps_it_out_after() {
        let shared = Arc::new((Hold::default(), Gate::default(), AtomicBool::new(false)));
        shared.0.enter(&shared.1, Pass::Run).unwrap();
        let controller = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                shared.0.pause([&shared.1]);
                assert!(shared.2.load(Ordering::SeqCst), "paused a running vCPU");
            })
        };
        shared.2.store(true, Ordering::SeqCst);
        shared.1.leave();
        controller.join().unwrap();
        let vcpu = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                shared.0.enter(&shared.1, Pass::Run).unwrap();
                assert!(!shared.2.load(Ordering::SeqCst), "ran while paused");
            })
        };
        shared.2.store(false, Ordering::SeqCst);
        shared.0.unpause();
        vcpu.join().unwrap();
    }

    #[test]
    fn the_p2m_lock_excludes_faults_but_not_re_execution() {
        let (hold, gate) = (Hold::default(), Gate::default());
        hold.enter(&gate, Pass::Run).unwrap();
        hold.lock_p2m([&gate]); // does not wait
        hold.unlock_p2m();
    }

    #[test]
    fn a_stopped_domain_runs_nothing() {
        let (hold, gate) = (Hold::default(), Gate::default());
        hold.stop();
        assert_eq!(hold.enter(&gate, Pass::Fault), Err(Stopped));
        hold.pause([&gate]); // the gate was left
    }
}
