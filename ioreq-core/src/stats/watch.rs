// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which handler a worker is in, for other threads to see.

use crate::sync::atomic::{AtomicU64, Ordering};

/// A call that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Calling {
    /// The number of the call; another one, another number.
    pub(crate) call: u64,
    /// What `addr` is in: see [`watchdog`](crate::server::SlowHandler).
    pub(crate) space: u8,
    pub(crate) vcpu: u8,
    pub(crate) addr: u64,
}

const VCPU_BITS: u32 = 8;
const SPACE_BITS: u32 = 2;
/// Set while a handler runs.
const RUNS: u64 = 1;
const SHIFT: u32 = 1 + SPACE_BITS + VCPU_BITS;

/// One worker's call: number, vCPU, space, and whether it runs, in one word.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    word: AtomicU64,
    addr: AtomicU64,
}

impl Watch {
    /// A call begins. Only the worker that owns this calls it.
    pub(crate) fn enter(&self, vcpu: u32, (space, addr): (u8, u64)) {
        // Relaxed: the one writer's own.
        let number = (self.word.load(Ordering::Relaxed) >> SHIFT).wrapping_add(1);
        // Relaxed: the word's Release orders it.
        self.addr.store(addr, Ordering::Relaxed);
        let vcpu = u64::from(vcpu) & ((1 << VCPU_BITS) - 1);
        let word = number << SHIFT | vcpu << (1 + SPACE_BITS) | u64::from(space) << 1 | RUNS;
        // Release: pairs with the Acquire in `calling`, which then has this call's address, or a later one's.
        self.word.store(word, Ordering::Release);
    }

    /// It has ended.
    pub(crate) fn leave(&self) {
        // Relaxed: the one writer's own; whoever sees it late sees a call that is over, and tells of none.
        let word = self.word.load(Ordering::Relaxed) & !RUNS;
        self.word.store(word, Ordering::Relaxed);
    }

    /// The call that runs now, for any thread.
    pub(crate) fn calling(&self) -> Option<Calling> {
        // Acquire: pairs with the Release in `enter`.
        let word = self.word.load(Ordering::Acquire);
        if word & RUNS == 0 {
            return None;
        }
        // Relaxed: as just ordered. One that is of a later call goes with a call that is not slow.
        let addr = self.addr.load(Ordering::Relaxed);
        let field = |shift: u32, bits: u32| word >> shift & ((1 << bits) - 1);
        Some(Calling {
            call: word >> SHIFT,
            space: u8::try_from(field(1, SPACE_BITS)).unwrap_or_default(),
            vcpu: u8::try_from(field(1 + SPACE_BITS, VCPU_BITS)).unwrap_or_default(),
            addr,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_seen_while_it_runs_and_each_has_its_number() {
        let watch = Watch::default();
        assert_eq!(watch.calling(), None);
        for call in 1..=3 {
            let (space, vcpu, addr) = (2, 127, u64::MAX - call);
            watch.enter(vcpu.into(), (space, addr));
            assert_eq!(
                watch.calling(),
                Some(Calling {
                    call,
                    space,
                    vcpu,
                    addr
                })
            );
            watch.leave();
            assert_eq!(watch.calling(), None);
        }
    }
}
