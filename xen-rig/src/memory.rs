// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of a domain: given to it, and its pages' types.
//!
//! UNSAFETY: hypercalls on structures of this process.

use std::io;
use std::ops::Range;

use crate::hypercall::{HVM_OP, MEMORY_OP, Privcmd};

/// `struct xen_memory_reservation`
#[repr(C)]
struct Reservation {
    extents: u64,
    count: u64,
    order: u32,
    flags: u32,
    domid: u16,
}

/// `struct xen_hvm_get_mem_type`
#[repr(C)]
struct GetMemType {
    domid: u16,
    ty: u16,
    pad: [u16; 2],
    gfn: u64,
}

/// `XENMEM_populate_physmap`
const POPULATE: u64 = 6;
/// `HVMOP_get_mem_type`
const GET_MEM_TYPE: u64 = 15;

/// Gives the domain memory at these frames, page by page.
pub(crate) fn populate(xen: &Privcmd, domid: u16, frames: Range<u64>) -> io::Result<()> {
    extents(xen, domid, frames.collect(), 0)
}

/// The same in pieces of 2 MiB where they fit, as a real guest has it: faster by far.
pub(crate) fn populate_big(xen: &Privcmd, domid: u16, frames: Range<u64>) -> io::Result<()> {
    const BIG: u64 = 1 << 9;
    let first = frames.start.next_multiple_of(BIG).min(frames.end);
    let end = (frames.end / BIG * BIG).max(first);
    populate(xen, domid, frames.start..first)?;
    let big = (first..end).step_by(usize::try_from(BIG).unwrap_or(1));
    extents(xen, domid, big.collect(), 9)?;
    populate(xen, domid, end..frames.end)
}

/// Memory of `1 << order` frames from each of `extents` on.
fn extents(xen: &Privcmd, domid: u16, mut extents: Vec<u64>, order: u32) -> io::Result<()> {
    if extents.is_empty() {
        return Ok(());
    }
    let mut args = Reservation {
        extents: extents.as_mut_ptr() as u64,
        count: extents.len() as u64,
        order,
        flags: 0,
        domid,
    };
    // SAFETY: the structure of this operation, whose array has `count` entries.
    let done = unsafe { xen.call(MEMORY_OP, &[POPULATE, &raw mut args as u64]) }?;
    if done == extents.len() as u64 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }
}

/// A page's `hvmmem_type_t`.
pub(crate) fn mem_type(xen: &Privcmd, domid: u16, gfn: u64) -> io::Result<u16> {
    let mut args = GetMemType {
        domid,
        ty: 0,
        pad: [0; 2],
        gfn,
    };
    // SAFETY: the structure of this operation.
    unsafe { xen.call(HVM_OP, &[GET_MEM_TYPE, &raw mut args as u64]) }?;
    Ok(args.ty)
}
