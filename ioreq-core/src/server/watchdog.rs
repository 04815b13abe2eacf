// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tells of handlers that run too long, while they run.
//!
//! A handler cannot be interrupted, and its worker is the one that it holds up, so the control thread tells. A request that is
//! watched pays for a few stores into its worker's own counters: which access it is, and what to. No clock is read: the control
//! thread looks at every beat, and an access that it sees again is as old as its first sight at least. Where no budget was set a
//! request pays nothing (`DirtyLogging::is_plain`).
//!
//! A request is watched as a whole, as an access to where it begins; a store to a tracked page within it (data of a repeated
//! instruction, DMA) by itself.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::bus::{Bus, Place};
use super::control::TICK;
use super::core::Core;
use crate::handler::Space;
use crate::hypervisor::Hypervisor;
use crate::ids::{Gfn, Sbdf, VcpuId};
use crate::memory::Width;
use crate::stats::Calling;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A handler that has run for longer than its [budget](super::Builder::handler_budget), and still runs.
///
/// ```
/// use ioreq_core::server::SlowHandler;
/// fn page_the_operator(slow: &SlowHandler) -> String {
///     format!("{} holds {} up for {:?}", slow.handler, slow.vcpu, slow.running)
/// }
/// # let _ = page_the_operator;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowHandler {
    /// The name of its route, or of its pages' tracker.
    pub handler: Arc<str>,
    /// The vCPU that waits. vCPU 0 for buffered requests, which name none, and for devices' DMA.
    pub vcpu: VcpuId,
    /// Where the access goes.
    pub space: Space,
    /// The port, guest-physical address or configuration register.
    pub addr: u64,
    /// How long it has run, at least.
    pub running: Duration,
}

pub(super) type SlowListener = Arc<dyn Fn(&SlowHandler) + Send + Sync>;

/// A call that was seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    call: u64,
    since: Instant,
    told: bool,
}

/// See the module.
pub(super) struct Watchdog {
    budget: Duration,
    /// By worker.
    seen: Mutex<Vec<Option<Seen>>>,
    /// How many calls were told.
    slow: AtomicU64,
    pub(super) listener: Mutex<Option<SlowListener>>,
}

impl Watchdog {
    pub(super) fn new(budget: Duration) -> Self {
        Watchdog {
            budget,
            seen: Mutex::new(Vec::new()),
            slow: AtomicU64::new(0),
            listener: Mutex::new(None),
        }
    }

    pub(super) fn slow(&self) -> u64 {
        // Relaxed: a statistic.
        self.slow.load(Ordering::Relaxed)
    }

    /// Between two looks.
    pub(super) fn beat(&self) -> Duration {
        (self.budget / 2).clamp(Duration::from_millis(1), TICK)
    }

    /// What runs now; gives what is to be told, and for how long it has run.
    fn look(&self, now: Instant, calls: &[Option<Calling>]) -> Vec<(Calling, Duration)> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.resize(calls.len(), None);
        let mut slow = Vec::new();
        for (seen, calling) in seen.iter_mut().zip(calls) {
            let Some(calling) = calling else {
                *seen = None;
                continue;
            };
            let mut now_seen = match *seen {
                Some(old) if old.call == calling.call => old,
                _ => Seen {
                    call: calling.call,
                    since: now,
                    told: false,
                },
            };
            let running = now.saturating_duration_since(now_seen.since);
            if running >= self.budget && !now_seen.told {
                now_seen.told = true;
                slow.push((*calling, running));
            }
            *seen = Some(now_seen);
        }
        slow
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog")
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

/// Where a call goes: two bits of its word, and its address.
const SPACES: [Space; 3] = [Space::Port, Space::Mmio, Space::Pci];
/// Bits of a PCI register below its function.
const REGISTER_BITS: u32 = 16;

impl Place {
    /// As [`Calling`] has it.
    #[inline]
    pub(super) fn coded(self) -> (u8, u64) {
        match self {
            Place::Port(port) => (0, port.into()),
            Place::Mmio(addr) => (1, addr),
            Place::Pci(sbdf, register) => {
                let function = u64::from(sbdf.bits()) << REGISTER_BITS;
                (2, function | u64::from(register))
            }
        }
    }
}

impl<H: Hypervisor> Bus<'_, H> {
    /// Does what calls a handler, for the watchdog to see. An access that goes on after one within it is seen as a new one.
    pub(super) fn watched<T>(self, place: Place, access: impl FnOnce() -> T) -> T {
        if self.core.watchdog.is_none() {
            return access();
        }
        let watch = &self.counters.watch;
        let outer = watch.calling();
        watch.enter(self.cx.vcpu().0, place.coded());
        let result = access();
        watch.leave();
        if let Some(outer) = outer {
            watch.enter(outer.vcpu.into(), (outer.space, outer.addr));
        }
        result
    }
}

impl<H: Hypervisor> Core<H> {
    /// One look at what every worker calls.
    pub(super) fn watch_handlers(&self) {
        let Some(watchdog) = &self.watchdog else {
            return;
        };
        let calls: Vec<_> = self.counters.iter().map(|c| c.watch.calling()).collect();
        for (calling, running) in watchdog.look(Instant::now(), &calls) {
            let slow = self.describe(calling, running);
            // Relaxed: a statistic.
            watchdog.slow.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                domid = %self.hv.domid(), vcpu = %slow.vcpu, handler = &*slow.handler,
                space = ?slow.space, addr = format_args!("{:#x}", slow.addr), ?running,
                "a handler runs for longer than its budget; the vCPU, and others of its worker, wait"
            );
            let listener = watchdog.listener.lock();
            let listener = listener.unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(listener) = listener
                && std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| listener(&slow)))
                    .is_err()
            {
                tracing::error!(domid = %self.hv.domid(), "the listener for slow handlers panicked");
            }
        }
    }

    fn describe(&self, calling: Calling, running: Duration) -> SlowHandler {
        let space = SPACES.get(usize::from(calling.space));
        let space = space.copied().unwrap_or(Space::Mmio);
        let addr = match space {
            Space::Pci => calling.addr & ((1 << REGISTER_BITS) - 1),
            _ => calling.addr,
        };
        SlowHandler {
            handler: self.name_of(space, calling.addr),
            vcpu: VcpuId(calling.vcpu.into()),
            space,
            addr,
            running,
        }
    }

    /// Whose it is now: the route may have been retracted under its handler.
    fn name_of(&self, space: Space, coded: u64) -> Arc<str> {
        let page = Gfn::of(vm_memory::GuestAddress(coded));
        if space == Space::Mmio
            && let Some(route) = self.pages.route_of(page)
        {
            return Arc::clone(&route.tracker.name);
        }
        let mut reader = self.grace.reader();
        let guard = reader.enter();
        let route = match space {
            Space::Port => u16::try_from(coded)
                .ok()
                .and_then(|port| self.routes.port(port, Width::B1, &guard)),
            Space::Mmio => self.routes.mmio(coded, 1, &guard),
            Space::Pci => u32::try_from(coded >> REGISTER_BITS)
                .ok()
                .and_then(|raw| self.routes.pci(Sbdf::from_bits(raw), &guard)),
        };
        route.map_or_else(
            || "(retracted meanwhile)".into(),
            |route| Arc::clone(&route.name),
        )
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn call(call: u64) -> Option<Calling> {
        let (space, vcpu, addr) = (1, 3, 0x1000);
        Some(Calling {
            call,
            space,
            vcpu,
            addr,
        })
    }

    #[test]
    fn a_call_is_told_once_and_the_next_one_anew() {
        let watchdog = Watchdog::new(Duration::from_secs(2));
        let start = Instant::now();
        let at = |seconds, calls: &[Option<Calling>]| {
            let now = start + Duration::from_secs(seconds);
            let told = watchdog.look(now, calls).into_iter();
            told.map(|(calling, running)| (calling.call, running.as_secs()))
                .collect::<Vec<_>>()
        };
        assert_eq!(at(0, &[call(7), call(8)]), []);
        assert_eq!(at(1, &[call(7), call(8)]), [], "in its budget");
        assert_eq!(at(2, &[call(7), call(9)]), [(7, 2)], "8 has returned");
        assert_eq!(at(3, &[call(7), call(9)]), [], "told already");
        assert_eq!(at(4, &[None, call(9)]), [(9, 2)]);
        assert_eq!(at(5, &[call(7), None]), [], "seen anew");
        assert_eq!(at(9, &[call(7), None]), [(7, 4)]);
    }
}
