// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device's own stores into guest memory.

use std::fmt;
use std::sync::{Arc, PoisonError, Weak};

use vm_memory::GuestAddress;

use super::bus::Bus;
use super::core::Core;
use super::dirty::LoggedRam;
use crate::dispatch::{ReadGuard, Reader};
use crate::handler::{WriteSource, scope};
use crate::hypervisor::Hypervisor;
use crate::ids::{Gfn, PAGE_SIZE, VcpuId};
use crate::memory::{GuestRam, RamError, Width};
use crate::sync::atomic::{Ordering, fence};

/// Why a device's access to guest memory failed.
///
/// ```
/// use ioreq_core::{memory::RamError, server::DmaError};
/// let err = DmaError::from(RamError { addr: vm_memory::GuestAddress(0), len: 4 });
/// assert!(matches!(err, DmaError::Ram(_)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// Not all bytes are guest memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Called from a tracked page's handler, which holds that page's order and may not take another's.
    #[error(
        "a device store from a tracked page's handler could wait for itself: store from another thread, or later"
    )]
    WouldDeadlock,
    /// The server is gone.
    #[error("the server is gone")]
    ServerGone,
}

/// Guest memory as a device accesses it: a store into a tracked page goes to that page's handler, as a guest's trapped write
/// does. One per thread; made by [`IoreqServer::dma`](super::IoreqServer::dma).
///
/// ```
/// use ioreq_core::claim::PageTracker;
/// use ioreq_core::handler::{Context, PageHandler, PageOutcome, PageWrite, WriteSource};
/// use ioreq_core::{Gfn, server::IoreqServer};
/// use ioreq_sim::{DomainConfig, Machine};
/// use ioreq_core::vm_memory::GuestAddress;
/// use std::sync::Arc;
///
/// /// Takes writes of devices as it takes the guest's.
/// struct Watch;
/// impl PageHandler for Watch {
///     fn write(&self, _: &Context<'_>, write: &PageWrite<'_>) -> PageOutcome {
///         assert_eq!(write.source(), WriteSource::Dma);
///         PageOutcome::Apply
///     }
/// }
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let server = IoreqServer::builder(domain.hypervisor()).build()?;
/// let claim = server.claim_mem_type()?;
/// let tracker = claim.tracker("watch");
/// tracker.track(Gfn(1).into(), Arc::new(Watch))?;
///
/// let mut dma = server.dma();
/// dma.write(GuestAddress(0x0ffc), &[1, 2, 3, 4, 5, 6, 7, 8])?; // the second half is in frame 1
/// let mut back = [0; 8];
/// dma.read(GuestAddress(0x0ffc), &mut back)?;
/// assert_eq!(back, [1, 2, 3, 4, 5, 6, 7, 8]);
/// assert_eq!(tracker.stats().writes, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Dma<H: Hypervisor> {
    core: Weak<Core<H>>,
    reader: Reader,
}

impl<H: Hypervisor> Dma<H> {
    pub(super) fn new(core: &Arc<Core<H>>) -> Self {
        Dma {
            core: Arc::downgrade(core),
            reader: core.grace.reader(),
        }
    }

    /// Fills `buf` from guest memory.
    ///
    /// # Errors
    /// [`DmaError::Ram`] unless all bytes are guest memory; `buf` may be partly filled then.
    pub fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), DmaError> {
        let core = self.core.upgrade().ok_or(DmaError::ServerGone)?;
        Ok(GuestRam::read(&*core.hv.memory(), addr, buf)?)
    }

    /// Stores `buf` into guest memory. In tracked pages it is split into naturally aligned pieces of at most 8 bytes, each a
    /// write to the page's handler; the handler decides what is stored.
    ///
    /// # Errors
    /// [`DmaError::Ram`] unless all bytes are guest memory (bytes before the bad one are stored),
    /// [`DmaError::WouldDeadlock`] from a tracked page's handler.
    pub fn write(&mut self, addr: GuestAddress, buf: &[u8]) -> Result<(), DmaError> {
        if scope::in_page_handler() {
            return Err(DmaError::WouldDeadlock);
        }
        let core = self.core.upgrade().ok_or(DmaError::ServerGone)?;
        let memory = core.hv.memory();
        let mut logged = LoggedRam::new(&core, &*memory);
        let result = self.write_all(&core, &mut logged, addr, buf);
        logged.tell();
        result
    }

    fn write_all(
        &mut self,
        core: &Core<H>,
        logged: &mut LoggedRam<'_, H>,
        addr: GuestAddress,
        buf: &[u8],
    ) -> Result<(), DmaError> {
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            let fail = RamError {
                addr,
                len: buf.len(),
            };
            let at = addr
                .0
                .checked_add(done as u64)
                .map(GuestAddress)
                .ok_or(fail)?;
            let result = {
                // The counters of threads that are no workers have one writer at a time, too.
                let _turn = core.outside.lock().unwrap_or_else(PoisonError::into_inner);
                let guard = self.reader.enter();
                logged.look_again();
                store_piece(core, logged.ram(), &guard, at, rest)?
            };
            match result {
                Some(stored) => done += stored,
                // The page is being unmarked. That takes not long, and needs a step where no thread does it.
                None => {
                    core.step_unmark();
                    std::thread::yield_now();
                }
            }
        }
        Ok(())
    }
}

/// Stores the first piece of `buf`: up to the page's end in an untracked page, one aligned access in a tracked one. Returns
/// its length, or None if the page is parked.
fn store_piece<H: Hypervisor>(
    core: &Core<H>,
    ram: &dyn GuestRam,
    guard: &ReadGuard<'_>,
    addr: GuestAddress,
    buf: &[u8],
) -> Result<Option<usize>, RamError> {
    let worker = core.worker_slots() - 1;
    let Some(counters) = core.counters.of(worker) else {
        return Ok(None);
    };
    let cx = core.context(VcpuId(0), ram);
    let bus = Bus {
        core,
        cx: &cx,
        memory: None,
        guard,
        counters,
        worker,
    };
    let in_page = usize::try_from(PAGE_SIZE - addr.0 % PAGE_SIZE).unwrap_or(usize::MAX);
    let piece = buf.get(..in_page).unwrap_or(buf);
    if core.pages.find(Gfn::of(addr), guard).is_none() {
        ram.write(addr, piece)?;
        // SeqCst: as in `Bus::store`; a page that is tracked by now gets the pieces once more, through its handler.
        fence(Ordering::SeqCst);
        if core.pages.find(Gfn::of(addr), guard).is_none() {
            return Ok(Some(piece.len()));
        }
    }
    let width = [Width::B8, Width::B4, Width::B2]
        .into_iter()
        .find(|width| width.size() <= piece.len() && addr.0.is_multiple_of(width.bytes()));
    let width = width.unwrap_or(Width::B1);
    let value = piece
        .iter()
        .take(width.size())
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    match bus.store(addr, width, value, WriteSource::Dma) {
        Ok(()) => Ok(Some(width.size())),
        Err(_parked) => Ok(None),
    }
}

impl<H: Hypervisor> fmt::Debug for Dma<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dma").finish_non_exhaustive()
    }
}
