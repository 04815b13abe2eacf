// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a handler is told about the request it serves, and what it may ask for.

use std::fmt;
use std::time::Duration;

use super::deferred::{Completion, Deferred, defer};
use super::outcome::Verdict;
use crate::ids::{DomId, VcpuId};
use crate::memory::GuestRam;

/// The request's surroundings. Valid during the handler's call only.
///
/// ```
/// use ioreq_core::{DomId, VcpuId, handler::Context};
/// let ram = vm_memory::GuestRegionCollection::<ioreq_core::memory::MappedRegion>::new();
/// let cx = Context::detached(DomId(1), VcpuId(0), &ram); // for a handler's unit test
/// assert_eq!(cx.vcpu(), VcpuId(0));
/// ```
pub struct Context<'a> {
    domid: DomId,
    vcpu: VcpuId,
    ram: &'a dyn GuestRam,
}

impl<'a> Context<'a> {
    /// A context outside any server: handlers' unit tests call their handler with it.
    #[must_use]
    pub fn detached(domid: DomId, vcpu: VcpuId, ram: &'a dyn GuestRam) -> Self {
        Context { domid, vcpu, ram }
    }

    /// The guest's domain.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// The vCPU that waits for the answer. Vcpu 0 for buffered requests, which name none, and for a device's own DMA.
    #[must_use]
    pub fn vcpu(&self) -> VcpuId {
        self.vcpu
    }

    /// Guest memory. Stores through it do not reach the handlers of tracked pages: devices store by
    /// [`Dma`](crate::server::Dma).
    #[must_use]
    pub fn ram(&self) -> &'a dyn GuestRam {
        self.ram
    }

    /// To answer this read later, from any thread. The vCPU waits; after `overrun` the server reports the delay, and goes on
    /// waiting.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ioreq_core::handler::{Access, Context, Handler, ReadOutcome, WriteOutcome};
    ///
    /// struct Slow;
    /// impl Handler for Slow {
    ///     fn read(&self, cx: &Context<'_>, _: Access) -> ReadOutcome {
    ///         let (deferred, completion) = cx.defer_read(Duration::from_secs(1));
    ///         std::thread::spawn(move || completion.complete(0x1234));
    ///         ReadOutcome::Defer(deferred)
    ///     }
    ///     fn write(&self, _: &Context<'_>, _: Access, _: u64) -> WriteOutcome {
    ///         WriteOutcome::Done
    ///     }
    /// }
    /// ```
    pub fn defer_read(&self, overrun: Duration) -> (Deferred<u64>, Completion<u64>) {
        defer(overrun)
    }

    /// To finish this write later (see [`defer_read`](Self::defer_read)).
    pub fn defer_write(&self, overrun: Duration) -> (Deferred<()>, Completion<()>) {
        defer(overrun)
    }

    /// To decide later what becomes of this write to a tracked page (see [`defer_read`](Self::defer_read)).
    pub fn defer_page(&self, overrun: Duration) -> (Deferred<Verdict>, Completion<Verdict>) {
        defer(overrun)
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("domid", &self.domid)
            .field("vcpu", &self.vcpu)
            .finish_non_exhaustive()
    }
}
