// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where things are in the suite's guests.

use ioreq_core::{Gfn, GfnRange, IoRange, MmioRange, PortRange};

/// Frames of guest RAM: 0 to this, but for the VGA hole.
pub(crate) const RAM_FRAMES: u64 = 4096;
/// The VGA hole, 0xa0000–0xbffff.
pub(crate) const VGA: u64 = 0xa_0000;
/// An MMIO hole.
pub(crate) const MMIO: u64 = 0xe000_0000;
/// A port, with its neighbours up to 0x5ff nobody else's.
pub(crate) const PORT: u16 = 0x510;
/// Frames for tracked pages; frame 0x100 to 0x1ff are a real guest's agent's.
pub(crate) const TRACKED: Gfn = Gfn(0x200);
/// Frames for plain data.
pub(crate) const PLAIN: u64 = 0x300 << 12;
/// The page that a guest gives back: no test has another use for the last one.
pub(crate) const GIVEN_BACK: Gfn = Gfn(RAM_FRAMES - 1);
/// A port that no server of the suite has.
pub(crate) const FREE_PORT: u16 = 0x900;

/// Guest-physical address of a byte of a page.
pub(crate) fn addr(gfn: Gfn, offset: u64) -> u64 {
    (gfn.0 << 12) + offset
}

pub(crate) fn ports(first: u16, last: u16) -> IoRange {
    PortRange::new(first, last).expect("a port range").into()
}

pub(crate) fn mmio(first: u64, len: u64) -> IoRange {
    MmioRange::sized(first, len).expect("an MMIO range").into()
}

pub(crate) fn pages(first: Gfn, count: u64) -> GfnRange {
    GfnRange::sized(first.0, count).expect("a range of frames")
}
