// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/dev/xen/privcmd`: Linux' `include/uapi/xen/privcmd.h`.

use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::mem::{offset_of, size_of};

use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_WRITE, ioctl_expr};

/// The type letter of privcmd's ioctls.
const P: c_uint = b'P' as c_uint;

/// `struct privcmd_hypercall`: a hypercall by its number, with five arguments.
///
/// ```
/// use ioreq_xen::abi::PrivcmdHypercall;
/// assert_eq!(PrivcmdHypercall { op: 12, arg: [14, 0, 0, 0, 0] }.op, 12);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrivcmdHypercall {
    /// `__HYPERVISOR_*`
    pub op: u64,
    /// Arguments; pointers are to memory that is mapped in page tables for sure.
    pub arg: [u64; 5],
}

/// `struct privcmd_mmapbatch_v2`: foreign frames into a mapping of this file.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::PrivcmdMmapBatchV2>(), 32);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrivcmdMmapBatchV2 {
    /// Number of pages.
    pub num: c_uint,
    /// The domain whose frames they are.
    pub dom: u16,
    /// Where in this process.
    pub addr: u64,
    /// `num` frame numbers.
    pub arr: *const u64,
    /// `num` error numbers (negative), written by the kernel.
    pub err: *mut c_int,
}

/// `struct privcmd_dm_op_buf`: one buffer of a DMOP.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::PrivcmdDmOpBuf>(), 16);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrivcmdDmOpBuf {
    /// Its first byte.
    pub uptr: *mut c_void,
    /// Its length in bytes, at most [`DM_OP_BUF_MAX_SIZE`].
    pub size: usize,
}

/// `struct privcmd_dm_op`: a DMOP.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::PrivcmdDmOp>(), 16);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrivcmdDmOp {
    /// The domain.
    pub dom: u16,
    /// Number of buffers, at most [`DM_OP_MAX_NUM`].
    pub num: u16,
    /// The buffers; the first is `struct xen_dm_op`.
    pub ubufs: *const PrivcmdDmOpBuf,
}

/// `struct privcmd_mmap_resource`: frames of a resource into a mapping of this file.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::PrivcmdMmapResource>(), 32);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrivcmdMmapResource {
    /// The domain.
    pub dom: u16,
    /// `XENMEM_resource_*`
    pub kind: u32,
    /// The resource's id, e.g. of an ioreq server.
    pub id: u32,
    /// First frame.
    pub idx: u32,
    /// Number of frames.
    pub num: u64,
    /// Where in this process.
    pub addr: u64,
}

/// `struct privcmd_irqfd`, of newer Linux' header (6.7 and later): a DMOP that the kernel makes whenever an eventfd is
/// written.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::PrivcmdIrqfd>(), 24);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrivcmdIrqfd {
    /// Address of a `struct xen_dm_op`.
    pub dm_op: u64,
    /// Its size.
    pub size: u32,
    /// The eventfd.
    pub fd: u32,
    /// [`PRIVCMD_IRQFD_FLAG_DEASSIGN`], or 0.
    pub flags: u32,
    /// The domain.
    pub dom: u16,
    /// Zero.
    pub pad: [u8; 2],
}

/// `PRIVCMD_IRQFD_FLAG_DEASSIGN`
pub const PRIVCMD_IRQFD_FLAG_DEASSIGN: u32 = 1;

/// `struct privcmd_ioeventfd`, of newer Linux' header (6.7 and later): an eventfd that the kernel writes for one queue of a
/// virtio-mmio device.
///
/// Encoding only. The kernel's handler takes slots by plain loads and stores: a server of this framework that looked at the
/// same slots could have a request twice. And with a PV dom0 the kernel, as it was merged, follows a pointer that is none.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::PrivcmdIoeventfd>(), 48);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PrivcmdIoeventfd {
    /// Address of the ioreq page in this process.
    pub ioreq: u64,
    /// Address of a local event-channel port (u32) for each vCPU.
    pub ports: u64,
    /// The device's first MMIO address.
    pub addr: u64,
    /// Its length in bytes.
    pub addr_len: u32,
    /// The eventfd.
    pub event_fd: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The queue.
    pub vq: u32,
    /// [`PRIVCMD_IOEVENTFD_FLAG_DEASSIGN`], or 0.
    pub flags: u32,
    /// The domain.
    pub dom: u16,
    /// Zero.
    pub pad: [u8; 2],
}

/// `PRIVCMD_IOEVENTFD_FLAG_DEASSIGN`
pub const PRIVCMD_IOEVENTFD_FLAG_DEASSIGN: u32 = 1;

/// Most buffers that Linux passes on for a DMOP (`privcmd_dm_op_max_num`, a parameter of its module).
pub const DM_OP_MAX_NUM: usize = 16;
/// Longest buffer that Linux passes on for a DMOP (`privcmd_dm_op_buf_max_size`, a parameter of its module).
pub const DM_OP_BUF_MAX_SIZE: usize = 4096;

/// `IOCTL_PRIVCMD_HYPERCALL`
pub const IOCTL_PRIVCMD_HYPERCALL: c_ulong =
    ioctl_expr(_IOC_NONE, P, 0, size::<PrivcmdHypercall>());
/// `IOCTL_PRIVCMD_MMAPBATCH_V2`
pub const IOCTL_PRIVCMD_MMAPBATCH_V2: c_ulong =
    ioctl_expr(_IOC_NONE, P, 4, size::<PrivcmdMmapBatchV2>());
/// `IOCTL_PRIVCMD_DM_OP`
pub const IOCTL_PRIVCMD_DM_OP: c_ulong = ioctl_expr(_IOC_NONE, P, 5, size::<PrivcmdDmOp>());
/// `IOCTL_PRIVCMD_RESTRICT`
pub const IOCTL_PRIVCMD_RESTRICT: c_ulong = ioctl_expr(_IOC_NONE, P, 6, size::<u16>());
/// `IOCTL_PRIVCMD_MMAP_RESOURCE`
pub const IOCTL_PRIVCMD_MMAP_RESOURCE: c_ulong =
    ioctl_expr(_IOC_NONE, P, 7, size::<PrivcmdMmapResource>());

/// `IOCTL_PRIVCMD_IRQFD`: Linux 6.7 or later with CONFIG_XEN_PRIVCMD_EVENTFD; ENOTTY or ENOSYS elsewhere.
pub const IOCTL_PRIVCMD_IRQFD: c_ulong = ioctl_expr(_IOC_WRITE, P, 8, size::<PrivcmdIrqfd>());
/// `IOCTL_PRIVCMD_IOEVENTFD`: as [`IOCTL_PRIVCMD_IRQFD`].
pub const IOCTL_PRIVCMD_IOEVENTFD: c_ulong =
    ioctl_expr(_IOC_WRITE, P, 9, size::<PrivcmdIoeventfd>());

pub(crate) const fn size<T>() -> c_uint {
    assert!(size_of::<T>() < 1 << 14, "an ioctl's size has 14 bits");
    #[allow(clippy::cast_possible_truncation, reason = "checked just above")]
    let size = size_of::<T>() as c_uint;
    size
}

const _: () = {
    assert!(size_of::<PrivcmdHypercall>() == 48);
    assert!(size_of::<PrivcmdMmapBatchV2>() == 32);
    assert!(offset_of!(PrivcmdMmapBatchV2, addr) == 8);
    assert!(offset_of!(PrivcmdMmapBatchV2, err) == 24);
    assert!(size_of::<PrivcmdDmOpBuf>() == 16);
    assert!(size_of::<PrivcmdDmOp>() == 16 && offset_of!(PrivcmdDmOp, ubufs) == 8);
    assert!(size_of::<PrivcmdMmapResource>() == 32);
    assert!(offset_of!(PrivcmdMmapResource, num) == 16);
    // By newer Linux' header: that of Debian 12 lacks these two, so `tests/abi_headers.rs` cannot ask it.
    assert!(size_of::<PrivcmdIrqfd>() == 24 && offset_of!(PrivcmdIrqfd, dom) == 20);
    assert!(size_of::<PrivcmdIoeventfd>() == 48 && offset_of!(PrivcmdIoeventfd, dom) == 44);
    assert!(IOCTL_PRIVCMD_IRQFD == 0x4018_5008 && IOCTL_PRIVCMD_IOEVENTFD == 0x4030_5009);
};
