// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device-model operations, typed: every `XEN_DMOP_*`, on one domain.
//!
//! | operation | method |
//! | --- | --- |
//! | 1 create_ioreq_server | [`DeviceModel::create_server`] |
//! | 2 get_ioreq_server_info | [`DeviceModel::server_info`] |
//! | 3, 4 map, unmap_io_range | [`DeviceModel::map_range`], [`DeviceModel::unmap_range`] |
//! | 5 set_ioreq_server_state | [`DeviceModel::set_server_state`] |
//! | 6 destroy_ioreq_server | [`DeviceModel::destroy_server`] |
//! | 7 track_dirty_vram | [`DeviceModel::track_dirty_vram`], [`DeviceModel::stop_dirty_vram`] |
//! | 8 set_pci_intx_level | [`DeviceModel::set_pci_intx`] |
//! | 9 set_isa_irq_level | [`DeviceModel::set_isa_irq`] |
//! | 10 set_pci_link_route | [`DeviceModel::set_pci_link_route`] |
//! | 11 modified_memory | [`DeviceModel::modified_memory`] |
//! | 12 set_mem_type | [`DeviceModel::set_mem_type`] |
//! | 13 inject_event | [`DeviceModel::inject_event`] |
//! | 14 inject_msi | [`DeviceModel::inject_msi`] |
//! | 15 map_mem_type_to_ioreq_server | [`DeviceModel::claim_mem_type`], [`DeviceModel::disclaim_mem_type`] |
//! | 16 remote_shutdown | [`DeviceModel::remote_shutdown`] |
//! | 17 relocate_memory | [`DeviceModel::relocate_memory`] |
//! | 18 pin_memory_cacheattr | [`DeviceModel::pin_cacheattr`], [`DeviceModel::unpin_cacheattr`] |
//! | 19 set_irq_level | [`DeviceModel::set_irq_level`] |
//! | 20 nr_vcpus | [`DeviceModel::vcpus`] |
//!
//! An operation that the running Xen lacks is `NotSupported` because Xen says so. What Xen would refuse with a bare EINVAL
//! and we can see is refused before the call, with words.

mod domain;
mod interrupts;
mod mem_types;
mod memory;
mod servers;

use std::sync::Arc;

use ioreq_core::abi::dm_op::{DmOp, DmOpBytes};
use ioreq_core::error::Subject;
use ioreq_core::{DomId, Error, ErrorKind, Op, Result};

use crate::sys::Privcmd;

pub use memory::{CacheAttr, DirtyPages};

/// What carries operations to the hypervisor: [`Privcmd`], or in tests something that looks at the bytes.
///
/// ```
/// use std::sync::Arc;
/// use ioreq_core::abi::dm_op::{DmOp, DmOpBytes, NrVcpus};
/// use ioreq_core::DomId;
/// use ioreq_xen::{DeviceModel, DmOpCarrier};
///
/// /// Every domain has two vCPUs.
/// struct Two;
///
/// impl DmOpCarrier for Two {
///     fn dm_op(&self, _: DomId, op: &mut DmOpBytes, _: &mut [u8]) -> Result<(), i32> {
///         *op = NrVcpus { vcpus: 2 }.encode();
///         Ok(())
///     }
/// }
///
/// assert_eq!(DeviceModel::new(Arc::new(Two), DomId(1)).vcpus()?, 2);
/// # Ok::<(), ioreq_core::Error>(())
/// ```
pub trait DmOpCarrier: Send + Sync {
    /// Has the operation done. Answers are written into `op` and `buffer` (the second buffer; empty for most operations).
    ///
    /// # Errors
    /// An errno.
    fn dm_op(&self, domid: DomId, op: &mut DmOpBytes, buffer: &mut [u8]) -> Result<(), i32>;
}

impl DmOpCarrier for Privcmd {
    fn dm_op(&self, domid: DomId, op: &mut DmOpBytes, buffer: &mut [u8]) -> Result<(), i32> {
        Privcmd::dm_op(self, domid, op, buffer)
    }
}

/// The device-model operations on one domain. Cheap to clone.
///
/// [`XenHypervisor`](crate::XenHypervisor) is made of it and is what servers are built on; use this for what only it has:
/// VRAM dirty tracking, cache attributes, relocation, shutdown.
///
/// ```no_run
/// use std::sync::Arc;
/// use ioreq_core::{DomId, GfnRange};
/// use ioreq_xen::{DeviceModel, Privcmd};
///
/// let dm = DeviceModel::new(Arc::new(Privcmd::open()?), DomId(1));
/// let vram = GfnRange::sized(0xf_0000, 1024)?;
/// for gfn in dm.track_dirty_vram(vram)?.iter() {
///     println!("{gfn} was drawn to");
/// }
/// # Ok::<(), ioreq_core::Error>(())
/// ```
#[derive(Clone)]
pub struct DeviceModel {
    carrier: Arc<dyn DmOpCarrier>,
    domid: DomId,
}

impl DeviceModel {
    /// The operations on domain `domid`, as `carrier` brings them there.
    pub fn new(carrier: Arc<dyn DmOpCarrier>, domid: DomId) -> Self {
        DeviceModel { carrier, domid }
    }

    /// The domain.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.domid
    }

    /// Has `payload` done as operation `op`; gives what Xen left in it.
    fn call<P: DmOp>(&self, op: Op, payload: &P) -> Result<P> {
        self.call_with(op, payload, &mut [])
    }

    /// The same, for operations with a second buffer.
    fn call_with<P: DmOp>(&self, op: Op, payload: &P, buffer: &mut [u8]) -> Result<P> {
        let mut bytes = payload.encode();
        self.send(&mut bytes, buffer)
            .map_err(|errno| Error::from_errno(op, errno).domain(self.domid))?;
        Ok(P::decode(&bytes))
    }

    fn send(&self, bytes: &mut DmOpBytes, buffer: &mut [u8]) -> Result<(), i32> {
        self.carrier.dm_op(self.domid, bytes, buffer)
    }

    /// An argument that is wrong before any call.
    fn refuse(&self, op: Op, about: impl Into<Subject>) -> Error {
        Error::new(op, ErrorKind::InvalidArgument)
            .domain(self.domid)
            .about(about)
    }
}

impl std::fmt::Debug for DeviceModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceModel({})", self.domid)
    }
}
