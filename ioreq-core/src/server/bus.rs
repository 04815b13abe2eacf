// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Single accesses: from an address to its route, to its handler, to what becomes of the access.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use vm_memory::GuestAddress;

use super::core::Core;
use crate::dispatch::{Lead, Locked, Page, PageRoute, ReadGuard, Route};
use crate::handler::scope::Scope;
use crate::handler::{
    Access, Batch, BatchOutcome, Context, HandlerRef, PageOutcome, PageWrite, Pending, ReadOutcome,
    Reply, Space, Verdict, WriteOutcome, WriteSource,
};
use crate::hypervisor::Hypervisor;
use crate::ids::{Gfn, PAGE_SIZE, Sbdf};
use crate::memory::{GuestRam, Width};
use crate::request::{Io, Plain, Target};
use crate::stats::WorkerCounters;
use crate::sync::atomic::{Ordering, fence};

/// Why an access is not done yet.
#[derive(Debug)]
pub(super) enum Pause {
    /// The page is being unmarked: try again.
    Parked,
    /// A device's handler answers later.
    Deferred(Arc<Pending>),
    /// A tracked page's handler says later what becomes of the write.
    Undecided(Arc<Pending>),
}

/// A route and its handler; None for a page that is leaving.
#[inline(always)]
pub(super) fn with_handler(
    lead: Option<Lead<'_, PageRoute>>,
) -> Option<(&PageRoute, HandlerRef<'_>)> {
    let Lead { route, own } = lead?;
    match own {
        Some(own) => Some((route, own)),
        None => Some((route, route.handler.as_ref()?.get())),
    }
}

/// Runs a handler; None if it panicked.
#[inline(always)]
fn call<T>(page: bool, handler: impl FnOnce() -> T) -> Option<T> {
    let _scope = Scope::enter(page);
    // A handler that panicked may have left its own state half-changed; that is its own affair, as with a poisoned lock
    // whose holder goes on. The framework's state is not in reach of the closure.
    catch_unwind(AssertUnwindSafe(handler)).ok()
}

/// What an access goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Port(u16),
    Mmio(u64),
    Pci(Sbdf, u16),
}

impl Place {
    /// Where an access begins.
    pub(super) fn of(io: &Io) -> Self {
        match io.target() {
            Target::Port(port) => Place::Port(port),
            Target::Mmio(addr) => Place::Mmio(addr.0),
            Target::Pci { sbdf, register } => Place::Pci(sbdf, register),
        }
    }

    fn space(self) -> Space {
        match self {
            Place::Port(_) => Space::Port,
            Place::Mmio(_) => Space::Mmio,
            Place::Pci(..) => Space::Pci,
        }
    }

    fn addr(self) -> u64 {
        match self {
            Place::Port(port) => port.into(),
            Place::Mmio(addr) => addr,
            Place::Pci(_, register) => register.into(),
        }
    }
}

/// Everything that one worker's accesses need, for one request.
pub(super) struct Bus<'a, H: Hypervisor> {
    pub(super) core: &'a Core<H>,
    pub(super) cx: &'a Context<'a>,
    /// The same guest memory, where stores into it are not logged: no virtual call is needed then.
    pub(super) memory: Option<&'a H::Memory>,
    pub(super) guard: &'a ReadGuard<'a>,
    pub(super) counters: &'a WorkerCounters,
    /// Index of this worker's counters in per-route arrays.
    pub(super) worker: usize,
}

// Not derived: that would ask the same of `H`.
impl<H: Hypervisor> Clone for Bus<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H: Hypervisor> Copy for Bus<'_, H> {}

/// Taken by value: what is taken by reference has to be in memory, on the way of every request.
impl<'a, H: Hypervisor> Bus<'a, H> {
    #[inline(always)]
    fn find(self, place: Place, width: Width) -> Option<(&'a Route, Access)> {
        let route = match place {
            Place::Port(port) => self.core.routes.port(port, width, self.guard),
            Place::Mmio(addr) => self.core.routes.mmio(addr, width.bytes(), self.guard),
            Place::Pci(sbdf, _) => self.core.routes.pci(sbdf, self.guard),
        }?;
        let addr = place.addr();
        let offset = if place.space() == Space::Pci {
            addr
        } else {
            addr - route.base
        };
        Some((
            route,
            Access {
                space: place.space(),
                addr,
                offset,
                width,
            },
        ))
    }

    /// Guest memory. Where the compiler sees which it is, no virtual call is made.
    #[inline(always)]
    fn ram(self) -> &'a dyn GuestRam {
        match self.memory {
            Some(memory) => memory,
            None => self.cx.ram(),
        }
    }

    /// A plain access, and what answers it: the value of a read.
    #[inline(always)]
    pub(super) fn plain(self, plain: Plain) -> Result<Option<u64>, Pause> {
        let Plain {
            is_port,
            is_read,
            width,
            addr,
            data,
        } = plain;
        let value = || width.cut(data);
        #[allow(clippy::cast_possible_truncation, reason = "a port is below 65536")]
        let port = addr as u16;
        match (is_port, is_read) {
            (true, true) => self.counters.port_reads.bump(),
            (true, false) => self.counters.port_writes.bump(),
            (false, true) => self.counters.mmio_reads.bump(),
            (false, false) => self.counters.mmio_writes.bump(),
        }
        match (is_port, is_read) {
            (true, true) => self.read(Place::Port(port), width).map(Some),
            (true, false) => self.write(Place::Port(port), width, value()).map(|()| None),
            (false, true) => self.read(Place::Mmio(addr), width).map(Some),
            (false, false) => self.write(Place::Mmio(addr), width, value()).map(|()| None),
        }
    }

    /// One read. All-ones where nobody answers.
    #[inline(always)]
    pub(super) fn read(self, place: Place, width: Width) -> Result<u64, Pause> {
        let Some((route, access)) = self.find(place, width) else {
            return Ok(self
                .core
                .unclaimed_read(self.cx, self.counters, place, width));
        };
        let counters = route.counters.of(self.worker);
        if let Some(counters) = counters {
            counters.reads.bump();
        }
        let cx = self.cx;
        match call(false, move || route.handler.read(cx, access)) {
            Some(ReadOutcome::Value(value)) => Ok(width.cut(value)),
            Some(ReadOutcome::Refused(why)) => {
                self.core
                    .refused(self.cx, self.counters, (route, counters), why, access);
                Ok(width.all_ones())
            }
            Some(ReadOutcome::Defer(deferred)) => Err(Pause::Deferred(deferred.into_pending())),
            None => {
                self.core
                    .panicked(self.cx, self.counters, &route.name, counters);
                Ok(width.all_ones())
            }
        }
    }

    /// One write, of a value cut to its width, to a port, an MMIO address or configuration space; a write to guest memory goes
    /// to [`Self::store`].
    #[inline(always)]
    pub(super) fn write(self, place: Place, width: Width, value: u64) -> Result<(), Pause> {
        if let Place::Mmio(addr) = place
            && let Some(result) = self.write_tracked(addr, width, value)
        {
            return result;
        }
        let Some((route, access)) = self.find(place, width) else {
            self.core
                .unclaimed_write(self.cx, self.counters, place, width, value);
            return Ok(());
        };
        let counters = route.counters.of(self.worker);
        if let Some(counters) = counters {
            counters.writes.bump();
        }
        let cx = self.cx;
        match call(false, move || route.handler.write(cx, access, value)) {
            Some(WriteOutcome::Done) => Ok(()),
            Some(WriteOutcome::Refused(why)) => {
                self.core
                    .refused(self.cx, self.counters, (route, counters), why, access);
                Ok(())
            }
            Some(WriteOutcome::Defer(deferred)) => Err(Pause::Deferred(deferred.into_pending())),
            None => {
                self.core
                    .panicked(self.cx, self.counters, &route.name, counters);
                Ok(())
            }
        }
    }

    /// Offers elements of a repeated instruction to their handler at once. None if they go one by one.
    pub(super) fn batch(
        self,
        place: Place,
        width: Width,
        stride: i64,
        values: &mut [u64],
        read: bool,
    ) -> Option<()> {
        let (route, first) = self.find(place, width)?;
        let batch = Batch {
            first,
            stride,
            len: values.len(),
        };
        let last = batch.get(batch.len.checked_sub(1)?);
        // A write to a tracked page is its handler's, whatever range lies over it. A batch is at most 512 bytes: two pages.
        let is_tracked = |addr| {
            let gfn = Gfn::of(GuestAddress(addr));
            self.core.pages.find(gfn, self.guard).is_some()
        };
        let (low, high) = (first.addr.min(last.addr), first.addr.max(last.addr));
        if !read
            && place.space() == Space::Mmio
            && (is_tracked(low) || is_tracked(high + (width.bytes() - 1)))
        {
            return None;
        }
        // Two ends inside one range: so is everything between.
        if place.space() != Space::Port {
            let covers = self
                .core
                .routes
                .mmio(last.addr, width.bytes(), self.guard)?;
            if !std::ptr::eq(covers, route) {
                return None;
            }
        }
        let cx = self.cx;
        let outcome = call(false, || {
            if read {
                route.handler.read_batch(cx, &batch, values)
            } else {
                route.handler.write_batch(cx, &batch, values)
            }
        });
        let counters = route.counters.of(self.worker);
        match outcome {
            Some(BatchOutcome::OneByOne) => return None,
            Some(BatchOutcome::Done) => {}
            Some(BatchOutcome::Refused(why)) => {
                values.fill(width.all_ones());
                self.core
                    .refused(self.cx, self.counters, (route, counters), why, first);
            }
            None => {
                values.fill(width.all_ones());
                self.core
                    .panicked(self.cx, self.counters, &route.name, counters);
            }
        }
        if let Some(counters) = counters {
            let counter = if read {
                &counters.reads
            } else {
                &counters.writes
            };
            counter.add(values.len() as u64);
        }
        values
            .iter_mut()
            .for_each(|value| *value = width.cut(*value));
        Some(())
    }

    /// A trapped write, if the page is tracked or was until just now.
    #[inline(always)]
    fn write_tracked(self, addr: u64, width: Width, value: u64) -> Option<Result<(), Pause>> {
        let page = self
            .core
            .pages
            .find(Gfn::of(GuestAddress(addr)), self.guard)?;
        let written = self.write_page(&page, addr, width, value, WriteSource::Trapped);
        // One that has to wait comes again.
        if !matches!(written, Err(Pause::Parked)) {
            self.counters.page_writes.bump();
        }
        Some(written)
    }

    /// The same for others than trapped writes, which are fewer.
    #[inline(never)]
    fn write_page_too(
        self,
        page: &Page<'_, PageRoute>,
        addr: u64,
        width: Width,
        value: u64,
        source: WriteSource,
    ) -> Result<(), Pause> {
        self.write_page(page, addr, width, value, source)
    }

    /// Handler and store of one write to a tracked page, in the page's order.
    #[inline(always)]
    fn write_page(
        self,
        page: &Page<'_, PageRoute>,
        addr: u64,
        width: Width,
        value: u64,
        source: WriteSource,
    ) -> Result<(), Pause> {
        let Ok(order) = page.lock() else {
            return Err(Pause::Parked);
        };
        // The route as it is now that the order is ours; none if the page left while we waited for it.
        let lead = page.lead();
        let (route, handler) = match with_handler(lead) {
            Some(found) => found,
            None => match self.core.write_leaving(
                self.cx,
                self.counters,
                page,
                (addr, width, value),
                source,
            ) {
                Some(found) => found,
                None => {
                    drop(order);
                    return match (lead, source) {
                        // It left for good while we waited; it may have come back.
                        (None, WriteSource::Framework | WriteSource::Dma) => {
                            self.tracked_meanwhile(GuestAddress(addr), width, value, source)
                        }
                        _ => Ok(()),
                    };
                }
            },
        };
        let counters = route.tracker.counters.of(self.worker);
        if let Some(counters) = counters {
            counters.writes.bump();
        }
        let Some(write) = PageWrite::of_cut(GuestAddress(addr), width, value, source, self.ram())
        else {
            // Xen splits accesses at page ends, and so do we: this is a guest playing with its slot.
            self.counters.malformed.bump();
            return Ok(());
        };
        let cx = self.cx;
        let outcome = call(true, || handler.write(cx, &write));
        if let Some(PageOutcome::Apply) = outcome {
            self.store_ram(addr, width, value);
            drop(order);
            return Ok(());
        }
        let verdict = match outcome {
            Some(PageOutcome::Apply) => Verdict::Apply,
            Some(PageOutcome::Replace(value)) => Verdict::Replace(value),
            Some(PageOutcome::Drop | PageOutcome::Done) => Verdict::Drop,
            Some(PageOutcome::Defer(deferred)) if source == WriteSource::Trapped => {
                return Err(Pause::Undecided(deferred.into_pending()));
            }
            Some(PageOutcome::Defer(deferred)) => {
                // No vCPU waits for this very store, so none can be held: it is made when the verdict comes.
                self.store_when_told(
                    deferred.into_pending(),
                    write.addr(),
                    width,
                    value,
                    route.fallback,
                );
                return Ok(());
            }
            None => {
                self.core
                    .panicked(self.cx, self.counters, &route.tracker.name, counters);
                self.core.break_page(write.gfn(), handler);
                route.fallback
            }
        };
        self.settle(addr, width, value, verdict);
        drop(order);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn store_when_told(
        self,
        pending: Arc<Pending>,
        addr: GuestAddress,
        width: Width,
        value: u64,
        fallback: Verdict,
    ) {
        let (hv, dirty) = (Arc::clone(&self.core.hv), Arc::clone(&self.core.dirty));
        pending.install(Box::new(move |reply| {
            let verdict = match reply {
                Some(Reply::Verdict(verdict)) => verdict,
                _ => fallback,
            };
            let value = match verdict {
                Verdict::Apply => value,
                Verdict::Replace(other) => width.cut(other),
                Verdict::Drop => return,
            };
            // Memory that is gone by now needs no store.
            if GuestRam::store(&*hv.memory(), addr, width, value).is_err() {
                return;
            }
            // SeqCst: our store, then the look, by a thread that nobody waits for when logging begins; pairs with the SeqCst
            // store in `DirtyLogging::set`: either it is told, or whoever begins to log finds it in memory.
            fence(Ordering::SeqCst);
            if dirty.is_on() {
                dirty.tell(&*hv, &[Gfn::of(addr).into()]);
            }
        }));
    }

    /// Carries out a verdict that came later: in the page's order, if the page is still tracked.
    pub(super) fn settle_later(
        self,
        addr: u64,
        width: Width,
        value: u64,
        verdict: Option<Verdict>,
    ) -> Result<(), Pause> {
        let page = self
            .core
            .pages
            .find(Gfn::of(GuestAddress(addr)), self.guard);
        let order: Option<Locked<'_>> = match &page {
            Some(page) => Some(page.lock().map_err(|_| Pause::Parked)?),
            None => None,
        };
        let route = page.as_ref().and_then(Page::route);
        let verdict = verdict
            .or(route.map(|route| route.fallback))
            .unwrap_or_default();
        self.settle(addr, width, value, verdict);
        drop(order);
        Ok(())
    }

    #[inline(always)]
    fn settle(self, addr: u64, width: Width, value: u64, verdict: Verdict) {
        match verdict {
            Verdict::Apply => self.store_ram(addr, width, value),
            Verdict::Replace(value) => self.store_ram(addr, width, width.cut(value)),
            Verdict::Drop => {}
        }
    }

    /// Stores into guest memory; into tracked pages through their handlers. An element may cross a page's end.
    pub(super) fn store(
        self,
        addr: GuestAddress,
        width: Width,
        value: u64,
        source: WriteSource,
    ) -> Result<(), Pause> {
        if addr.0 % PAGE_SIZE + width.bytes() > PAGE_SIZE {
            return self.store_across(addr, width, value, source);
        }
        match self.core.pages.find(Gfn::of(addr), self.guard) {
            Some(page) => self.watched(Place::Mmio(addr.0), || {
                self.write_page_too(&page, addr.0, width, value, source)
            }),
            None => {
                self.store_ram(addr.0, width, value);
                self.tracked_meanwhile(addr, width, value, source)
            }
        }
    }

    /// A page that came to be tracked while we stored into it: whoever tracks it may have read it before our store, so the
    /// write is told to its handler after all.
    fn tracked_meanwhile(
        self,
        addr: GuestAddress,
        width: Width,
        value: u64,
        source: WriteSource,
    ) -> Result<(), Pause> {
        // SeqCst: pairs with the tracker's publishing of the route, marking and then reading of the page: either our store is
        // in what it reads, or we see its route.
        fence(Ordering::SeqCst);
        match self.core.pages.find(Gfn::of(addr), self.guard) {
            Some(page) => self.write_page_too(&page, addr.0, width, value, source),
            None => Ok(()),
        }
    }

    /// Byte by byte, as two pages have two orders. A byte whose page is parked makes the whole element start again, which
    /// stores the same bytes once more.
    fn store_across(
        self,
        addr: GuestAddress,
        width: Width,
        value: u64,
        source: WriteSource,
    ) -> Result<(), Pause> {
        for (at, byte) in (0..).zip(value.to_le_bytes().into_iter().take(width.size())) {
            let Some(addr) = addr.0.checked_add(at) else {
                break;
            };
            self.store(GuestAddress(addr), Width::B1, byte.into(), source)?;
        }
        Ok(())
    }

    /// Data of a repeated instruction; None, counted, if it is not guest memory.
    pub(super) fn load(self, addr: GuestAddress, width: Width) -> Option<u64> {
        let value = self.cx.ram().load(addr, width).ok();
        if value.is_none() {
            self.counters.data_faults.bump();
        }
        value
    }

    #[inline(always)]
    fn store_ram(self, addr: u64, width: Width, value: u64) {
        if self.ram().store(GuestAddress(addr), width, value).is_err() {
            self.counters.data_faults.bump();
        }
    }
}
