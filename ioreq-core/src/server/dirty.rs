// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Dirty logging: while the hypervisor logs the guest's writes, it is told of the framework's own stores into guest memory,
//! which it does not see.
//!
//! Whoever logs (a live migration) copies a page again only if it is told that it changed. So a store is told *before* the
//! request is answered that caused it: a vCPU that has its answer can suspend its domain, and then the last pages are copied.
//!
//! Whether to tell is looked up once a request. [`IoreqServer::set_dirty_logging`](super::IoreqServer::set_dirty_logging)
//! waits until every request that may have looked before is over.

use std::sync::PoisonError;

use vm_memory::GuestAddress;

use super::core::Core;
use super::log_limit::LogLimit;
use crate::hypervisor::Hypervisor;
use crate::ids::Gfn;
use crate::memory::{GuestRam, RamError, Width};
use crate::range::GfnRange;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Extents told at once: what one `XEN_DMOP_modified_memory` takes.
const EXTENTS: usize = 256;

const LOGS: u8 = 1;
const WATCHED: u8 = 2;

/// Whether stores are told, and how that went.
#[derive(Debug)]
pub(super) struct DirtyLogging {
    /// [`LOGS`] while it is on, and [`WATCHED`]: so a request's way looks once for all.
    flags: AtomicU8,
    /// [`WATCHED`] for a server whose handlers are watched, or that has a journal.
    watched: u8,
    /// Pages that could not be told.
    faults: AtomicU64,
    log_limit: LogLimit,
}

impl DirtyLogging {
    pub(super) fn new(watched: bool) -> Self {
        let watched = if watched { WATCHED } else { 0 };
        DirtyLogging {
            flags: AtomicU8::new(watched),
            watched,
            faults: AtomicU64::new(0),
            log_limit: LogLimit::new(),
        }
    }

    pub(super) fn set(&self, on: bool) {
        // SeqCst: with the fence that a grace period begins with, it comes before what workers look at after that period; and
        // it pairs with the fence between a store that no worker makes and its look (`Bus::store_when_told`).
        self.flags
            .store(self.watched | u8::from(on), Ordering::SeqCst);
    }

    pub(super) fn is_on(&self) -> bool {
        // Relaxed: workers look while they are on line, and the grace period orders that (see `set`); others fence before.
        self.flags.load(Ordering::Relaxed) & LOGS != 0
    }

    /// Whether a request may be served without more ado: nothing is told, and nobody watches.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        // Relaxed: as in `is_on`.
        self.flags.load(Ordering::Relaxed) == 0
    }

    pub(super) fn faults(&self) -> u64 {
        // Relaxed: a statistic.
        self.faults.load(Ordering::Relaxed)
    }

    /// Tells the hypervisor of modified pages. One bad page does not keep the others from being told.
    pub(super) fn tell<H: Hypervisor>(&self, hv: &H, extents: &[GfnRange]) {
        if hv.modified(extents).is_ok() {
            return;
        }
        for page in extents.iter().flat_map(GfnRange::iter) {
            let Err(err) = hv.modified(&[page.into()]) else {
                continue;
            };
            // Relaxed: a statistic.
            self.faults.fetch_add(1, Ordering::Relaxed);
            if self.log_limit.allow() {
                tracing::error!(%err, "a page was modified and could not be logged: whoever copies this guest may miss it");
            }
        }
    }
}

/// The pages of `len` bytes at `addr`; None for no bytes, or bytes without an address.
fn pages_of(addr: GuestAddress, len: u64) -> Option<GfnRange> {
    let last = addr.0.checked_add(len.checked_sub(1)?)?;
    GfnRange::new(Gfn::of(addr).0, Gfn::of(GuestAddress(last)).0).ok()
}

/// `a` and `b` as one range, if there is no gap between them.
fn joined(a: GfnRange, b: GfnRange) -> Option<GfnRange> {
    let touch = b.first() <= a.last().saturating_add(1) && a.first() <= b.last().saturating_add(1);
    let whole = || GfnRange::new(a.first().min(b.first()), a.last().max(b.last())).ok();
    touch.then(whole).flatten()
}

/// Guest memory for the stores of one request: remembers which pages they are, while that is to be told.
pub(super) struct LoggedRam<'a, H: Hypervisor> {
    core: &'a Core<H>,
    ram: &'a dyn GuestRam,
    on: bool,
    extents: Mutex<Vec<GfnRange>>,
}

impl<'a, H: Hypervisor> LoggedRam<'a, H> {
    /// For whoever is on line, until it quiesces. Allocates nothing.
    pub(super) fn new(core: &'a Core<H>, ram: &'a dyn GuestRam) -> Self {
        LoggedRam {
            core,
            ram,
            on: core.dirty.is_on(),
            extents: Mutex::new(Vec::new()),
        }
    }

    /// Looks again, after a quiescent state.
    pub(super) fn look_again(&mut self) {
        self.on = self.core.dirty.is_on();
    }

    /// What stores go through: the memory itself while nothing is told.
    pub(super) fn ram(&self) -> &dyn GuestRam {
        if self.on { self } else { self.ram }
    }

    /// Tells what was stored into so far.
    pub(super) fn tell(&mut self) {
        let extents = self
            .extents
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if !extents.is_empty() {
            self.core.dirty.tell(&*self.core.hv, extents);
            extents.clear();
        }
    }

    /// Notes what a store has changed: of one that failed, any page that is memory.
    fn noted(
        &self,
        addr: GuestAddress,
        len: usize,
        result: Result<(), RamError>,
    ) -> Result<(), RamError> {
        let Some(pages) = pages_of(addr, len as u64) else {
            return result;
        };
        if result.is_ok() {
            self.note(pages);
        } else {
            let is_ram = |gfn: &Gfn| {
                let start = gfn.start();
                start.is_some_and(|start| self.ram.load(start, Width::B1).is_ok())
            };
            pages
                .iter()
                .filter(is_ram)
                .for_each(|gfn| self.note(gfn.into()));
        }
        result
    }

    fn note(&self, pages: GfnRange) {
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        match extents
            .last_mut()
            .and_then(|last| Some((joined(*last, pages)?, last)))
        {
            Some((longer, last)) => *last = longer,
            None => extents.push(pages),
        }
        if extents.len() >= EXTENTS {
            let full = std::mem::take(&mut *extents);
            drop(extents);
            self.core.dirty.tell(&*self.core.hv, &full);
        }
    }
}

impl<H: Hypervisor> GuestRam for LoggedRam<'_, H> {
    fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), RamError> {
        self.ram.read(addr, buf)
    }

    fn write(&self, addr: GuestAddress, buf: &[u8]) -> Result<(), RamError> {
        let result = self.ram.write(addr, buf);
        self.noted(addr, buf.len(), result)
    }

    fn load(&self, addr: GuestAddress, width: Width) -> Result<u64, RamError> {
        self.ram.load(addr, width)
    }

    fn store(&self, addr: GuestAddress, width: Width, value: u64) -> Result<(), RamError> {
        let result = self.ram.store(addr, width, value);
        self.noted(addr, width.size(), result)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> GfnRange {
        GfnRange::new(first, last).unwrap()
    }

    #[test]
    fn pages_of_bytes() {
        let of = |addr, len| pages_of(GuestAddress(addr), len);
        assert_eq!(of(0x1000, 0), None);
        assert_eq!(of(0x1000, 1), Some(range(1, 1)));
        assert_eq!(of(0x1fff, 1), Some(range(1, 1)));
        assert_eq!(of(0x1fff, 2), Some(range(1, 2)));
        assert_eq!(of(0x1000, 0x2000), Some(range(1, 2)));
        assert_eq!(of(u64::MAX, 1), Some(range(Gfn::MAX.0, Gfn::MAX.0)));
        assert_eq!(of(u64::MAX, 2), None);
    }

    #[test]
    fn neighbours_are_one_extent() {
        assert_eq!(joined(range(2, 3), range(4, 5)), Some(range(2, 5)));
        assert_eq!(joined(range(4, 5), range(2, 3)), Some(range(2, 5)));
        assert_eq!(joined(range(2, 9), range(4, 5)), Some(range(2, 9)));
        assert_eq!(joined(range(4, 5), range(2, 9)), Some(range(2, 9)));
        assert_eq!(joined(range(2, 3), range(5, 5)), None);
        assert_eq!(joined(range(5, 5), range(2, 3)), None);
        let last = range(Gfn::MAX.0, Gfn::MAX.0);
        assert_eq!(joined(last, last), Some(last));
    }
}
