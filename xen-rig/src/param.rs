// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Parameters of a domain (`hvm/params.h`).
//!
//! UNSAFETY: a hypercall on a structure of this process.

use std::io;

use crate::hypercall::{HVM_OP, Privcmd};

/// `struct xen_hvm_param`
#[repr(C)]
struct Param {
    domid: u16,
    pad: u16,
    index: u32,
    value: u64,
}

/// `HVMOP_set_param`
const SET: u64 = 0;

pub(crate) fn set(xen: &Privcmd, domid: u16, index: u32, value: u64) -> io::Result<()> {
    let mut args = Param {
        domid,
        pad: 0,
        index,
        value,
    };
    // SAFETY: the structure of this operation.
    unsafe { xen.call(HVM_OP, &[SET, &raw mut args as u64]) }.map(drop)
}
