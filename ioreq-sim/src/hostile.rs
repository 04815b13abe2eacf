// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The shared pages, open to rewriting at any time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use ioreq_core::abi::{IOREQ_BUFFER_SLOT_NUM, IOREQ_SLOTS};
use ioreq_core::{ServerId, VcpuId};

use crate::domain::DomainInner;
use crate::servers::Server;
use crate::servers::pages::{BufferedPage, IoreqPage, RawSlot};

/// Raw access to the pages that a domain's servers share with Xen.
///
/// Acquired pages are not in the guest's reach, so what this plays is a guest of the legacy gfn way, or a bug in the other
/// half: a thread that rewrites a slot while it is served must cost the guest its request and nothing more.
///
/// ```
/// use std::sync::atomic::Ordering;
/// use ioreq_core::{BufIoreq, Transport, VcpuId};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let hv = domain.hypervisor();
/// let id = hv.create_server(BufIoreq::Off)?;
/// assert!(domain.hostile().slots(id).is_none()); // not acquired yet
/// hv.ioreq_page(id)?;
/// let slots = domain.hostile().slots(id).unwrap();
/// slots.slot(VcpuId(0)).unwrap().size.store(u32::MAX, Ordering::Relaxed);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hostile(Arc<DomainInner>);

impl Hostile {
    pub(crate) fn new(domain: Arc<DomainInner>) -> Self {
        Hostile(domain)
    }

    fn server(&self, id: ServerId) -> Option<Arc<Server>> {
        let table = self.0.servers.current();
        table.get(id.0).map(|e| Arc::clone(&e.server))
    }

    /// The ioreq page of a server, if it exists and was acquired.
    #[must_use]
    pub fn slots(&self, id: ServerId) -> Option<HostileSlots> {
        let server = self.server(id)?;
        server.page.get().cloned().map(HostileSlots)
    }

    /// The buffered page of a server, if it has one and it was acquired.
    #[must_use]
    pub fn ring(&self, id: ServerId) -> Option<HostileRing> {
        let server = self.server(id)?;
        server.buffered.get().cloned().map(HostileRing)
    }
}

/// The slots of an ioreq page. See [`Hostile`].
///
/// ```
/// # use ioreq_core::{BufIoreq, Transport, VcpuId};
/// # use ioreq_sim::{DomainConfig, Machine};
/// # let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// # let hv = domain.hypervisor();
/// # let id = hv.create_server(BufIoreq::Off)?;
/// # hv.ioreq_page(id)?;
/// let slots = domain.hostile().slots(id).unwrap();
/// assert!(slots.slot(VcpuId(127)).is_some() && slots.slot(VcpuId(128)).is_none());
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct HostileSlots(Arc<IoreqPage>);

impl HostileSlots {
    /// One slot; `None` beyond 127.
    #[must_use]
    pub fn slot(&self, vcpu: VcpuId) -> Option<&RawSlot> {
        debug_assert_eq!(self.0.slots.len(), IOREQ_SLOTS);
        self.0.slots.get(usize::try_from(vcpu.0).ok()?)
    }
}

/// A buffered page. See [`Hostile`].
///
/// ```
/// # use std::sync::atomic::Ordering;
/// # use ioreq_core::{BufIoreq, Transport};
/// # use ioreq_sim::{DomainConfig, Machine};
/// # let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// # let hv = domain.hypervisor();
/// # let id = hv.create_server(BufIoreq::Atomic)?;
/// # hv.buffered_page(id)?;
/// let ring = domain.hostile().ring(id).unwrap();
/// ring.write_pointer().store(u32::MAX, Ordering::Relaxed);
/// assert!(ring.entry(510).is_some() && ring.entry(511).is_none());
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct HostileRing(Arc<BufferedPage>);

impl HostileRing {
    /// The device model's pointer.
    #[must_use]
    pub fn read_pointer(&self) -> &AtomicU32 {
        self.0.read_pointer()
    }

    /// Xen's pointer.
    #[must_use]
    pub fn write_pointer(&self) -> &AtomicU32 {
        self.0.write_pointer()
    }

    /// One entry; `None` beyond 510.
    #[must_use]
    pub fn entry(&self, index: u32) -> Option<&AtomicU64> {
        (index < IOREQ_BUFFER_SLOT_NUM).then(|| self.0.entry(index))
    }
}
