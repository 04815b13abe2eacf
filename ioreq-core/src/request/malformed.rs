// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can be wrong with a request.

/// Why a request makes no sense. Xen sends none of these: a guest reached the page, or this library and Xen disagree.
///
/// Such a request is answered (all-ones for an inline read, nothing for anything else), counted, and logged with a rate
/// limit. The enum is complete: a new reason is a new version.
///
/// ```
/// use ioreq_core::{VcpuId, abi::{IOREQ_TYPE_PIO, Ioreq}, request::{Malformed, decode}};
/// let raw = Ioreq { kind: IOREQ_TYPE_PIO, addr: 0x1_0000, size: 1, count: 1, ..Ioreq::default() };
/// let why = decode(&raw, VcpuId(0)).unwrap_err();
/// assert_eq!(why, Malformed::Port { addr: 0x1_0000, size: 1 });
/// assert_eq!(why.to_string(), "1 bytes at port 0x10000 are not all within 0x0–0xffff");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// A size that the kind does not have: 1, 2 and 4 everywhere, 8 for MMIO only (`in` and `out` have no 8-byte form).
    #[error("size {size} of a request of type {kind}")]
    Size {
        /// `IOREQ_TYPE_*`.
        kind: u8,
        /// The slot's `size`.
        size: u32,
    },
    /// A repeat count outside 1 to [`MAX_COUNT`](super::MAX_COUNT).
    #[error("repeat count {count} is not 1 to {}", super::MAX_COUNT)]
    Count {
        /// The slot's `count`.
        count: u32,
    },
    /// A port access not wholly within the 65536 ports.
    #[error("{size} bytes at port {addr:#x} are not all within 0x0–0xffff")]
    Port {
        /// The slot's `addr`.
        addr: u64,
        /// The slot's `size`.
        size: u32,
    },
    /// MMIO addresses that pass an end of the 64-bit space.
    #[error("{count} × {size} bytes at {addr:#x}, {}, wrap around", direction(*backward))]
    Wrap {
        /// The slot's `addr`.
        addr: u64,
        /// The slot's `size`.
        size: u32,
        /// The slot's `count`.
        count: u32,
        /// The slot's `df`.
        backward: bool,
    },
    /// Guest addresses of the data that pass an end of the 64-bit space.
    #[error("data of {count} × {size} bytes at {data:#x}, {}, wrap around", direction(*backward))]
    DataWrap {
        /// The slot's `data`.
        data: u64,
        /// The slot's `size`.
        size: u32,
        /// The slot's `count`.
        count: u32,
        /// The slot's `df`.
        backward: bool,
    },
    /// A PCI register not wholly within the 4096 bytes of a function's configuration space.
    #[error("{size} bytes at PCI register {register:#x} are not all within 0x0–0xfff")]
    Register {
        /// Bits 31:0 of the slot's `addr`.
        register: u32,
        /// The slot's `size`.
        size: u32,
    },
    /// A read where only writes exist: nobody would get the value.
    #[error("a read of type {kind}, which has only writes")]
    Read {
        /// `IOREQ_TYPE_*`.
        kind: u8,
    },
    /// A guest address in place of data where only inline data exists.
    #[error("type {kind} with its data in guest memory, which it does not have")]
    Pointer {
        /// `IOREQ_TYPE_*`.
        kind: u8,
    },
}

fn direction(backward: bool) -> &'static str {
    if backward { "downward" } else { "upward" }
}
