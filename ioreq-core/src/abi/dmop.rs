// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Constants of `dm_op.h` and `hvm_op.h` that both sides of the interface use.

/// `HVM_IOREQSRV_BUFIOREQ_OFF`: no buffered ring.
pub const HVM_IOREQSRV_BUFIOREQ_OFF: u8 = 0;
/// `HVM_IOREQSRV_BUFIOREQ_LEGACY`: a ring whose pointers only the two sides' plain stores move.
pub const HVM_IOREQSRV_BUFIOREQ_LEGACY: u8 = 1;
/// `HVM_IOREQSRV_BUFIOREQ_ATOMIC`: a ring whose pointers Xen may also rewind, both at once.
pub const HVM_IOREQSRV_BUFIOREQ_ATOMIC: u8 = 2;

/// `XEN_DMOP_IO_RANGE_PORT`
pub const XEN_DMOP_IO_RANGE_PORT: u32 = 0;
/// `XEN_DMOP_IO_RANGE_MEMORY`
pub const XEN_DMOP_IO_RANGE_MEMORY: u32 = 1;
/// `XEN_DMOP_IO_RANGE_PCI`
pub const XEN_DMOP_IO_RANGE_PCI: u32 = 2;

/// `XEN_DMOP_IOREQ_MEM_ACCESS_READ`: not accepted by any Xen so far.
pub const XEN_DMOP_IOREQ_MEM_ACCESS_READ: u32 = 1;
/// `XEN_DMOP_IOREQ_MEM_ACCESS_WRITE`: writes of the type's pages go to the server.
pub const XEN_DMOP_IOREQ_MEM_ACCESS_WRITE: u32 = 2;

/// `HVMMEM_ram_rw`
pub const HVMMEM_RAM_RW: u32 = 0;
/// `HVMMEM_ram_ro`
pub const HVMMEM_RAM_RO: u32 = 1;
/// `HVMMEM_mmio_dm`
pub const HVMMEM_MMIO_DM: u32 = 2;
/// `HVMMEM_ioreq_server`: 3 was an older meaning of the type and stays unused.
pub const HVMMEM_IOREQ_SERVER: u32 = 4;

/// `XENMEM_resource_ioreq_server_frame_bufioreq`: resource frame of the buffered page.
pub const XENMEM_RESOURCE_FRAME_BUFIOREQ: u64 = 0;
/// `XENMEM_resource_ioreq_server_frame_ioreq(0)`: resource frame of the ioreq page.
pub const XENMEM_RESOURCE_FRAME_IOREQ: u64 = 1;
