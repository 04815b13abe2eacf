// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where things are in a guest of the soak.

use std::ops::Range;

use ioreq::{GfnRange, MmioRange, PortRange, Sbdf};

/// The most vCPUs whose programs there are.
pub(crate) const VCPUS: u32 = 4;
/// Frames whose pages are tracked and left again.
pub(crate) const PAGES: Range<u64> = 0x300..0x310;
/// First and number of the pages that are tracked together.
pub(crate) const RUNS: [(u64, u64); 5] =
    [(0x300, 4), (0x304, 3), (0x307, 1), (0x308, 2), (0x30a, 6)];
/// Words of 4 bytes of each page that are one vCPU's: neighbours are another's.
pub(crate) const WORDS: u64 = 16;
/// A frame for each vCPU that nobody tracks, for data of string instructions.
pub(crate) const BUFFERS: u64 = 0x400;

/// A bank of registers of 8 bytes: what is written to one of the lower half is added, the upper half keeps what is written last.
pub(crate) const BANK: u64 = 0xe000_0000;
/// Its registers.
pub(crate) const REGISTERS: u64 = 512;
/// Registers of each half that are one vCPU's.
pub(crate) const OWN: u64 = 16;
/// The same behind ports.
pub(crate) const PORTS: u16 = 0x1000;
/// Registers behind ports.
pub(crate) const PORT_REGISTERS: u64 = 64;
/// Registers of each half of them that are one vCPU's.
pub(crate) const PORT_OWN: u64 = 4;
/// Ports with something the matter: see [`odd`].
pub(crate) const ODD: u16 = 0x1400;
/// A port that nobody has.
pub(crate) const NOBODY: u16 = 0x1500;
/// A read gives the sum of all that was posted.
pub(crate) const POSTED: u16 = 0x1600;
/// The VGA window.
pub(crate) const VGA: Range<u64> = 0xa_0000..0xc_0000;
/// Registers that a PCI function keeps.
pub(crate) const CONFIG: Range<u8> = 0x40..0x80;

/// Offsets of [`ODD`].
pub(crate) mod odd {
    /// Its handler panics.
    pub(crate) const PANICS: u16 = 0;
    /// It takes a while, and gives its port.
    pub(crate) const SLOW: u16 = 8;
    /// Another thread gives its port, later.
    pub(crate) const LATER: u16 = 16;
    /// Nobody gives an answer.
    pub(crate) const NEVER: u16 = 24;
}

pub(crate) fn bank() -> MmioRange {
    MmioRange::sized(BANK, 8 * REGISTERS).expect("in the address space")
}

pub(crate) fn ports() -> PortRange {
    PortRange::sized(PORTS, 0x200).expect("in the address space")
}

pub(crate) fn odd_ports() -> PortRange {
    PortRange::sized(ODD, 32).expect("in the address space")
}

pub(crate) fn posted() -> PortRange {
    PortRange::sized(POSTED, 8).expect("in the address space")
}

pub(crate) fn vga() -> MmioRange {
    MmioRange::new(VGA.start, VGA.end - 1).expect("in the address space")
}

/// Device 5 of bus 0.
pub(crate) fn function() -> Sbdf {
    Sbdf::from_bits(5 << 3)
}

/// What selects a register of [`function`], in CONFIG_ADDRESS.
pub(crate) fn config_address(register: u8) -> u32 {
    1 << 31 | 5 << 11 | u32::from(register & 0xfc)
}

pub(crate) fn run((first, count): (u64, u64)) -> GfnRange {
    GfnRange::sized(first, count).expect("in the address space")
}

/// The first of a vCPU's registers, of the half that adds and of the one that keeps.
pub(crate) fn own(vcpu: u32, registers: u64, own: u64) -> [u64; 2] {
    let first = u64::from(vcpu) * own;
    [first, registers / 2 + first]
}
