// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counts what reaches the server: which vCPU's writes to tables trap, and which of them go to pages that several write. It stands
//! between the shadow and the tracker, and sees every call of a table's handler.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ioreq::claim::{MarkError, PageState, PageTracker};
use ioreq::handler::{Context, PageHandler, PageOutcome, PageWrite, Verdict, WriteSource};
use ioreq::hypervisor::{InjectedEvent, Interrupts, Intx};
use ioreq::{Gfn, GfnRange, Result, Sbdf, VcpuId};

/// What the witness has seen.
#[derive(Debug)]
pub(crate) struct Seen {
    by_vcpu: Box<[AtomicU64]>,
    shared: AtomicU64,
}

impl Seen {
    pub(crate) fn new(vcpus: u32) -> Arc<Self> {
        Arc::new(Seen {
            by_vcpu: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            shared: AtomicU64::new(0),
        })
    }

    /// Trapped writes of each vCPU.
    pub(crate) fn by_vcpu(&self) -> Vec<u64> {
        // Relaxed: counters.
        let counts = self.by_vcpu.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Trapped writes to pages that another vCPU wrote before, while they were the same table.
    pub(crate) fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }
}

/// A page's handler, watched.
struct Watched {
    handler: Arc<dyn PageHandler>,
    seen: Arc<Seen>,
    /// A bit for each vCPU that wrote.
    writers: AtomicU32,
}

impl PageHandler for Watched {
    fn write(&self, cx: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
        if write.source() == WriteSource::Trapped {
            let vcpu = cx.vcpu().0;
            let bit = 1_u32.checked_shl(vcpu).unwrap_or(0);
            // Relaxed: in the page's order, and a counter.
            let others = self.writers.fetch_or(bit, Ordering::Relaxed) & !bit;
            if others != 0 {
                self.seen.shared.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(count) = self.seen.by_vcpu.get(vcpu as usize) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.handler.write(cx, write)
    }

    fn fallback(&self) -> Verdict {
        self.handler.fallback()
    }
}

/// The tracker that the shadow is given.
pub(crate) struct Witness<T> {
    tracker: T,
    seen: Arc<Seen>,
}

impl<T: PageTracker> Witness<T> {
    pub(crate) fn new(tracker: T, seen: Arc<Seen>) -> Self {
        Witness { tracker, seen }
    }

    fn watched(&self, handler: Arc<dyn PageHandler>) -> Arc<dyn PageHandler> {
        Arc::new(Watched {
            handler,
            seen: Arc::clone(&self.seen),
            writers: AtomicU32::new(0),
        })
    }
}

impl<T: PageTracker> PageTracker for Witness<T> {
    fn track(
        &self,
        pages: GfnRange,
        handler: Arc<dyn PageHandler>,
    ) -> std::result::Result<(), MarkError> {
        self.tracker.track(pages, self.watched(handler))
    }

    fn track_each(
        &self,
        pages: Vec<(Gfn, Arc<dyn PageHandler>)>,
    ) -> std::result::Result<(), MarkError> {
        let watched = |(gfn, handler)| (gfn, self.watched(handler));
        self.tracker
            .track_each(pages.into_iter().map(watched).collect())
    }

    fn replace(&self, pages: GfnRange, handler: Arc<dyn PageHandler>) -> Result<()> {
        self.tracker.replace(pages, self.watched(handler))
    }

    fn untrack(&self, pages: GfnRange) -> Result<()> {
        self.tracker.untrack(pages)
    }

    fn state(&self, gfn: Gfn) -> PageState {
        self.tracker.state(gfn)
    }
}

/// The engine's interrupts, counted.
pub(crate) struct Counted<H> {
    to: Arc<H>,
    sent: AtomicU64,
}

impl<H> Counted<H> {
    pub(crate) fn new(to: Arc<H>) -> Arc<Self> {
        Arc::new(Counted {
            to,
            sent: AtomicU64::new(0),
        })
    }

    /// Message-signalled interrupts that the hypervisor took.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl<H> fmt::Debug for Counted<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted")
            .field("sent", &self.sent())
            .finish_non_exhaustive()
    }
}

impl<H: Interrupts> Interrupts for Counted<H> {
    fn set_pci_intx(&self, function: Sbdf, pin: Intx, asserted: bool) -> Result<()> {
        self.to.set_pci_intx(function, pin, asserted)
    }
    fn set_isa_irq(&self, irq: u8, asserted: bool) -> Result<()> {
        self.to.set_isa_irq(irq, asserted)
    }
    fn inject_msi(&self, addr: u64, data: u32) -> Result<()> {
        self.to.inject_msi(addr, data)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn set_pci_link_route(&self, link: u8, irq: u8) -> Result<()> {
        self.to.set_pci_link_route(link, irq)
    }
    fn set_irq_level(&self, irq: u32, asserted: bool) -> Result<()> {
        self.to.set_irq_level(irq, asserted)
    }
    fn inject_event(&self, vcpu: VcpuId, event: InjectedEvent) -> Result<()> {
        self.to.inject_event(vcpu, event)
    }
}
