// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One logged write.

use std::fmt;

use ioreq_core::handler::{Context, PageWrite, WriteSource};
use ioreq_core::{Gfn, VcpuId, Width};

/// One write to a tracked page, as the log keeps it.
///
/// ```
/// use ioreq_backends::write_log::WriteRecord;
/// use ioreq_core::{Gfn, VcpuId, Width, handler::WriteSource};
/// let record = WriteRecord {
///     gfn: Gfn(0x1234),
///     offset: 0x18,
///     width: Width::B4,
///     value: 0xabcd,
///     vcpu: VcpuId(1),
///     source: WriteSource::Trapped,
///     sequence: 7,
/// };
/// assert_eq!(record.to_string(), "v1 Trapped gfn 0x1234+0x018 #7: 4 bytes 0x0000abcd");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriteRecord {
    /// The page.
    pub gfn: Gfn,
    /// First byte within the page, below 4096.
    pub offset: u16,
    /// Bytes written.
    pub width: Width,
    /// The value, zero-extended, as it was written (whatever the handler behind the log made of it).
    pub value: u64,
    /// The vCPU that wrote.
    pub vcpu: VcpuId,
    /// By what way the write came.
    pub source: WriteSource,
    /// Which write to this page it is, counted from 0 (by the handler that logs the page).
    pub sequence: u64,
}

impl WriteRecord {
    pub(super) fn new(cx: &Context<'_>, write: &PageWrite<'_>, sequence: u64) -> Self {
        WriteRecord {
            gfn: write.gfn(),
            offset: write.offset(),
            width: write.width(),
            value: write.value(),
            vcpu: cx.vcpu(),
            source: write.source(),
            sequence,
        }
    }
}

impl fmt::Display for WriteRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?} {}+{:#05x} #{}: {} bytes {:#0digits$x}",
            self.vcpu,
            self.source,
            self.gfn,
            self.offset,
            self.sequence,
            self.width.bytes(),
            self.value,
            digits = 2 + 2 * self.width.size(),
        )
    }
}
