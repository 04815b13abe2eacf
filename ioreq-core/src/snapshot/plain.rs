// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How the framework's own types are written: as the plain numbers they are made of. What is read is checked as by their
//! constructors.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ids::{Gfn, Sbdf, VcpuId};
use crate::memory::Width;
use crate::range::{GfnRange, IoRange, MmioRange, PortRange};

/// As one number.
macro_rules! number {
    ($($name:ty, $raw:ty, $get:expr, $make:expr;)*) => {$(
        impl Serialize for $name {
            fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
                let get: fn(&$name) -> $raw = $get;
                get(self).serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let make: fn($raw) -> Result<$name, &'static str> = $make;
                make(<$raw>::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }
    )*};
}

number! {
    Gfn, u64, |gfn| gfn.0, |raw| {
        if raw > Gfn::MAX.0 { Err("a frame number beyond the address space") } else { Ok(Gfn(raw)) }
    };
    Sbdf, u32, |sbdf| sbdf.bits(), |raw| Ok(Sbdf::from_bits(raw));
    VcpuId, u32, |vcpu| vcpu.0, |raw| Ok(VcpuId(raw));
    Width, u32, |width| *width as u32, |raw| {
        Width::from_bytes(raw).ok_or("a width that is not 1, 2, 4 or 8 bytes")
    };
}

/// As both ends, which are included.
macro_rules! ends {
    ($($name:ty, $raw:ty;)*) => {$(
        impl Serialize for $name {
            fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
                (self.first(), self.last()).serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let (first, last) = <($raw, $raw)>::deserialize(deserializer)?;
                <$name>::new(first, last).map_err(de::Error::custom)
            }
        }
    )*};
}

ends! {
    PortRange, u16;
    MmioRange, u64;
    GfnRange, u64;
}

/// By its name in every format.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", remote = "IoRange")]
enum Named {
    Port(PortRange),
    Mmio(MmioRange),
    Pci(Sbdf),
}

impl Serialize for IoRange {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        Named::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for IoRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Named::deserialize(deserializer)
    }
}
