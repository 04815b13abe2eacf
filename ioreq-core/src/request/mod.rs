// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests as the framework understands them: owned, and validated once, from one copy of a slot or of ring entries.
//!
//! Nothing here touches shared memory. What a value can hold is bounded: a [`Request`] has a width that exists, addresses
//! that do not wrap, and at most [`MAX_COUNT`] elements; anything else is a [`Malformed`] that says what was wrong.

mod buffered;
mod decode;
mod element;
mod io;
mod malformed;
mod plain;

pub use buffered::BufferedRequest;
pub use decode::decode;
pub use element::{Element, Elements};
pub use io::{Data, Direction, Io, Target};
pub use malformed::Malformed;
pub(crate) use plain::Plain;

use crate::ids::VcpuId;

/// The most elements of one request. Xen never sends more: it cuts a repeated instruction at 4096 repetitions
/// (`hvmemul_linear_to_phys`), and one on MMIO also at the end of the page (`hvmemul_do_io`).
pub const MAX_COUNT: u32 = 4096;

/// One request, decoded by [`decode`] or from a [`BufferedRequest`].
///
/// ```
/// use ioreq_core::{VcpuId, abi::{IOREQ_TYPE_PIO, Ioreq}, request::{Kind, decode}};
/// let raw = Ioreq { kind: IOREQ_TYPE_PIO, addr: 0x3f8, size: 1, count: 1, data: 0x41, ..Ioreq::default() };
/// let request = decode(&raw, VcpuId(1))?;
/// assert_eq!(request.vcpu(), VcpuId(1));
/// assert!(matches!(request.kind(), Kind::Io(_)));
/// assert_eq!(request.to_string(), "v1: write of 1 byte to port 0x3f8");
/// # Ok::<(), ioreq_core::request::Malformed>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    vcpu: VcpuId,
    kind: Kind,
}

/// What is asked for.
///
/// ```
/// use ioreq_core::request::Kind;
/// assert!(matches!(Kind::Unknown { kind: 9 }, Kind::Unknown { kind } if kind > 8));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Port, MMIO (which includes writes to tracked pages) or PCI configuration space.
    Io(Io),
    /// `IOREQ_TYPE_TIMEOFFSET`: the guest set its clock, by so many seconds from the host's.
    TimeOffset {
        /// Seconds, as Xen sends them.
        seconds: i64,
    },
    /// `IOREQ_TYPE_INVALIDATE`: drop cached mappings of guest memory; to be answered once that is done.
    InvalidateMapCache,
    /// A type that the headers do not name. Answered as nobody's.
    Unknown {
        /// The type.
        kind: u8,
    },
}

impl Request {
    /// The vCPU that waits for the answer. Vcpu 0 for buffered requests, which name none.
    #[must_use]
    pub const fn vcpu(&self) -> VcpuId {
        self.vcpu
    }

    /// What is asked for.
    #[must_use]
    pub const fn kind(&self) -> &Kind {
        &self.kind
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.vcpu)?;
        match &self.kind {
            Kind::Io(io) => io.fmt(f),
            Kind::TimeOffset { seconds } => write!(f, "time offset {seconds} s"),
            Kind::InvalidateMapCache => f.write_str("map-cache invalidate"),
            Kind::Unknown { kind } => write!(f, "unknown type {kind}"),
        }
    }
}
