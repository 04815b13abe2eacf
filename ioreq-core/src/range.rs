// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Inclusive ranges of the four address spaces. Both ends belong to the range, so that one can reach the very end
//! of its space, and an access matches only if *all* its bytes lie inside.

use std::fmt;

use vm_memory::GuestAddress;

use crate::ids::{Gfn, Sbdf};

/// Why a range could not be made.
///
/// ```
/// use ioreq_core::{MmioRange, RangeError};
/// assert_eq!(MmioRange::new(2, 1), Err(RangeError::Backward { first: 2, last: 1 }));
/// assert_eq!(MmioRange::sized(0x1000, 0), Err(RangeError::Empty { first: 0x1000 }));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// `first > last`.
    #[error("range {first:#x}–{last:#x} ends before it starts: give the lower end first")]
    Backward {
        /// Lower end as given.
        first: u64,
        /// Upper end as given.
        last: u64,
    },
    /// A length of zero.
    #[error("a range at {first:#x} of length 0: a range holds at least one element")]
    Empty {
        /// Lower end as given.
        first: u64,
    },
    /// The end does not fit the address space.
    #[error(
        "{len:#x} elements from {first:#x} end beyond the address space (last possible: {max:#x})"
    )]
    BeyondEnd {
        /// Lower end as given.
        first: u64,
        /// Length as given.
        len: u64,
        /// Last element of the space.
        max: u64,
    },
}

macro_rules! range {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $max:expr, $unit:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            first: $raw,
            last: $raw,
        }

        impl $name {
            #[doc = concat!("From `first` to `last` ", $unit, ", both included.")]
            ///
            /// # Errors
            /// [`RangeError::Backward`] if `first > last`, [`RangeError::BeyondEnd`] if `last` is outside the space.
            pub const fn new(first: $raw, last: $raw) -> Result<Self, RangeError> {
                if first > last {
                    return Err(RangeError::Backward { first: first as u64, last: last as u64 });
                }
                if last > $max {
                    let len = (last - first) as u64;
                    let len = len.saturating_add(1);
                    return Err(RangeError::BeyondEnd { first: first as u64, len, max: $max as u64 });
                }
                Ok(Self { first, last })
            }

            #[doc = concat!("`len` ", $unit, " from `first` on.")]
            ///
            /// # Errors
            /// [`RangeError::Empty`] for a length of 0, [`RangeError::BeyondEnd`] if the end is outside the space.
            pub const fn sized(first: $raw, len: u64) -> Result<Self, RangeError> {
                if len == 0 {
                    return Err(RangeError::Empty { first: first as u64 });
                }
                let max = $max as u64;
                if first as u64 > max || len - 1 > max - first as u64 {
                    return Err(RangeError::BeyondEnd { first: first as u64, len, max });
                }
                #[allow(clippy::cast_possible_truncation, reason = "bounded by the space just checked")]
                let last = (first as u64 + (len - 1)) as $raw;
                Ok(Self { first, last })
            }

            #[doc = concat!("The first of the ", $unit, ".")]
            #[must_use]
            pub const fn first(&self) -> $raw {
                self.first
            }

            #[doc = concat!("The last of the ", $unit, " (inclusive).")]
            #[must_use]
            pub const fn last(&self) -> $raw {
                self.last
            }

            /// Whether the two have an element in common.
            #[must_use]
            pub const fn overlaps(&self, other: &Self) -> bool {
                self.first <= other.last && other.first <= self.last
            }

            /// Whether all `len` elements from `first` on lie inside. False for `len == 0` and on overflow.
            #[must_use]
            pub const fn covers(&self, first: $raw, len: u64) -> bool {
                len != 0
                    && first >= self.first
                    && first <= self.last
                    && len - 1 <= (self.last - first) as u64
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

range! {
    /// Guest-physical byte addresses of an MMIO range, both ends included.
    ///
    /// ```
    /// use ioreq_core::MmioRange;
    /// let bar = MmioRange::sized(0xe000_0000, 0x1000)?;
    /// assert_eq!(bar.last(), 0xe000_0fff);
    /// assert!(bar.covers(0xe000_0ffc, 4) && !bar.covers(0xe000_0ffd, 4));
    /// assert!(MmioRange::new(0, u64::MAX)?.covers(u64::MAX, 1));
    /// # Ok::<(), ioreq_core::RangeError>(())
    /// ```
    MmioRange, u64, u64::MAX, "byte addresses"
}

range! {
    /// I/O ports, both ends included.
    ///
    /// ```
    /// use ioreq_core::PortRange;
    /// let uart = PortRange::new(0x3f8, 0x3ff)?;
    /// assert!(uart.covers(0x3f8, 8) && !uart.covers(0x3f8, 9));
    /// assert!(PortRange::sized(0xffff, 2).is_err());
    /// # Ok::<(), ioreq_core::RangeError>(())
    /// ```
    PortRange, u16, u16::MAX, "ports"
}

range! {
    /// Guest frames, both ends included.
    ///
    /// ```
    /// use ioreq_core::{Gfn, GfnRange};
    /// let two = GfnRange::sized(0x100, 2)?;
    /// assert_eq!(two.iter().collect::<Vec<_>>(), [Gfn(0x100), Gfn(0x101)]);
    /// assert_eq!(two.pages(), 2);
    /// assert!(GfnRange::new(0, u64::MAX).is_err()); // such a frame has no address
    /// # Ok::<(), ioreq_core::RangeError>(())
    /// ```
    GfnRange, u64, Gfn::MAX.0, "frames"
}

impl GfnRange {
    /// The one frame `gfn`.
    ///
    /// # Errors
    /// [`RangeError::BeyondEnd`] if the frame has no 64-bit address.
    pub const fn single(gfn: Gfn) -> Result<Self, RangeError> {
        Self::new(gfn.0, gfn.0)
    }

    /// Number of frames.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Whether `gfn` is one of them.
    #[must_use]
    pub const fn contains(&self, gfn: Gfn) -> bool {
        self.first <= gfn.0 && gfn.0 <= self.last
    }

    /// The first byte's address.
    #[must_use]
    pub const fn start(&self) -> GuestAddress {
        GuestAddress(self.first << crate::ids::PAGE_SHIFT)
    }

    /// The frames in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Gfn> + use<> {
        (self.first..=self.last).map(Gfn)
    }

    /// The range cut into pieces of at most `pages` frames, in order. A `pages` of 0 counts as 1.
    pub fn batches(&self, pages: u64) -> impl Iterator<Item = GfnRange> + use<> {
        let step = pages.max(1);
        let end = *self;
        let mut next = Some(self.first);
        std::iter::from_fn(move || {
            let first = next?;
            let last = end.last.min(first.saturating_add(step - 1));
            next = (last < end.last).then(|| last + 1);
            Some(GfnRange { first, last })
        })
    }
}

impl From<Gfn> for GfnRange {
    /// The one frame. A number beyond [`Gfn::MAX`] is cut down to it, where no guest has memory.
    fn from(gfn: Gfn) -> Self {
        let raw = gfn.0.min(Gfn::MAX.0);
        GfnRange {
            first: raw,
            last: raw,
        }
    }
}

range! {
    /// PCI functions by their packed form ([`Sbdf::bits`]), both ends included. Xen's own ranges are one function each.
    ///
    /// ```
    /// use ioreq_core::{Sbdf, SbdfRange};
    /// let slot = SbdfRange::from(Sbdf::new(0, 0, 3, 0).unwrap());
    /// assert_eq!(slot.to_string(), "pci 0000:00:03.0–0000:00:03.0");
    /// ```
    SbdfRange, u32, u32::MAX, "PCI functions"
}

impl From<Sbdf> for SbdfRange {
    fn from(sbdf: Sbdf) -> Self {
        SbdfRange {
            first: sbdf.bits(),
            last: sbdf.bits(),
        }
    }
}

impl fmt::Display for MmioRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mmio {:#x}–{:#x}", self.first, self.last)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ports {:#x}–{:#x}", self.first, self.last)
    }
}

impl fmt::Display for GfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfns {:#x}–{:#x}", self.first, self.last)
    }
}

impl fmt::Display for SbdfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pci {}–{}",
            Sbdf::from_bits(self.first),
            Sbdf::from_bits(self.last)
        )
    }
}

/// A range that an ioreq server can register with the hypervisor (`XEN_DMOP_map_io_range_to_ioreq_server`).
///
/// ```
/// use ioreq_core::{IoRange, PortRange};
/// let range = IoRange::from(PortRange::new(0x70, 0x71)?);
/// assert_eq!(range.to_string(), "ports 0x70–0x71");
/// # Ok::<(), ioreq_core::RangeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoRange {
    /// I/O ports (`XEN_DMOP_IO_RANGE_PORT`).
    Port(PortRange),
    /// MMIO byte addresses (`XEN_DMOP_IO_RANGE_MEMORY`).
    Mmio(MmioRange),
    /// PCI configuration space of one function (`XEN_DMOP_IO_RANGE_PCI`).
    Pci(Sbdf),
}

impl From<PortRange> for IoRange {
    fn from(range: PortRange) -> Self {
        IoRange::Port(range)
    }
}

impl From<MmioRange> for IoRange {
    fn from(range: MmioRange) -> Self {
        IoRange::Mmio(range)
    }
}

impl From<Sbdf> for IoRange {
    fn from(sbdf: Sbdf) -> Self {
        IoRange::Pci(sbdf)
    }
}

impl fmt::Display for IoRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IoRange::Port(r) => r.fmt(f),
            IoRange::Mmio(r) => r.fmt(f),
            IoRange::Pci(s) => write!(f, "pci {s}"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ends_the_wrong_way_round_are_refused() {
        assert!(PortRange::new(5, 4).is_err() && PortRange::new(5, 5).is_ok());
        assert!(MmioRange::new(0x1001, 0x1000).is_err());
        assert!(MmioRange::new(u64::MAX, 0).is_err());
        assert!(GfnRange::new(1, 0).is_err());
        assert!(MmioRange::sized(u64::MAX, 2).is_err(), "it would go round");
        assert!(GfnRange::sized(0x10, 0).is_err(), "none is no range");
    }
}
