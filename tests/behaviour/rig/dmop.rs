// SPDX-License-Identifier: Apache-2.0 OR MIT

//! DMOPs by number and byte offset, for what the typed traits cannot express.

use super::Errno;

/// `struct xen_dm_op`: 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DmOp {
    pub(crate) op: u32,
    pub(crate) pad: u32,
    /// The union. All its members fit 24 bytes.
    pub(crate) body: [u8; 24],
}

pub(crate) const CREATE_SERVER: u32 = 1;
pub(crate) const SERVER_INFO: u32 = 2;
pub(crate) const MAP_RANGE: u32 = 3;
pub(crate) const UNMAP_RANGE: u32 = 4;
pub(crate) const SERVER_STATE: u32 = 5;
pub(crate) const DESTROY_SERVER: u32 = 6;
pub(crate) const TRACK_DIRTY_VRAM: u32 = 7;
pub(crate) const PCI_INTX: u32 = 8;
pub(crate) const ISA_IRQ: u32 = 9;
pub(crate) const PCI_LINK: u32 = 10;
pub(crate) const MODIFIED_MEMORY: u32 = 11;
pub(crate) const SET_MEM_TYPE: u32 = 12;
pub(crate) const INJECT_EVENT: u32 = 13;
pub(crate) const INJECT_MSI: u32 = 14;
pub(crate) const MAP_MEM_TYPE: u32 = 15;
pub(crate) const REMOTE_SHUTDOWN: u32 = 16;
pub(crate) const PIN_CACHEATTR: u32 = 18;
pub(crate) const IRQ_LEVEL: u32 = 19;
pub(crate) const NR_VCPUS: u32 = 20;

/// `XEN_DMOP_no_gfns`
pub(crate) const NO_GFNS: u16 = 1;

/// `HVMMEM_ioreq_server`
pub(crate) const IOREQ_SERVER: u16 = 4;
/// `HVMMEM_ram_rw`
pub(crate) const RAM_RW: u16 = 0;
/// `HVMMEM_ram_ro`
pub(crate) const RAM_RO: u16 = 1;
/// `HVMMEM_mmio_dm`
pub(crate) const MMIO_DM: u16 = 2;

impl DmOp {
    pub(crate) fn new(op: u32) -> Self {
        DmOp {
            op,
            pad: 0,
            body: [0; 24],
        }
    }

    /// Calls with `struct xen_dm_op` as bytes; what the hypervisor answers in them is in the body afterwards.
    pub(crate) fn by_bytes(
        &mut self,
        call: impl FnOnce(&mut [u8; 32]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&self.op.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.pad.to_le_bytes());
        bytes[8..].copy_from_slice(&self.body);
        let result = call(&mut bytes);
        self.body.copy_from_slice(&bytes[8..]);
        result
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.body[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, at: usize, value: u8) -> Self {
        self.put(at, &[value])
    }

    pub(crate) fn u16(self, at: usize, value: u16) -> Self {
        self.put(at, &value.to_le_bytes())
    }

    pub(crate) fn u32(self, at: usize, value: u32) -> Self {
        self.put(at, &value.to_le_bytes())
    }

    pub(crate) fn u64(self, at: usize, value: u64) -> Self {
        self.put(at, &value.to_le_bytes())
    }

    pub(crate) fn pad(mut self, pad: u32) -> Self {
        self.pad = pad;
        self
    }

    pub(crate) fn get_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.body[at], self.body[at + 1]])
    }

    pub(crate) fn get_u32(&self, at: usize) -> u32 {
        u32::from(self.get_u16(at)) | u32::from(self.get_u16(at + 2)) << 16
    }

    pub(crate) fn get_u64(&self, at: usize) -> u64 {
        u64::from(self.get_u32(at)) | u64::from(self.get_u32(at + 4)) << 32
    }

    /// `create_ioreq_server`: handle_bufioreq u8 @0, pad [u8; 3] @1; answers id u16 @4.
    pub(crate) fn create(handle_bufioreq: u8) -> Self {
        Self::new(CREATE_SERVER).u8(0, handle_bufioreq)
    }

    /// `get_ioreq_server_info`: id u16 @0, flags u16 @2; answers bufioreq_port u32 @4, ioreq_gfn u64 @8, bufioreq_gfn @16.
    pub(crate) fn info(id: u16, flags: u16) -> Self {
        Self::new(SERVER_INFO).u16(0, id).u16(2, flags)
    }

    /// `map_io_range_to_ioreq_server` and unmap: id u16 @0, type u32 @4, start u64 @8, end u64 @16.
    pub(crate) fn range(op: u32, id: u16, ty: u32, start: u64, end: u64) -> Self {
        Self::new(op)
            .u16(0, id)
            .u32(4, ty)
            .u64(8, start)
            .u64(16, end)
    }

    /// `set_ioreq_server_state`: id u16 @0, enabled u8 @2.
    pub(crate) fn state(id: u16, enabled: bool) -> Self {
        Self::new(SERVER_STATE).u16(0, id).u8(2, u8::from(enabled))
    }

    /// `destroy_ioreq_server`: id u16 @0.
    pub(crate) fn destroy(id: u16) -> Self {
        Self::new(DESTROY_SERVER).u16(0, id)
    }

    /// `set_mem_type`: nr u32 @0, mem_type u16 @4, pad u16 @6, first_pfn u64 @8.
    pub(crate) fn mem_type(ty: u16, first: u64, nr: u32) -> Self {
        Self::new(SET_MEM_TYPE).u32(0, nr).u16(4, ty).u64(8, first)
    }

    /// `map_mem_type_to_ioreq_server`: id u16 @0, type u16 @2, flags u32 @4, opaque u64 @8.
    pub(crate) fn map_mem_type(id: u16, ty: u16, flags: u32) -> Self {
        Self::new(MAP_MEM_TYPE).u16(0, id).u16(2, ty).u32(4, flags)
    }

    /// `track_dirty_vram`: nr u32 @0, first_pfn u64 @8.
    pub(crate) fn track_dirty_vram(first: u64, nr: u32) -> Self {
        Self::new(TRACK_DIRTY_VRAM).u32(0, nr).u64(8, first)
    }
}
