// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From the copy of a slot to a [`Request`].

use vm_memory::GuestAddress;

use super::io::{Data, Direction, Io, Target};
use super::malformed::Malformed;
use super::{Kind, MAX_COUNT, Request};
use crate::abi::{
    IOREQ_TYPE_COPY, IOREQ_TYPE_INVALIDATE, IOREQ_TYPE_PCI_CONFIG, IOREQ_TYPE_PIO,
    IOREQ_TYPE_TIMEOFFSET, Ioreq,
};
use crate::ids::{Sbdf, VcpuId};
use crate::memory::Width;

/// Bytes of one function's configuration space.
const PCI_CONFIG_SPACE: u64 = 4096;

/// Decodes and validates the copy of a slot. The rules, with the field of `struct ioreq` (`public/hvm/ioreq.h`) they are
/// about; what Xen does is from `hvmemul_do_io` and `hvmemul_linear_to_phys`:
///
/// * `type`: `PIO`, `COPY` and `PCI_CONFIG` are [`Kind::Io`]; `TIMEOFFSET`; `INVALIDATE`; any other is [`Kind::Unknown`],
///   of which nothing else is checked.
/// * `size`, "size in bytes": 1, 2, 4, and for MMIO 8. Time offsets have 8. `INVALIDATE` has no size.
/// * `count`, "for rep prefixes": 1 to [`MAX_COUNT`]. `INVALIDATE` has no count, and Xen sends 0.
/// * `addr`, "physical address": a port is 16-bit in truth, so all bytes lie within 0x0–0xffff. A PCI address is
///   segment 63:48, bus 47:40, device 39:35, function 34:32, register 31:0, and all bytes of the register access lie
///   within the 4096 of a function.
/// * `df`: element `i` of MMIO is at `addr + i × size`, or `addr - i × size`: with `df`, `addr` is the *highest* element. No
///   byte of any element is beyond an end of the 64-bit space. Ports and registers do not move.
/// * `data_is_ptr`: `data` is the guest-physical address of the first element's data; the data moves as MMIO does, for every
///   kind. Else `data` is the value, cut to `size`; `TIMEOFFSET` and `INVALIDATE` have nothing else, and are writes.
/// * `state`, `vp_eport`, `_pad0`: nothing to the request.
///
/// # Errors
/// What was wrong. The request is still to be answered.
///
/// See [`Io`] for an example.
#[inline]
pub fn decode(raw: &Ioreq, vcpu: VcpuId) -> Result<Request, Malformed> {
    let kind = match raw.kind {
        IOREQ_TYPE_PIO | IOREQ_TYPE_COPY | IOREQ_TYPE_PCI_CONFIG => Kind::Io(io(raw)?),
        IOREQ_TYPE_TIMEOFFSET => time_offset(raw)?,
        IOREQ_TYPE_INVALIDATE => Kind::InvalidateMapCache,
        kind => Kind::Unknown { kind },
    };
    Ok(Request { vcpu, kind })
}

#[inline]
fn io(raw: &Ioreq) -> Result<Io, Malformed> {
    let &Ioreq {
        addr,
        data,
        count,
        size,
        kind,
        ..
    } = raw;
    let width = Width::from_bytes(size)
        .filter(|&width| width < Width::B8 || kind == IOREQ_TYPE_COPY)
        .ok_or(Malformed::Size { kind, size })?;
    if count == 0 || count > MAX_COUNT {
        return Err(Malformed::Count { count });
    }
    let backward = raw.df();
    let target = match kind {
        IOREQ_TYPE_PIO => port(addr, width).ok_or(Malformed::Port { addr, size })?,
        IOREQ_TYPE_COPY if fits(addr, width, count, backward) => Target::Mmio(GuestAddress(addr)),
        IOREQ_TYPE_COPY => {
            return Err(Malformed::Wrap {
                addr,
                size,
                count,
                backward,
            });
        }
        _ => register(addr, width)?,
    };
    let direction = if raw.is_read() {
        Direction::Read
    } else {
        Direction::Write
    };
    let data = match (raw.data_is_ptr(), direction) {
        (true, _) if fits(data, width, count, backward) => Data::Pointer(GuestAddress(data)),
        (true, _) => {
            return Err(Malformed::DataWrap {
                data,
                size,
                count,
                backward,
            });
        }
        (false, Direction::Write) => Data::Inline(width.cut(data)),
        (false, Direction::Read) => Data::Inline(0),
    };
    Ok(Io {
        target,
        direction,
        width,
        data,
        count,
        backward,
    })
}

/// Whether no byte of `count` elements from `addr` on, upward or downward, passes an end of the 64-bit space.
#[inline]
fn fits(addr: u64, width: Width, count: u32, backward: bool) -> bool {
    let bytes = width.bytes();
    let moved = u64::from(count - 1) * bytes; // at most 4095 × 8: `count` is checked
    let (lowest, highest) = if backward {
        (addr.checked_sub(moved), Some(addr))
    } else {
        (Some(addr), addr.checked_add(moved))
    };
    lowest.is_some()
        && highest
            .and_then(|first| first.checked_add(bytes - 1))
            .is_some()
}

#[inline]
fn port(addr: u64, width: Width) -> Option<Target> {
    let port = u16::try_from(addr).ok()?;
    let last = u64::from(port) + (width.bytes() - 1);
    (last <= u64::from(u16::MAX)).then_some(Target::Port(port))
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the two halves of the address are taken apart; the register is below 4096, as just checked"
)]
fn register(addr: u64, width: Width) -> Result<Target, Malformed> {
    let sbdf = Sbdf::from_bits((addr >> 32) as u32);
    let register = addr as u32;
    if u64::from(register) + width.bytes() > PCI_CONFIG_SPACE {
        let size = width as u32;
        return Err(Malformed::Register { register, size });
    }
    let register = register as u16;
    Ok(Target::Pci { sbdf, register })
}

/// Xen's `send_timeoffset_req`: a write of 8 bytes, inline, once.
fn time_offset(raw: &Ioreq) -> Result<Kind, Malformed> {
    let &Ioreq {
        kind, size, count, ..
    } = raw;
    if raw.is_read() {
        return Err(Malformed::Read { kind });
    }
    if raw.data_is_ptr() {
        return Err(Malformed::Pointer { kind });
    }
    if size != 8 {
        return Err(Malformed::Size { kind, size });
    }
    if count != 1 {
        return Err(Malformed::Count { count });
    }
    Ok(Kind::TimeOffset {
        seconds: raw.data.cast_signed(),
    })
}
