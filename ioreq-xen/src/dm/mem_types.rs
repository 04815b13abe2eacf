// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ownership of `p2m_ioreq_server`, and page types.

use ioreq_core::abi::XEN_DMOP_IOREQ_MEM_ACCESS_WRITE;
use ioreq_core::abi::dm_op::{MapMemType, SetMemType};
use ioreq_core::{GfnRange, MarkAuthority, Op, P2mType, Result, ServerId};

use super::DeviceModel;

impl DeviceModel {
    /// `XEN_DMOP_map_mem_type_to_ioreq_server` with the write flag: server `id` becomes the owner of the type.
    ///
    /// # Errors
    /// `AlreadyClaimed` (EBUSY), `NoHap` (EOPNOTSUPP), `NoSuchServer`.
    pub fn claim_mem_type(&self, id: ServerId) -> Result<()> {
        self.map_mem_type(Op::ClaimMemType, id, XEN_DMOP_IOREQ_MEM_ACCESS_WRITE)
    }

    /// The same with no flag: gives the type up; pages outstanding go back to `ram_rw`.
    ///
    /// # Errors
    /// `WrongState` (EINVAL) if `id` is not the owner, `NoHap`, `NoSuchServer`.
    pub fn disclaim_mem_type(&self, id: ServerId) -> Result<()> {
        self.map_mem_type(Op::DisclaimMemType, id, 0)
    }

    fn map_mem_type(&self, op: Op, id: ServerId, flags: u32) -> Result<()> {
        let payload = MapMemType {
            id: id.0,
            kind: raw(P2mType::IoreqServer),
            flags,
            // Anything else, and Xen claims nothing and says 0.
            opaque: 0,
        };
        self.call(op, &payload)
            .map(drop)
            .map_err(|err| err.server(id))
    }

    /// `XEN_DMOP_set_mem_type` for all of `pages`.
    ///
    /// # Errors
    /// `WrongState` (EINVAL) when a page is not RAM, of a type that cannot change so, or the type has no owner: pages before
    /// the bad one stay changed. `NoHap`, `Retry`, `OutOfMemory`, `DomainGone`.
    pub fn set_mem_type(&self, _: &MarkAuthority, ty: P2mType, pages: GfnRange) -> Result<()> {
        self.change_type(ty, pages)
    }

    /// The same without the proof of a claim: to repair what an owner left behind that is gone.
    pub(crate) fn change_type(&self, ty: P2mType, pages: GfnRange) -> Result<()> {
        pages.batches(u32::MAX.into()).try_for_each(|part| {
            let op = SetMemType {
                // At most u32::MAX, by the batches.
                nr: u32::try_from(part.pages()).unwrap_or(u32::MAX),
                mem_type: raw(ty),
                pad: 0,
                first_pfn: part.first(),
            };
            self.call(Op::SetMemType, &op)
                .map(drop)
                .map_err(|err| err.about(part))
        })
    }
}

/// `hvmmem_type_t`, in the 16 bits that the operations have for it.
fn raw(ty: P2mType) -> u16 {
    u16::try_from(ty.raw()).unwrap_or(u16::MAX)
}
