// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What nearly every request is: one access to a port or an MMIO address, with its data in the slot.

use crate::abi::{IOREQ_TYPE_COPY, IOREQ_TYPE_PIO, Ioreq};
use crate::memory::Width;

/// Such an access, validated as [`decode`](super::decode()) does it. Few fields, so that they stay in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plain {
    /// A port; else an MMIO address.
    pub(crate) is_port: bool,
    pub(crate) is_read: bool,
    pub(crate) width: Width,
    /// Below 65536 for a port; no byte of the access is beyond the end of its space.
    pub(crate) addr: u64,
    /// What is written, not yet cut to the width: a read has no use for it.
    pub(crate) data: u64,
}

impl Plain {
    /// None if the request is another, or malformed: `decode` tells.
    #[inline]
    pub(crate) fn of(raw: &Ioreq) -> Option<Self> {
        let width = Width::from_bytes(raw.size)?;
        let last = raw.addr.checked_add(width.bytes() - 1)?;
        if raw.count != 1 || raw.data_is_ptr() {
            return None;
        }
        let is_port = match raw.kind {
            IOREQ_TYPE_COPY => false,
            IOREQ_TYPE_PIO if last <= u64::from(u16::MAX) && width < Width::B8 => true,
            _ => return None,
        };
        Some(Plain {
            is_port,
            is_read: raw.is_read(),
            width,
            addr: raw.addr,
            data: raw.data,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::VcpuId;
    use crate::request::{Data, Kind, Target, decode};

    /// The same from what `decode` says.
    fn decoded(raw: &Ioreq) -> Option<Plain> {
        let request = decode(raw, VcpuId(0)).ok()?;
        let Kind::Io(io) = *request.kind() else {
            return None;
        };
        let (Data::Inline(data), 1) = (io.data(), io.count()) else {
            return None;
        };
        let is_port = match io.target() {
            Target::Port(_) => true,
            Target::Mmio(_) => false,
            Target::Pci { .. } => return None,
        };
        Some(Plain {
            is_port,
            is_read: io.is_read(),
            width: io.width(),
            addr: io.target().addr(),
            data: match io.is_read() {
                true => raw.data,
                false => data | raw.data & !io.width().all_ones(),
            },
        })
    }

    fn addr() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            0_u64..0x2_0000,
            0xfff0_u64..0x1_0010,
            u64::MAX - 8..=u64::MAX,
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// There are two decoders: one for the plain requests, and one for all.
        #[test]
        fn plain_is_what_decode_says(
            addr in addr(),
            data in any::<u64>(),
            count in prop_oneof![0_u32..3, Just(1), any::<u32>()],
            size in prop_oneof![0_u32..10, any::<u32>()],
            kind in prop_oneof![0_u8..10, any::<u8>()],
            flags in any::<u8>(),
        ) {
            let raw = Ioreq { addr, data, count, size, kind, flags, ..Ioreq::default() };
            prop_assert_eq!(Plain::of(&raw), decoded(&raw), "{:?}", raw);
        }
    }
}
