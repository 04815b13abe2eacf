// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `struct buf_ioreq` and the page of them (`struct buffered_iopage`).

use std::mem::{offset_of, size_of};

/// `IOREQ_BUFFER_SLOT_NUM`: entries of the buffered ring.
pub const IOREQ_BUFFER_SLOT_NUM: u32 = 511;

/// `struct buf_ioreq`: one entry of the ring, 8 bytes. An 8-byte access takes two entries, the second with the upper data.
///
/// ```
/// use ioreq_core::abi::BufIoreqEntry;
/// let entry = BufIoreqEntry::from_bits(0xdead_beef_a000_0801);
/// assert_eq!(entry.kind(), 1);
/// assert_eq!(entry.addr(), 0xa0000);
/// assert_eq!((entry.width_log2(), entry.is_read()), (2, false));
/// assert_eq!(entry.data(), 0xdead_beef);
/// ```
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BufIoreqEntry(u64);

impl BufIoreqEntry {
    /// From the entry as one little-endian 64-bit word.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        BufIoreqEntry(bits)
    }

    /// From its parts; the parts are cut to their fields' widths.
    #[must_use]
    pub const fn new(kind: u8, read: bool, width_log2: u8, addr: u32, data: u32) -> Self {
        BufIoreqEntry(
            kind as u64
                | (read as u64) << 9
                | (width_log2 as u64 & 3) << 10
                | (addr as u64 & 0xf_ffff) << 12
                | (data as u64) << 32,
        )
    }

    /// The entry as one word.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// `IOREQ_TYPE_*`, bits 7:0.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Direction, bit 9.
    #[must_use]
    pub const fn is_read(self) -> bool {
        self.0 >> 9 & 1 != 0
    }

    /// log2 of the access's bytes, bits 11:10.
    #[must_use]
    pub const fn width_log2(self) -> u8 {
        (self.0 >> 10 & 3) as u8
    }

    /// Guest-physical address, bits 31:12 (20 bits).
    #[must_use]
    pub const fn addr(self) -> u64 {
        self.0 >> 12 & 0xf_ffff
    }

    /// Data, bits 63:32.
    #[must_use]
    pub const fn data(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// `struct buffered_iopage`: the two pointers, then the entries. Pointers count entries and wrap at 2^32.
///
/// ```
/// use ioreq_core::abi::{BufferedIopage, IOREQ_BUFFER_SLOT_NUM};
/// assert_eq!(std::mem::size_of::<BufferedIopage>(), 8 + 8 * IOREQ_BUFFER_SLOT_NUM as usize);
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct BufferedIopage {
    /// Next entry the device model takes.
    pub read_pointer: u32,
    /// Next entry Xen fills.
    pub write_pointer: u32,
    /// The entries.
    pub slots: [BufIoreqEntry; IOREQ_BUFFER_SLOT_NUM as usize],
}

const _: () = {
    assert!(size_of::<BufIoreqEntry>() == 8);
    assert!(offset_of!(BufferedIopage, read_pointer) == 0);
    assert!(offset_of!(BufferedIopage, write_pointer) == 4);
    assert!(offset_of!(BufferedIopage, slots) == 8);
    assert!(size_of::<BufferedIopage>() == 4096);
};
