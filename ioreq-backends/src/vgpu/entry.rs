// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Entries of gen8 PPGTT tables, and what a table's level makes of them.

use std::fmt;

use ioreq_core::Gfn;

/// Entries of a table.
pub(super) const ENTRIES: usize = 512;

/// Bit 0.
const PRESENT: u64 = 1;
/// Bit 1.
const WRITABLE: u64 = 1 << 1;
/// Bit 7 of a PDP or PD entry: a large page. (In a PT entry the bit is PAT.)
const LARGE: u64 = 1 << 7;
/// Bit 11 of a PD entry (IPS): the table below holds 64 KiB entries.
const IPS: u64 = 1 << 11;
/// Bits 45:12: a frame's address. Host addresses are 46 bits wide.
const ADDRESS: u64 = 0x3fff_ffff_f000;
/// The flags that hardware looks at.
const FLAGS: u64 = 0xfff;

/// What a table is. A page can be one of them at a time: used as two, the second use sees the scratch page.
///
/// ```
/// use ioreq_backends::vgpu::Level;
/// assert_eq!(Level::Pml4.index(0x0000_ff80_0000_0000), 511);
/// assert_eq!(Level::Pt.index(0x1000), 1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Page table of 4 KiB entries.
    Pt,
    /// Page table of 64 KiB entries: one in 16 is used.
    Pt64,
    /// Page directory: page tables, or 2 MiB pages.
    Pd,
    /// Page directory pointers: page directories, or 1 GiB pages.
    Pdp,
    /// The root of a 48-bit address space.
    Pml4,
}

impl Level {
    /// Lowest bit of the index into a table of this level.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Level::Pt | Level::Pt64 => 12,
            Level::Pd => 21,
            Level::Pdp => 30,
            Level::Pml4 => 39,
        }
    }

    /// The entry that a GPU address selects, 0–511. In a table of 64 KiB entries: the used one of its group of 16.
    #[must_use]
    pub const fn index(self, addr: u64) -> usize {
        #[allow(clippy::cast_possible_truncation, reason = "below 512")]
        let index = (addr >> self.shift() & (ENTRIES as u64 - 1)) as usize;
        match self {
            Level::Pt64 => index & !15,
            _ => index,
        }
    }

    /// Whether its entries all lead to pages.
    #[must_use]
    pub const fn is_last(self) -> bool {
        matches!(self, Level::Pt | Level::Pt64)
    }

    /// What an entry at `index` of a table of this level means.
    #[must_use]
    pub fn read(self, index: usize, entry: Entry) -> Kind {
        let unused = self == Level::Pt64 && !index.is_multiple_of(16);
        if unused || !entry.is_present() {
            return Kind::Absent;
        }
        let large = entry.0 & LARGE != 0;
        match self {
            Level::Pml4 => Kind::Table(Level::Pdp),
            Level::Pdp if large => Kind::Page(PageSize::Huge),
            Level::Pdp => Kind::Table(Level::Pd),
            Level::Pd if large => Kind::Page(PageSize::Large),
            Level::Pd if entry.0 & IPS != 0 => Kind::Table(Level::Pt64),
            Level::Pd => Kind::Table(Level::Pt),
            Level::Pt64 => Kind::Page(PageSize::Medium),
            Level::Pt => Kind::Page(PageSize::Small),
        }
    }
}

/// Size of a page that an entry maps.
///
/// ```
/// use ioreq_backends::vgpu::PageSize;
/// assert_eq!(PageSize::Large.bytes(), 2 << 20);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB
    Small,
    /// 64 KiB
    Medium,
    /// 2 MiB
    Large,
    /// 1 GiB
    Huge,
}

impl PageSize {
    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            PageSize::Small => 1 << 12,
            PageSize::Medium => 1 << 16,
            PageSize::Large => 1 << 21,
            PageSize::Huge => 1 << 30,
        }
    }

    /// Frames.
    #[must_use]
    pub const fn frames(self) -> u64 {
        self.bytes() >> 12
    }
}

/// What an entry leads to.
///
/// ```
/// use ioreq_backends::vgpu::{Entry, Kind, Level, PageSize};
/// assert_eq!(Level::Pd.read(0, Entry(0x83)), Kind::Page(PageSize::Large));
/// assert_eq!(Level::Pd.read(0, Entry(0x803)), Kind::Table(Level::Pt64));
/// assert_eq!(Level::Pt64.read(1, Entry(3)), Kind::Absent); // only one in 16 is used
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Nothing.
    Absent,
    /// A page.
    Page(PageSize),
    /// A table of that level.
    Table(Level),
}

/// One 64-bit entry, the guest's or the shadow's.
///
/// ```
/// use ioreq_backends::vgpu::{Entry, PageSize};
/// use ioreq_core::Gfn;
/// let entry = Entry(0x8000_0000_1234_5003);
/// assert!(entry.is_present() && entry.is_writable());
/// assert_eq!(entry.frame(PageSize::Small), Gfn(0x12345)); // bits above 45 are not address
/// assert_eq!(entry.with_address(0x7000).0, 0x7003);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Entry(pub u64);

impl Entry {
    /// An entry that maps nothing.
    pub const ABSENT: Entry = Entry(0);

    /// Bit 0.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Bit 1.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// The address in bits 45:12.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 & ADDRESS
    }

    /// The first frame of a page of `size`; bits below the size are no address.
    #[must_use]
    pub const fn frame(self, size: PageSize) -> Gfn {
        Gfn((self.address() & !(size.bytes() - 1)) >> 12)
    }

    /// The frame of the table that the entry leads to.
    #[must_use]
    pub const fn table(self) -> Gfn {
        Gfn(self.address() >> 12)
    }

    /// The same flags with another address. Bits that hardware ignores are not passed on.
    #[must_use]
    pub const fn with_address(self, address: u64) -> Self {
        Entry(self.0 & FLAGS | address & ADDRESS)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_cut_an_address_without_gap_or_overlap() {
        let addr = 0x0000_8aaa_5555_1234;
        let indices =
            [Level::Pml4, Level::Pdp, Level::Pd, Level::Pt].map(|level| level.index(addr));
        let back = indices
            .iter()
            .fold(0, |addr, index| addr << 9 | *index as u64);
        assert_eq!(back << 12 | addr & 0xfff, addr);
        assert_eq!(Level::Pt64.index(0xf_f000), 0xf0);
    }

    #[test]
    fn the_large_bit_means_pat_in_a_page_table() {
        assert_eq!(Level::Pt.read(5, Entry(0x81)), Kind::Page(PageSize::Small));
        assert_eq!(Level::Pdp.read(5, Entry(0x81)), Kind::Page(PageSize::Huge));
        assert_eq!(Level::Pml4.read(5, Entry(0x81)), Kind::Table(Level::Pdp));
    }

    #[test]
    fn absent_whatever_else_is_set() {
        for level in [Level::Pt, Level::Pt64, Level::Pd, Level::Pdp, Level::Pml4] {
            assert_eq!(level.read(0, Entry(!PRESENT)), Kind::Absent);
        }
    }

    #[test]
    fn large_frames_are_aligned() {
        let entry = Entry(0x3fff_ffff_f083);
        assert_eq!(entry.frame(PageSize::Huge).0 % (1 << 18), 0);
        assert_eq!(entry.frame(PageSize::Small), Gfn(0x3_ffff_ffff));
    }
}
