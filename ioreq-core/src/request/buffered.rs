// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests from the buffered ring.

use super::Request;
use super::decode::decode;
use super::malformed::Malformed;
use crate::abi::{BufIoreqEntry, IOREQ_DIR_READ, Ioreq};
use crate::ids::VcpuId;

/// One request of the buffered ring, copied: one entry, or two for an access of 8 bytes. Nobody waits for it.
///
/// ```
/// use ioreq_core::{abi::{BufIoreqEntry, IOREQ_TYPE_COPY}, request::BufferedRequest};
/// let entry = BufIoreqEntry::new(IOREQ_TYPE_COPY, false, 1, 0xa_1234, 0xdead_beef);
/// let request = BufferedRequest::single(entry).unwrap().decode()?;
/// assert_eq!(request.to_string(), "v0: write of 2 bytes to mmio 0xa1234");
/// # Ok::<(), ioreq_core::request::Malformed>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BufferedRequest {
    head: BufIoreqEntry,
    upper: u32,
}

impl BufferedRequest {
    /// log2 of the width that takes two entries.
    const PAIR: u8 = 3;

    /// Whether a request that starts with `entry` takes two entries.
    #[must_use]
    pub const fn is_pair(entry: BufIoreqEntry) -> bool {
        entry.width_log2() == Self::PAIR
    }

    /// A request of one entry; `None` if it takes two.
    #[must_use]
    pub const fn single(entry: BufIoreqEntry) -> Option<Self> {
        if Self::is_pair(entry) {
            None
        } else {
            Some(BufferedRequest {
                head: entry,
                upper: 0,
            })
        }
    }

    /// A request of two entries, of which the second only carries the upper half of the data; `None` if it takes one.
    #[must_use]
    pub const fn pair(head: BufIoreqEntry, second: BufIoreqEntry) -> Option<Self> {
        if Self::is_pair(head) {
            Some(BufferedRequest {
                head,
                upper: second.data(),
            })
        } else {
            None
        }
    }

    /// `IOREQ_TYPE_*`.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.head.kind()
    }

    /// The data.
    #[must_use]
    pub const fn data(&self) -> u64 {
        (self.upper as u64) << 32 | self.head.data() as u64
    }

    /// The same request as a slot would have it.
    #[must_use]
    pub const fn raw(&self) -> Ioreq {
        Ioreq {
            addr: self.head.addr(),
            data: self.data(),
            count: 1,
            size: 1 << self.head.width_log2(),
            vp_eport: 0,
            pad: 0,
            flags: if self.head.is_read() {
                IOREQ_DIR_READ
            } else {
                0
            },
            kind: self.kind(),
        }
    }

    /// Decodes and validates, by the rules of [`decode`](super::decode()) and one more: no reads, because nobody waits for the value.
    /// Entries have no count (1), no pointer to data and no direction flag (`ioreq_send_buffered` sends those
    /// synchronously). They name no vCPU: the request's is vcpu 0.
    ///
    /// # Errors
    /// What was wrong.
    pub fn decode(&self) -> Result<Request, Malformed> {
        if self.head.is_read() {
            return Err(Malformed::Read { kind: self.kind() });
        }
        decode(&self.raw(), VcpuId(0))
    }
}
