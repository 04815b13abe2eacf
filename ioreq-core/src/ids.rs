// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Identifiers, one type each, so that a gfn is never taken for an address or a port for a domain.

use std::fmt;

use vm_memory::GuestAddress;

/// log2 of the size of a guest page frame (4 KiB).
pub const PAGE_SHIFT: u32 = 12;
/// Size of a guest page frame in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(raw: $inner) -> Self {
                Self(raw)
            }
        }
    };
}

id! {
    /// A Xen domain id (`domid_t`).
    ///
    /// ```
    /// use ioreq_core::DomId;
    /// assert_eq!(DomId(3).to_string(), "d3");
    /// ```
    DomId(u16), "d"
}
id! {
    /// An ioreq server's id within its domain (`ioservid_t`).
    ///
    /// ```
    /// use ioreq_core::ServerId;
    /// assert_eq!(ServerId(0).to_string(), "ioserv0");
    /// ```
    ServerId(u16), "ioserv"
}
id! {
    /// A virtual CPU's number within its domain.
    ///
    /// ```
    /// use ioreq_core::VcpuId;
    /// assert_eq!(VcpuId(1).to_string(), "v1");
    /// ```
    VcpuId(u32), "v"
}
id! {
    /// An event-channel port of the *guest* side (`vp_eport`, `bufioreq_port`), to be bound before use.
    ///
    /// ```
    /// use ioreq_core::EvtchnPort;
    /// assert_eq!(EvtchnPort(7).to_string(), "port7");
    /// ```
    EvtchnPort(u32), "port"
}
id! {
    /// An event-channel port of *this* side, as [`EventChannels::bind`](crate::EventChannels::bind) returns it.
    ///
    /// ```
    /// use ioreq_core::LocalPort;
    /// assert_eq!(LocalPort(7).to_string(), "lport7");
    /// ```
    LocalPort(u32), "lport"
}

/// A guest frame number: a guest-physical address divided by 4096.
///
/// ```
/// use ioreq_core::Gfn;
/// use vm_memory::GuestAddress;
/// assert_eq!(Gfn::of(GuestAddress(0x12_3456)), Gfn(0x123));
/// assert_eq!(Gfn(0x123).start(), Some(GuestAddress(0x12_3000)));
/// assert_eq!(Gfn(u64::MAX).start(), None); // not an address
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The largest frame number whose bytes all have a 64-bit address.
    pub const MAX: Gfn = Gfn(u64::MAX >> PAGE_SHIFT);

    /// The frame that holds `addr`.
    #[must_use]
    pub const fn of(addr: GuestAddress) -> Self {
        Gfn(addr.0 >> PAGE_SHIFT)
    }

    /// The frame's first byte, or `None` if that address does not fit 64 bits.
    #[must_use]
    pub const fn start(self) -> Option<GuestAddress> {
        if self.0 > Self::MAX.0 {
            None
        } else {
            Some(GuestAddress(self.0 << PAGE_SHIFT))
        }
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {:#x}", self.0)
    }
}

/// A PCI function: segment, bus, device, function.
///
/// ```
/// use ioreq_core::Sbdf;
/// let fun = Sbdf::new(0, 0, 3, 0).unwrap();
/// assert_eq!(fun.to_string(), "0000:00:03.0");
/// assert_eq!(Sbdf::new(0, 0, 32, 0), None); // 32 devices a bus
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sbdf(u32);

impl Sbdf {
    /// A function by its parts; `None` unless `device < 32` and `function < 8`.
    #[must_use]
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device >= 32 || function >= 8 {
            return None;
        }
        let bdf = (bus as u32) << 8 | (device as u32) << 3 | function as u32;
        Some(Sbdf((segment as u32) << 16 | bdf))
    }

    /// From the packed form: segment 31:16, bus 15:8, device 7:3, function 2:0.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Sbdf(bits)
    }

    /// The packed form (see [`from_bits`](Self::from_bits)); Xen's range for a PCI function has it as both ends.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Segment (PCI domain).
    #[must_use]
    pub const fn segment(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8 & 0xff) as u8
    }

    /// Device number, below 32.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3 & 0x1f) as u8
    }

    /// Function number, below 8.
    #[must_use]
    pub const fn function(self) -> u8 {
        (self.0 & 7) as u8
    }
}

impl fmt::Debug for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.segment(),
            self.bus(),
            self.device(),
            self.function()
        )
    }
}
