// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/dev/xen/evtchn`: Linux' `include/uapi/xen/evtchn.h`.

use std::ffi::{c_uint, c_ulong};
use std::mem::size_of;

use vmm_sys_util::ioctl::{_IOC_NONE, ioctl_expr};

use super::privcmd::size;

/// The type letter of evtchn's ioctls.
const E: c_uint = b'E' as c_uint;

/// `struct ioctl_evtchn_bind_interdomain`: the ioctl returns the local port.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::EvtchnBindInterdomain>(), 8);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EvtchnBindInterdomain {
    /// The domain.
    pub remote_domain: c_uint,
    /// Its port.
    pub remote_port: c_uint,
}

/// `struct ioctl_evtchn_bind_unbound_port`: the ioctl returns the local port.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::EvtchnBindUnboundPort>(), 4);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EvtchnBindUnboundPort {
    /// The domain that may bind its other end.
    pub remote_domain: c_uint,
}

/// `struct ioctl_evtchn_unbind` and `struct ioctl_evtchn_notify`: a local port.
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::EvtchnPortArg>(), 4);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EvtchnPortArg {
    /// The port.
    pub port: c_uint,
}

/// `struct ioctl_evtchn_restrict_domid`
///
/// ```
/// assert_eq!(std::mem::size_of::<ioreq_xen::abi::EvtchnRestrictDomid>(), 2);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EvtchnRestrictDomid {
    /// The one domain whose ports may still be bound.
    pub domid: u16,
}

/// `IOCTL_EVTCHN_BIND_INTERDOMAIN`
pub const IOCTL_EVTCHN_BIND_INTERDOMAIN: c_ulong =
    ioctl_expr(_IOC_NONE, E, 1, size::<EvtchnBindInterdomain>());
/// `IOCTL_EVTCHN_BIND_UNBOUND_PORT`
pub const IOCTL_EVTCHN_BIND_UNBOUND_PORT: c_ulong =
    ioctl_expr(_IOC_NONE, E, 2, size::<EvtchnBindUnboundPort>());
/// `IOCTL_EVTCHN_UNBIND`
pub const IOCTL_EVTCHN_UNBIND: c_ulong = ioctl_expr(_IOC_NONE, E, 3, size::<EvtchnPortArg>());
/// `IOCTL_EVTCHN_NOTIFY`
pub const IOCTL_EVTCHN_NOTIFY: c_ulong = ioctl_expr(_IOC_NONE, E, 4, size::<EvtchnPortArg>());
/// `IOCTL_EVTCHN_RESET`
pub const IOCTL_EVTCHN_RESET: c_ulong = ioctl_expr(_IOC_NONE, E, 5, 0);
/// `IOCTL_EVTCHN_RESTRICT_DOMID`
pub const IOCTL_EVTCHN_RESTRICT_DOMID: c_ulong =
    ioctl_expr(_IOC_NONE, E, 6, size::<EvtchnRestrictDomid>());

const _: () = {
    assert!(size_of::<EvtchnBindInterdomain>() == 8);
    assert!(size_of::<EvtchnBindUnboundPort>() == 4);
    assert!(size_of::<EvtchnPortArg>() == 4);
    assert!(size_of::<EvtchnRestrictDomid>() == 2);
};
