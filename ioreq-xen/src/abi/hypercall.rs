// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The few hypercalls that are no DMOPs: `memory.h`, `domctl.h`, `hvm/hvm_op.h`. All need an unrestricted handle.

use std::mem::{offset_of, size_of};

/// `__HYPERVISOR_memory_op`
pub const HYPERVISOR_MEMORY_OP: u64 = 12;
/// `__HYPERVISOR_hvm_op`
pub const HYPERVISOR_HVM_OP: u64 = 34;
/// `__HYPERVISOR_domctl`
pub const HYPERVISOR_DOMCTL: u64 = 36;

/// `XENMEM_maximum_gpfn`: takes a domid, returns the highest guest frame.
pub const XENMEM_MAXIMUM_GPFN: u64 = 14;
/// `XENMEM_resource_ioreq_server`
pub const XENMEM_RESOURCE_IOREQ_SERVER: u32 = 0;
/// `HVMOP_get_mem_type`
pub const HVMOP_GET_MEM_TYPE: u64 = 15;
/// `XEN_DOMCTL_getdomaininfo`
pub const XEN_DOMCTL_GETDOMAININFO: u32 = 5;

/// `XEN_DOMINF_dying`
pub const XEN_DOMINF_DYING: u32 = 1 << 0;
/// `XEN_DOMINF_shutdown`
pub const XEN_DOMINF_SHUTDOWN: u32 = 1 << 2;
/// `XEN_DOMINF_shutdownshift`: where the reason is in the flags, 8 bits.
pub const XEN_DOMINF_SHUTDOWN_SHIFT: u32 = 16;

/// `struct xen_hvm_get_mem_type`
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::HvmGetMemType>(), 16);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct HvmGetMemType {
    /// The domain.
    pub domid: u16,
    /// Out: `HVMMEM_*`
    pub mem_type: u16,
    /// Zero.
    pub pad: [u16; 2],
    /// The frame.
    pub pfn: u64,
}

/// `struct xen_domctl` with `getdomaininfo` of its union, as far as every Xen so far has it in the same place.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::DomctlGetDomainInfo>(), 144);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DomctlGetDomainInfo {
    /// [`XEN_DOMCTL_GETDOMAININFO`]
    pub cmd: u32,
    /// Differs from release to release; Xen refuses another's (EACCES).
    pub interface_version: u32,
    /// The domain asked for.
    pub domain: u16,
    /// Zero.
    pub pad: [u16; 3],
    /// Out: the domain that was found.
    pub info_domain: u16,
    /// Zero.
    pub info_pad: u16,
    /// Out: `XEN_DOMINF_*`
    pub info_flags: u32,
    /// Out: numbers that are of no interest here.
    pub info_numbers: [u64; 7],
    /// Out: CPUs, and the like.
    pub info_more: [u32; 3],
    /// Out: the domain's UUID, or whatever the toolstack gave it.
    pub info_handle: [u8; 16],
    /// The rest of the union, which grows.
    pub rest: [u32; 9],
}

const _: () = {
    assert!(size_of::<HvmGetMemType>() == 16 && offset_of!(HvmGetMemType, pfn) == 8);
    assert!(size_of::<DomctlGetDomainInfo>() == 144);
    assert!(offset_of!(DomctlGetDomainInfo, info_domain) == 16);
    assert!(offset_of!(DomctlGetDomainInfo, info_flags) == 20);
    assert!(offset_of!(DomctlGetDomainInfo, info_handle) == 92);
};
