// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults on purpose: events lost, late, doubled or out of nowhere, and hypercalls that fail half-way.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::evtchn::Channel;

/// What goes wrong in a domain on purpose. Each is off until asked for.
///
/// ```
/// use ioreq_core::{GfnRange, P2mType};
/// use ioreq_sim::{DomainConfig, Machine};
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// domain.faults().fail_set_mem_type_after(2);
/// let pages = GfnRange::sized(0x10, 4)?;
/// let raw = domain.hypervisor().raw();
/// assert_eq!(raw.set_mem_type(P2mType::RamRo.raw(), 0, pages.first(), 4), Err(12)); // ENOMEM
/// assert_eq!(domain.mem_type(0x11), Some(P2mType::RamRo)); // two pages were done
/// assert_eq!(domain.mem_type(0x12), Some(P2mType::RamRw));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Faults {
    /// Whether any of the event faults is on: the only thing that an undisturbed event looks at.
    armed: AtomicBool,
    events: Mutex<EventFaults>,
    /// Pages that set_mem_type still changes before it fails, plus one; 0 is off.
    set_mem_type: AtomicU64,
    /// Reads of events that fail.
    event_reads: AtomicU64,
    errno: AtomicI32,
}

#[derive(Debug, Default)]
struct EventFaults {
    lose: u64,
    double: u64,
    overflow: u64,
    delay: bool,
    late: Vec<Arc<Channel>>,
}

impl Faults {
    fn events(&self, change: impl FnOnce(&mut EventFaults)) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut events);
        // Relaxed: whoever sends an event after this call in program order, or learnt of it by other means, sees it.
        self.armed.store(true, Ordering::Relaxed);
    }

    /// Loses the next `n` events to device models.
    pub fn lose_events(&self, n: u64) {
        self.events(|e| e.lose += n);
    }

    /// Sends the next `n` events twice.
    pub fn double_events(&self, n: u64) {
        self.events(|e| e.double += n);
    }

    /// Makes the event ring that the next `n` events go to overflow, each: the event is lost, and the device model is told so when
    /// it reads its events (EFBIG).
    pub fn overflow_events(&self, n: u64) {
        self.events(|e| e.overflow += n);
    }

    /// Makes the next `n` reads of events fail with `errno`, e.g. EINTR.
    pub fn fail_event_reads(&self, n: u64, errno: i32) {
        // Relaxed, both: a read that sees only one of the two succeeds or fails with the errno of earlier.
        self.errno.store(errno, Ordering::Relaxed);
        self.event_reads.fetch_add(n, Ordering::Relaxed);
    }

    /// The failure of this read of events, if it is to fail.
    pub(crate) fn take_event_read(&self) -> Option<i32> {
        // Relaxed: the number alone counts.
        let left = self
            .event_reads
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        left.ok().map(|_| self.errno.load(Ordering::Relaxed))
    }

    /// Holds events back until [`release_events`](Self::release_events).
    pub fn delay_events(&self) {
        self.events(|e| e.delay = true);
    }

    /// Sends what [`delay_events`](Self::delay_events) held back, and delays no more.
    pub fn release_events(&self) {
        let mut late = Vec::new();
        self.events(|e| {
            e.delay = false;
            late = std::mem::take(&mut e.late);
        });
        late.iter().for_each(|channel| channel.raise());
    }

    /// Makes the next `set_mem_type` fail with ENOMEM once it has changed `pages` pages.
    pub fn fail_set_mem_type_after(&self, pages: u64) {
        // Relaxed: the caller's next hypercall sees it; others are not promised anything.
        self.set_mem_type
            .store(pages.saturating_add(1), Ordering::Relaxed);
    }

    /// Pages until the failure that was asked for, which is hereby used up.
    pub(crate) fn take_set_mem_type(&self) -> Option<u64> {
        self.set_mem_type.swap(0, Ordering::Relaxed).checked_sub(1)
    }

    /// An event on its way to a device model, with what is to go wrong.
    pub(crate) fn deliver(&self, channel: &Arc<Channel>) {
        if !self.armed.load(Ordering::Relaxed) {
            return channel.raise();
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.lose > 0 {
            events.lose -= 1;
        } else if events.delay {
            events.late.push(Arc::clone(channel));
        } else if events.overflow > 0 {
            events.overflow -= 1;
            drop(events);
            channel.overflow_next();
            channel.raise();
        } else if events.double > 0 {
            events.double -= 1;
            drop(events);
            channel.raise();
            channel.raise();
        } else {
            drop(events);
            channel.raise();
        }
    }
}
