// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The decoder on anything at all, and on everything that is well-formed.

use ioreq_core::abi::*;
use ioreq_core::request::{Data, Io, Kind, MAX_COUNT, Target, decode};
use ioreq_core::{VcpuId, Width};
use proptest::prelude::*;

/// 64-bit values, half of them near the ends and other edges.
fn edgy() -> impl Strategy<Value = u64> {
    let near = (
        prop::sample::select(vec![0, 1 << 16, 1 << 32, u64::MAX]),
        0..40_000_u64,
    );
    prop_oneof![
        any::<u64>(),
        near.prop_map(|(edge, off): (u64, u64)| edge.wrapping_add(off)),
        (0..40_000_u64).prop_map(|off| u64::MAX - off),
    ]
}

prop_compose! {
    /// Any 32 bytes, with the small fields small often enough to get past the first checks.
    fn slot()(
        addr in edgy(),
        data in edgy(),
        count in prop_oneof![any::<u32>(), 0..=MAX_COUNT + 1],
        size in prop_oneof![any::<u32>(), 0..=9_u32],
        vp_eport in any::<u32>(),
        pad in any::<u16>(),
        flags in any::<u8>(),
        kind in prop_oneof![any::<u8>(), 0..=2_u8],
    ) -> Ioreq {
        Ioreq { addr, data, count, size, vp_eport, pad, flags, kind }
    }
}

/// What a slot has to hold for this access.
fn encode(io: &Io) -> Ioreq {
    let (kind, addr) = match io.target() {
        Target::Port(port) => (IOREQ_TYPE_PIO, u64::from(port)),
        Target::Mmio(addr) => (IOREQ_TYPE_COPY, addr.0),
        Target::Pci { sbdf, register } => {
            let addr = u64::from(sbdf.segment()) << 48
                | u64::from(sbdf.bus()) << 40
                | u64::from(sbdf.device()) << 35
                | u64::from(sbdf.function()) << 32
                | u64::from(register);
            (IOREQ_TYPE_PCI_CONFIG, addr)
        }
    };
    let (data, pointer) = match io.data() {
        Data::Inline(value) => (value, 0),
        Data::Pointer(addr) => (addr.0, IOREQ_DATA_IS_PTR),
    };
    let read = if io.is_read() { IOREQ_DIR_READ } else { 0 };
    let df = if io.backward() { IOREQ_DF } else { 0 };
    Ioreq {
        kind,
        addr,
        data,
        count: io.count(),
        size: io.width() as u32,
        flags: pointer | read | df,
        ..Ioreq::default()
    }
}

/// The rules once more, in 128-bit arithmetic that cannot wrap.
fn well_formed(raw: &Ioreq) -> bool {
    let size_fits = matches!(raw.size, 1 | 2 | 4) || raw.size == 8 && raw.kind == IOREQ_TYPE_COPY;
    if !size_fits || !(1..=4096).contains(&raw.count) {
        return false;
    }
    let size = i128::from(raw.size);
    let moved = i128::from(raw.count - 1) * if raw.df() { -size } else { size };
    let inside = |first: u64, moved: i128, space: i128| {
        let first = i128::from(first);
        let last = first + moved;
        first.min(last) >= 0 && first.max(last) + size <= space
    };
    let target = match raw.kind {
        IOREQ_TYPE_PIO => inside(raw.addr, 0, 1 << 16),
        IOREQ_TYPE_COPY => inside(raw.addr, moved, 1 << 64),
        _ => inside(raw.addr & 0xffff_ffff, 0, 4096),
    };
    target && (!raw.data_is_ptr() || inside(raw.data, moved, 1 << 64))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn accepts_exactly_the_well_formed(raw in slot()) {
        let decoded = decode(&raw, VcpuId(5));
        match raw.kind {
            IOREQ_TYPE_PIO | IOREQ_TYPE_COPY | IOREQ_TYPE_PCI_CONFIG => {
                prop_assert_eq!(decoded.is_ok(), well_formed(&raw), "{:?}", decoded);
            }
            IOREQ_TYPE_TIMEOFFSET => {}
            _ => prop_assert!(decoded.is_ok()),
        }
        match decoded {
            Ok(request) => prop_assert!(!request.to_string().is_empty()),
            Err(why) => prop_assert!(!why.to_string().is_empty()),
        }
    }

    #[test]
    fn elements_stay_inside_and_step_evenly(raw in slot()) {
        let Ok(request) = decode(&raw, VcpuId(0)) else { return Ok(()) };
        let Kind::Io(io) = *request.kind() else { return Ok(()) };
        let space = match io.target() {
            Target::Port(_) => 1 << 16,
            Target::Mmio(_) => 1 << 64,
            Target::Pci { .. } => 4096,
        };
        let bytes = i128::from(io.width().bytes());
        let mut count = 0;
        for element in io.elements() {
            prop_assert_eq!(element.index, count);
            let index = i128::from(count);
            let addr = i128::from(io.target().addr()) + index * i128::from(io.stride());
            prop_assert_eq!(i128::from(element.addr), addr);
            prop_assert!(addr >= 0 && addr + bytes <= space);
            match (io.data(), element.data) {
                (Data::Inline(_), None) => {}
                (Data::Pointer(first), Some(at)) => {
                    let data = i128::from(first.0) + index * i128::from(io.data_stride());
                    prop_assert_eq!(i128::from(at.0), data);
                    prop_assert!(data >= 0 && data + bytes <= 1 << 64);
                }
                other => prop_assert!(false, "{:?}", other),
            }
            count += 1;
        }
        prop_assert_eq!(count, io.count());
        prop_assert!(count <= MAX_COUNT);
    }

    #[test]
    fn encoding_and_decoding_again_changes_nothing(raw in slot()) {
        let Ok(request) = decode(&raw, VcpuId(0)) else { return Ok(()) };
        let Kind::Io(io) = *request.kind() else { return Ok(()) };
        let again = encode(&io);
        prop_assert_eq!(decode(&again, VcpuId(0)), Ok(request));
        // And nothing but what means nothing was lost.
        let bits = IOREQ_DATA_IS_PTR | IOREQ_DIR_READ | IOREQ_DF;
        prop_assert_eq!(
            (again.kind, again.addr, again.count, again.size, again.flags),
            (raw.kind, raw.addr, raw.count, raw.size, raw.flags & bits)
        );
        let width = Width::from_bytes(raw.size).unwrap();
        let data = match (raw.data_is_ptr(), raw.is_read()) {
            (true, _) => raw.data,
            (false, false) => width.cut(raw.data),
            (false, true) => 0,
        };
        prop_assert_eq!(again.data, data);
    }
}
