// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Makes a [`XenHypervisor`] from choices.

use std::sync::{Arc, Mutex};

use ioreq_core::{DomId, Gfn, GfnRange, Result};

use crate::dm::DeviceModel;
use crate::handles::Handles;
use crate::hypervisor::{XenHypervisor, maximum_gfn};
use crate::memory::{Cache, Foreign};

/// Pages that stay mapped at most, by default: 16 GiB of guest memory.
const CACHE_PAGES: usize = 4 << 20;

/// How guest memory gets into this process.
#[derive(Debug, Clone, Copy)]
enum Mapping {
    InAdvance,
    OnDemand { pages: usize },
}

/// Builds a [`XenHypervisor`]; made by [`XenHypervisor::builder`].
///
/// ```no_run
/// use ioreq_core::{DomId, GfnRange};
/// use ioreq_xen::XenHypervisor;
///
/// let hv = XenHypervisor::builder(DomId(1))
///     .ram(GfnRange::new(0, 0x9f)?) // below the VGA window
///     .ram(GfnRange::new(0xc0, 0x3_ffff)?)
///     .map_in_advance()
///     .restrict()
///     .build()?;
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct Builder {
    domid: DomId,
    handles: Option<Handles>,
    ram: Vec<GfnRange>,
    mapping: Mapping,
    vcpus: Option<u32>,
    restrict: bool,
}

impl Builder {
    pub(crate) fn new(domid: DomId) -> Self {
        Builder {
            domid,
            handles: None,
            ram: Vec::new(),
            mapping: Mapping::OnDemand { pages: CACHE_PAGES },
            vcpus: None,
            restrict: false,
        }
    }

    /// Devices that are open already. Opened by [`build`](Self::build) otherwise.
    pub fn handles(mut self, handles: Handles) -> Self {
        self.handles = Some(handles);
        self
    }

    /// A range of frames that are RAM; call it for each. Without one, every frame up to the domain's highest is taken for
    /// RAM, and asked for when it is used; that costs a system call at each access to one that is none, and finding out the
    /// highest needs an unrestricted handle.
    pub fn ram(mut self, frames: GfnRange) -> Self {
        self.ram.push(frames);
        self
    }

    /// Maps all of the guest's memory now, and keeps it mapped: no access has to wait for it later. Every page of the
    /// [`ram`](Self::ram) ranges must be there. When the guest gives memory back (an INVALIDATE request), all is unmapped, and
    /// mapped again as it is used.
    pub fn map_in_advance(mut self) -> Self {
        self.mapping = Mapping::InAdvance;
        self
    }

    /// Maps memory as it is used, in chunks of 2 MiB; when more than `pages` pages are mapped, all are unmapped and it begins
    /// anew. This is the default, with 16 GiB.
    ///
    /// Where a chunk is still used when that happens, it stays mapped with its last user: a device that keeps
    /// [`memory()`](ioreq_core::GuestMap::memory) keeps its mappings.
    pub fn map_on_demand(mut self, pages: usize) -> Self {
        self.mapping = Mapping::OnDemand { pages };
        self
    }

    /// The number of vCPUs, for a Xen that cannot tell (it lacks `XEN_DMOP_nr_vcpus`).
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = Some(vcpus);
        self
    }

    /// Gives up the right to anything but this domain, for good: the privcmd handle, and each event-channel handle when a
    /// worker gets it.
    ///
    /// Servers, ranges, claim, marking, interrupts and mappings work as before. What does not: hypercalls that are no DMOPs,
    /// so [`Privcmd::mem_type`](crate::Privcmd::mem_type), [`Privcmd::maximum_gfn`](crate::Privcmd::maximum_gfn), and telling
    /// that the domain shut down (its death is still noticed).
    pub fn restrict(mut self) -> Self {
        self.restrict = true;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// `NotSupported` where there is no Xen, `NotPermitted`, `DomainGone`; `BadAddress` when memory that should be mapped in
    /// advance is not there; `InvalidArgument` for overlapping ranges.
    pub fn build(self) -> Result<XenHypervisor> {
        let domid = self.domid;
        let Handles { privcmd, events } = match self.handles {
            Some(handles) => handles,
            None => Handles::open()?,
        };
        let mut ram = self.ram;
        if ram.is_empty() {
            let Gfn(last) = maximum_gfn(&privcmd, domid)?;
            ram.push(GfnRange::new(0, last)?);
        }
        if self.restrict {
            privcmd.restrict_to(domid)?;
        }
        let limit = match self.mapping {
            Mapping::InAdvance => usize::MAX,
            Mapping::OnDemand { pages } => pages,
        };
        let foreign = Arc::new(Foreign::new(Arc::clone(&privcmd), domid));
        let cache = Cache::new(domid, ram, foreign, limit)?;
        if matches!(self.mapping, Mapping::InAdvance) {
            cache.map_all()?;
        }
        Ok(XenHypervisor {
            dm: DeviceModel::new(Arc::clone(&privcmd) as _, domid),
            privcmd,
            events,
            cache,
            vcpus: self.vcpus,
            restricted: self.restrict,
            servers: Mutex::default(),
            acquired: Mutex::default(),
        })
    }
}
