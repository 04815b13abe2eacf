// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sets a server up in the one order that is safe: create, acquire both pages, enable, bind, and only then ranges and claims.
//!
//! Why the order: an enabled server whose ioreq page was never acquired makes Xen panic at its first request, and a page
//! acquired after enabling has no event-channel ports in it.

use std::fmt;
use std::sync::Arc;

use super::core::Core;
use super::group::{Group, GroupParts};
use super::ioreq_server::IoreqServer;
use super::polling::Polling;
use super::waker::Waker;
use crate::abi::IOREQ_SLOTS;
use crate::dispatch::{Dispatcher, Grace, PageMap};
use crate::error::{Error, ErrorKind, Op, Result};
use crate::hypervisor::{BufIoreq, Hypervisor};
use crate::ids::{Gfn, ServerId, VcpuId};
use crate::ring::BufferedRing;
use crate::slot::Slots;
use crate::stats::PerWorker;

/// How vCPUs are shared out among workers.
///
/// ```
/// use ioreq_core::server::Workers;
/// assert_eq!(Workers::PerVcpu.count(4), 4);
/// assert_eq!(Workers::Count(2).count(4), 2);
/// assert_eq!(Workers::Count(9).count(4), 4); // never more than vCPUs
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Workers {
    /// A worker for each vCPU.
    PerVcpu,
    /// So many workers, vCPUs dealt out in turn. 1 is the right number for a user's own event loop.
    Count(usize),
    /// A worker for each vCPU, at most one for each CPU of this machine.
    #[default]
    Auto,
}

impl Workers {
    /// The number of workers for a domain with `vcpus` vCPUs.
    #[must_use]
    pub fn count(self, vcpus: usize) -> usize {
        let most = match self {
            Workers::PerVcpu => vcpus,
            Workers::Count(count) => count,
            Workers::Auto => std::thread::available_parallelism().map_or(1, usize::from),
        };
        most.min(vcpus).max(1)
    }
}

/// Builds an [`IoreqServer`]; made by [`IoreqServer::builder`].
///
/// ```
/// use ioreq_core::server::{IoreqServer, Polling, Workers};
/// use ioreq_core::BufIoreq;
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(8))?;
/// let server = IoreqServer::builder(domain.hypervisor())
///     .buffered(BufIoreq::Atomic)
///     .workers(Workers::Count(2))
///     .polling(Polling::default())
///     .build()?;
/// assert!(IoreqServer::builder(domain.hypervisor()).workers(Workers::Count(0)).build().is_err());
/// drop(server);
/// assert!(domain.leaks().is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Builder<H: Hypervisor> {
    hv: Arc<H>,
    bufioreq: BufIoreq,
    workers: Workers,
    polling: Polling,
    sample_every: u32,
    last_gfn: Gfn,
}

impl<H: Hypervisor> Builder<H> {
    pub(super) fn new(hv: Arc<H>) -> Self {
        Builder {
            hv,
            bufioreq: BufIoreq::Off,
            workers: Workers::default(),
            polling: Polling::default(),
            sample_every: 16,
            last_gfn: Gfn((1 << 28) - 1),
        }
    }

    /// With a buffered ring, for guests that write to the VGA window or set their clock. Off by default.
    #[must_use]
    pub fn buffered(mut self, bufioreq: BufIoreq) -> Self {
        self.bufioreq = bufioreq;
        self
    }

    /// How vCPUs are shared out among workers.
    #[must_use]
    pub fn workers(mut self, workers: Workers) -> Self {
        self.workers = workers;
        self
    }

    /// How workers wait.
    #[must_use]
    pub fn polling(mut self, polling: Polling) -> Self {
        self.polling = polling;
        self
    }

    /// Measures the latency of one request in `requests`; 16 by default, 1 measures all, 0 none. Reading the clock twice
    /// costs more than the rest of the framework's work on a request.
    #[must_use]
    pub fn sample_latency(mut self, requests: u32) -> Self {
        self.sample_every = requests;
        self
    }

    /// The last guest frame that can be tracked; 2^28 - 1 (1 TiB of guest memory) by default. Costs 18 bytes of address
    /// space per 512 frames, and memory only where pages are tracked.
    #[must_use]
    pub fn last_gfn(mut self, gfn: Gfn) -> Self {
        self.last_gfn = gfn;
        self
    }

    /// Creates and enables the server. From here on it answers requests as soon as somebody serves it.
    ///
    /// # Errors
    /// `TooManyServers`, `NotPermitted`, `DomainGone` and the like from the hypervisor; `InvalidArgument` for a domain with
    /// more than 128 vCPUs or a bad option. Nothing is left behind.
    pub fn build(self) -> Result<IoreqServer<H>> {
        let vcpus = self.hv.vcpus()?;
        let bad = |what: String| {
            let err = Error::new(Op::Configure, ErrorKind::InvalidArgument);
            err.domain(self.hv.domid()).about(what)
        };
        if vcpus == 0 || vcpus as usize > IOREQ_SLOTS {
            return Err(bad(format!(
                "{vcpus} vCPUs: an ioreq page has 1 to {IOREQ_SLOTS} slots"
            )));
        }
        if self.workers == Workers::Count(0) {
            return Err(bad("0 workers: at least one is needed".into()));
        }
        let created = Created {
            hv: &*self.hv,
            id: self.hv.create_server(self.bufioreq)?,
            keep: false,
        };
        let core = self.set_up(created.id, vcpus)?;
        created.keep();
        Ok(IoreqServer::new(Arc::new(core)))
    }

    fn set_up(&self, id: ServerId, vcpus: u32) -> Result<Core<H>> {
        let hv = &self.hv;
        let slots = Arc::new(Slots::new(hv.ioreq_page(id)?, vcpus)?);
        let ring = match self.bufioreq {
            BufIoreq::Off => None,
            BufIoreq::Atomic => Some(BufferedRing::new(hv.buffered_page(id)?)),
        };
        hv.set_server_state(id, true)?;

        let grace = Grace::new();
        let workers = self.workers.count(vcpus as usize);
        // Before any memory is fetched: if it changes in between, it is fetched again.
        let memory_epoch = hv.memory_generation();
        let counters = Arc::new(PerWorker::new(workers + 1));
        let mut groups = Vec::with_capacity(workers);
        let mut wakers = Vec::with_capacity(workers);
        for index in 0..workers {
            let waker = Arc::new(Waker::new()?);
            let events = hv.open_events()?;
            let mut parts = GroupParts::new(index, events, Arc::clone(&waker));
            for vcpu in (index..vcpus as usize).step_by(workers) {
                let Ok(vcpu) = u32::try_from(vcpu).map(VcpuId) else {
                    continue;
                };
                let Some(slot) = slots.get(vcpu) else {
                    continue;
                };
                parts.bind(vcpu, slot.vp_eport())?;
            }
            if index == 0
                && let Some(port) = hv.server_info(id)?.bufioreq_port
                && ring.is_some()
            {
                parts.bind_ring(port)?;
            }
            groups.push(Group::new(
                parts,
                (hv.memory(), memory_epoch),
                grace.reader(),
                &counters,
                self,
            )?);
            wakers.push(waker);
        }
        let pages = PageMap::new(self.last_gfn, Arc::clone(&grace))?;
        let routes = Dispatcher::new(&grace);
        let hv = Arc::clone(hv);
        Ok(Core::new(
            hv, id, pages, routes, grace, slots, ring, counters, groups, wakers,
        ))
    }

    pub(super) fn polling_policy(&self) -> Polling {
        self.polling
    }

    pub(super) fn sample_every(&self) -> u32 {
        self.sample_every
    }
}

/// A server that was created and is destroyed again if the set-up fails.
struct Created<'a, H: Hypervisor> {
    hv: &'a H,
    id: ServerId,
    keep: bool,
}

impl<H: Hypervisor> Created<'_, H> {
    fn keep(mut self) {
        self.keep = true;
    }
}

impl<H: Hypervisor> Drop for Created<'_, H> {
    fn drop(&mut self) {
        if !self.keep
            && let Err(err) = self.hv.destroy_server(self.id)
        {
            tracing::warn!(%err, "a server whose set-up failed could not be destroyed");
        }
    }
}

impl<H: Hypervisor> fmt::Debug for Builder<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("domid", &self.hv.domid())
            .field("bufioreq", &self.bufioreq)
            .field("workers", &self.workers)
            .field("polling", &self.polling)
            .finish_non_exhaustive()
    }
}
