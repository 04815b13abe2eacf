// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `struct ioreq` and the page of them (`struct shared_iopage`).

use std::mem::{offset_of, size_of};

/// `STATE_IOREQ_NONE`: the slot is free; Xen's side owns it.
pub const STATE_IOREQ_NONE: u8 = 0;
/// `STATE_IOREQ_READY`: Xen filled the slot; the device model's turn.
pub const STATE_IOREQ_READY: u8 = 1;
/// `STATE_IOREQ_INPROCESS`: the device model took it.
pub const STATE_IOREQ_INPROCESS: u8 = 2;
/// `STATE_IORESP_READY`: answered; Xen's turn.
pub const STATE_IORESP_READY: u8 = 3;

/// `IOREQ_TYPE_PIO`: port I/O.
pub const IOREQ_TYPE_PIO: u8 = 0;
/// `IOREQ_TYPE_COPY`: MMIO, and writes to tracked pages.
pub const IOREQ_TYPE_COPY: u8 = 1;
/// `IOREQ_TYPE_PCI_CONFIG`: PCI configuration space through 0xcf8/0xcfc.
pub const IOREQ_TYPE_PCI_CONFIG: u8 = 2;
/// `IOREQ_TYPE_TIMEOFFSET`: the guest set its clock.
pub const IOREQ_TYPE_TIMEOFFSET: u8 = 7;
/// `IOREQ_TYPE_INVALIDATE`: drop cached mappings of guest memory.
pub const IOREQ_TYPE_INVALIDATE: u8 = 8;

/// `IOREQ_WRITE`: value of the direction bit for a write.
pub const IOREQ_WRITE: u8 = 0;
/// `IOREQ_READ`: value of the direction bit for a read.
pub const IOREQ_READ: u8 = 1;

/// Bits 3:0 of the flag byte: the state.
pub const IOREQ_STATE_MASK: u8 = 0x0f;
/// Bit 4 of the flag byte: `data` is the guest-physical address of the data.
pub const IOREQ_DATA_IS_PTR: u8 = 1 << 4;
/// Bit 5 of the flag byte: direction, set for a read.
pub const IOREQ_DIR_READ: u8 = 1 << 5;
/// Bit 6 of the flag byte: addresses step downward.
pub const IOREQ_DF: u8 = 1 << 6;

/// `struct ioreq`: one vCPU's request, 32 bytes. The C bit-field is the one byte [`flags`](Self::flags).
///
/// ```
/// use ioreq_core::abi::{Ioreq, IOREQ_DIR_READ, STATE_IOREQ_READY};
/// let raw = Ioreq { flags: IOREQ_DIR_READ | STATE_IOREQ_READY, size: 4, count: 1, ..Ioreq::default() };
/// assert_eq!(raw.state(), STATE_IOREQ_READY);
/// assert!(raw.is_read());
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ioreq {
    /// Port, guest-physical address, or packed PCI address.
    pub addr: u64,
    /// Inline data, or its guest-physical address.
    pub data: u64,
    /// Repeat count.
    pub count: u32,
    /// Bytes of one access.
    pub size: u32,
    /// Event-channel port of the vCPU.
    pub vp_eport: u32,
    /// Padding.
    pub pad: u16,
    /// State, data_is_ptr, direction, df (see the `IOREQ_*` bit constants).
    pub flags: u8,
    /// `IOREQ_TYPE_*`.
    pub kind: u8,
}

impl Ioreq {
    /// The state in the flag byte.
    #[must_use]
    pub const fn state(&self) -> u8 {
        self.flags & IOREQ_STATE_MASK
    }

    /// Whether the direction bit says read.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        self.flags & IOREQ_DIR_READ != 0
    }

    /// Whether `data` is a guest address.
    #[must_use]
    pub const fn data_is_ptr(&self) -> bool {
        self.flags & IOREQ_DATA_IS_PTR != 0
    }

    /// Whether addresses step downward.
    #[must_use]
    pub const fn df(&self) -> bool {
        self.flags & IOREQ_DF != 0
    }
}

/// Slots in the one ioreq page of an x86 domain, so the most vCPUs it can have.
pub const IOREQ_SLOTS: usize = 128;

/// Offset of the flag byte within a slot.
pub const IOREQ_FLAGS_OFFSET: usize = offset_of!(Ioreq, flags);

const _: () = {
    assert!(size_of::<Ioreq>() == 32 && align_of::<Ioreq>() == 8);
    assert!(offset_of!(Ioreq, addr) == 0 && offset_of!(Ioreq, data) == 8);
    assert!(offset_of!(Ioreq, count) == 16 && offset_of!(Ioreq, size) == 20);
    assert!(offset_of!(Ioreq, vp_eport) == 24 && offset_of!(Ioreq, pad) == 28);
    assert!(offset_of!(Ioreq, flags) == 30 && offset_of!(Ioreq, kind) == 31);
    assert!(IOREQ_SLOTS * size_of::<Ioreq>() == 4096);
};
