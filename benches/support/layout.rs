// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where the ranges lie, and whose they are. Regular, so that an address is computed and not looked up: a table of
//! addresses would compete for the caches with what is measured.

/// First address of every layout.
const BASE: u64 = 0xe000_0000;

/// Equally spaced ranges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Number of ranges.
    pub(crate) count: u64,
    /// Addresses from one range's start to the next one's.
    pub(crate) stride: u64,
    /// Addresses of a range.
    pub(crate) len: u64,
    /// Number of devices: range `i` belongs to device `i * devices / count`.
    pub(crate) devices: u64,
    base: u64,
}

impl Layout {
    /// Tracked pages, side by side.
    pub(crate) fn pages(count: u64, devices: u64) -> Self {
        Layout {
            count,
            stride: 0x1000,
            len: 0x1000,
            devices,
            base: BASE,
        }
    }

    /// A page each, and a page between them.
    pub(crate) fn aligned(count: u64) -> Self {
        Layout {
            stride: 0x2000,
            ..Self::pages(count, count)
        }
    }

    /// Register blocks of 256 bytes with gaps: ten or so in a page, some across a page's end.
    pub(crate) fn small(count: u64) -> Self {
        Layout {
            stride: 0x180,
            len: 0x100,
            ..Self::pages(count, count)
        }
    }

    /// Ports, eight a range.
    pub(crate) fn ports(count: u64) -> Self {
        Layout {
            stride: 16,
            len: 8,
            base: 0x100,
            ..Self::pages(count, count)
        }
    }

    /// First address of a range.
    #[inline]
    pub(crate) fn first(&self, range: u64) -> u64 {
        self.base + range * self.stride
    }

    /// The device of a range.
    #[inline]
    pub(crate) fn device(&self, range: u64) -> u64 {
        if self.devices == self.count {
            range
        } else {
            range * self.devices / self.count
        }
    }

    /// The first address behind a range, which belongs to nobody unless the ranges lie side by side.
    pub(crate) fn behind(&self, range: u64) -> u64 {
        self.first(range) + self.len
    }

    /// The first address behind them all.
    pub(crate) fn end(&self) -> u64 {
        self.first(self.count)
    }
}
