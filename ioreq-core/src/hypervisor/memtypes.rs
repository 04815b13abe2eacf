// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ownership of `p2m_ioreq_server`, and page types.

use crate::ids::ServerId;
use crate::range::GfnRange;
use crate::{Result, abi};

/// The p2m types a device model may give a page (`hvmmem_type_t`).
///
/// ```
/// use ioreq_core::P2mType;
/// assert_eq!(P2mType::IoreqServer.raw(), 4);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum P2mType {
    /// `HVMMEM_ram_rw`: ordinary RAM.
    RamRw,
    /// `HVMMEM_ram_ro`: writes are dropped.
    RamRo,
    /// `HVMMEM_mmio_dm`: every access goes to a device model.
    MmioDm,
    /// `HVMMEM_ioreq_server`: reads go to RAM, writes to the type's owner.
    IoreqServer,
}

impl P2mType {
    /// `hvmmem_type_t`.
    #[must_use]
    pub const fn raw(self) -> u32 {
        match self {
            P2mType::RamRw => abi::HVMMEM_RAM_RW,
            P2mType::RamRo => abi::HVMMEM_RAM_RO,
            P2mType::MmioDm => abi::HVMMEM_MMIO_DM,
            P2mType::IoreqServer => abi::HVMMEM_IOREQ_SERVER,
        }
    }
}

/// Proof that a live [`MemTypeClaim`](crate::claim::MemTypeClaim) asks: only a claim can make one, so code that changes
/// page types without owning the type does not compile.
///
/// ```compile_fail
/// let forged = ioreq_core::MarkAuthority { _private: () };
/// ```
/// ```compile_fail
/// let forged = ioreq_core::MarkAuthority::new();
/// ```
///
/// What may be done with it is [`MemTypes::set_mem_type`]:
///
/// ```
/// use ioreq_core::{Gfn, MarkAuthority, MemTypes, P2mType, Result};
/// fn mark(hv: &impl MemTypes, authority: &MarkAuthority, gfn: Gfn) -> Result<()> {
///     hv.set_mem_type(authority, P2mType::IoreqServer, gfn.into())
/// }
/// ```
#[derive(Debug)]
pub struct MarkAuthority {
    _private: (),
}

impl MarkAuthority {
    pub(crate) const fn new() -> Self {
        MarkAuthority { _private: () }
    }

    /// An authority without a claim, for suites that test a *hypervisor*: they must see what it says to a
    /// `set_mem_type` that nobody may make. Device models have no use for it.
    #[cfg(feature = "conformance")]
    #[must_use]
    pub const fn for_conformance_tests() -> Self {
        Self::new()
    }
}

/// Claiming the write-tracking p2m type, and changing pages' types.
///
/// ```
/// use ioreq_core::{BufIoreq, ErrorKind, MemTypes, Transport};
/// use ioreq_sim::{DomainConfig, Machine};
///
/// let domain = Machine::new().create_domain(DomainConfig::new(1))?;
/// let hv = domain.hypervisor();
/// let (first, second) = (hv.create_server(BufIoreq::Off)?, hv.create_server(BufIoreq::Off)?);
/// hv.claim_mem_type(first)?;
/// assert_eq!(hv.claim_mem_type(second).unwrap_err().kind(), ErrorKind::AlreadyClaimed);
/// hv.disclaim_mem_type(first)?;
/// hv.destroy_server(first)?;
/// hv.destroy_server(second)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait MemTypes: Send + Sync + 'static {
    /// `XEN_DMOP_map_mem_type_to_ioreq_server` with the write flag: server `id` becomes the type's owner.
    ///
    /// # Errors
    /// `AlreadyClaimed` (EBUSY) by a second server or by the owner again, `NoHap` (EOPNOTSUPP), `NoSuchServer`.
    fn claim_mem_type(&self, id: ServerId) -> Result<()>;

    /// The same with no flag: gives the type up. Pages outstanding go back to `ram_rw` at once, which can crash a guest
    /// that is writing one of them.
    ///
    /// # Errors
    /// `WrongState` (EINVAL) if `id` is not the owner, `NoHap`, `NoSuchServer`.
    fn disclaim_mem_type(&self, id: ServerId) -> Result<()>;

    /// `XEN_DMOP_set_mem_type` for all of `pages`. When it returns, every write that trapped under the old type is
    /// visible in its slot.
    ///
    /// # Errors
    /// `WrongState` (EINVAL) when a page is not RAM, of a type that cannot change so, or the type has no owner: pages
    /// before the bad one stay changed. `NoHap`, `Retry`, `OutOfMemory`, `DomainGone`.
    fn set_mem_type(&self, authority: &MarkAuthority, ty: P2mType, pages: GfnRange) -> Result<()>;
}
